"""Candidates: programs that differ from the best one by proposals of several predictors."""

from dspy_diffusion_infill.infiller.proposals import Proposal
from dspy_diffusion_infill.optimizer.candidates import Candidate, proposal_between
from dspy_diffusion_infill.optimizer.results import Edit
from dspy_diffusion_infill.windows import Piece, Window

OLD = {"find": "Find a clue", "name": "Name it"}


def of_find(old=OLD) -> Candidate:
    window = Window((Piece(5, 6, 1),))
    return Candidate((Proposal("find", window, ("the",), "Find the clue", 0.9),), old)


def of_name() -> Candidate:
    window = Window((Piece(7, 7, 1),))
    return Candidate((Proposal("name", window, (" now",), "Name it now", 0.4),), OLD)


def test_candidates_of_different_predictors_are_joined():
    both = of_find().joined(of_name())
    assert both is not None
    assert both.texts == {"find": "Find the clue", "name": "Name it now"}
    assert both.predictors == {"find", "name"}
    assert both.confidence == 0.4


def test_candidates_of_one_predictor_or_of_other_texts_are_not_joined():
    assert of_find().joined(of_find()) is None
    assert of_find({**OLD, "name": "Say it"}).joined(of_name()) is None


def test_edits_say_what_was_taken_out_and_put_in():
    assert of_find().edits() == [Edit("find", 5, 6, "a", "the", "Find the clue")]


def test_a_merge_is_a_proposal_with_the_places_where_the_texts_differ():
    found = proposal_between("name", "Name it", "Please name it now")
    assert found.window.splice("Name it", found.fills) == found.instructions
    assert found.fills == ("Please name", " now")
