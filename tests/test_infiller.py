import dspy
import pytest
from doubles import WordDenoiser

from dspy_diffusion_infill.adapters import TemplateAdapter
from dspy_diffusion_infill.contexts import Slot, WorkedExample
from dspy_diffusion_infill.denoisers import Sampling
from dspy_diffusion_infill.errors import ContextTooLongError
from dspy_diffusion_infill.infiller.infiller import Infiller
from dspy_diffusion_infill.windows import Piece, Window

TASK = "Read the text and name the colour that is meant"
WINDOW = Window((Piece(0, 13, 3),))  # "Read the text"


def slot(words: int = 3, num: int = 4, instructions: str = TASK) -> Slot:
    examples = tuple(
        WorkedExample({"text": f"t{k} " + "word " * words}, {"colour": f"c{k}"}) for k in range(num)
    )
    signature = dspy.Signature("text -> colour", instructions)
    return Slot("p", signature, TemplateAdapter(), examples)  # type: ignore[arg-type]


def propose(denoiser: WordDenoiser, place: Slot, num: int = 4, **options):
    infiller = Infiller(denoiser, Sampling(), **options)
    return infiller.propose(place, place.signature.instructions, WINDOW, num=num, seed=0)


def test_what_is_outside_the_window_stays_to_the_character():
    for proposal in propose(WordDenoiser(), slot()):
        assert proposal.instructions == proposal.fills[0] + TASK[13:]
        assert proposal.window == WINDOW


def test_equal_seeds_give_equal_proposals():
    assert propose(WordDenoiser(), slot()) == propose(WordDenoiser(), slot())


def test_each_proposal_sees_examples_of_its_own():
    denoiser = WordDenoiser()
    propose(denoiser, slot(num=8), num=8, examples_per_context=(1, 4))
    counts = [text.count("Colour:") for text in denoiser.seen]
    assert set(counts) <= {1, 2, 3, 4}
    assert len(set(counts)) > 1
    assert len(set(denoiser.seen)) == len(denoiser.seen)


def test_what_does_not_fit_loses_examples_before_characters(caplog):
    denoiser = WordDenoiser(context_length=60)
    propose(denoiser, slot(words=20), examples_per_context=(4, 4))
    for text in denoiser.seen:
        assert text.count("Colour:") < 4
        assert "…" not in text
        assert "name the colour that is meant" in text
    [warning] = [record.getMessage() for record in caplog.records]
    assert "do not fit 60: examples are left out" in warning


def test_one_example_that_does_not_fit_is_cut_and_the_instructions_are_not(caplog):
    denoiser = WordDenoiser(context_length=60)
    propose(denoiser, slot(words=400), examples_per_context=(1, 1))
    for text in denoiser.seen:
        assert "…" in text
        assert "name the colour that is meant" in text
    [warning] = [record.getMessage() for record in caplog.records]
    assert "does not fit 60: values are cut" in warning


def test_instructions_that_do_not_fit_are_named_with_the_fix():
    long = slot(words=400, instructions=TASK + " and say it" * 40)
    with pytest.raises(ContextTooLongError) as caught:
        propose(WordDenoiser(context_length=60), long)
    assert "the instructions of 'p' with one shortened example have" in str(caught.value)
    assert "word-denoiser takes 60: shorten the instructions" in str(caught.value)
