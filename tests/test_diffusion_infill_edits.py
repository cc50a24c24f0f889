"""What edits a search may make: kept passages, bounds on their sum, and copies of examples."""

import re

import dspy
import pytest
from doubles import WordDenoiser, rule_lm
from edit_cases import KeepAll
from test_diffusion_infill import ROWS, TASK, answer_if_told_briefly, compile_with, program

from dspy_diffusion_infill.optimizer.diffusion_infill import DiffusionInfill
from dspy_diffusion_infill.optimizer.infill_proposer import InfillProposer
from dspy_diffusion_infill.protection import Protected
from dspy_diffusion_infill.template_adapter import TemplateAdapter

KEPT = "Read [[keep]]what the customer wrote[[/keep]] and then tell us what is meant"
WIDE = {"order": "adaptive", "parents": "pool", "max_metric_calls": 150, "acceptance": KeepAll()}


@pytest.mark.parametrize("options", [{"sweeps": 3, "acceptance": KeepAll()}, WIDE])
def test_a_kept_passage_stays_and_no_lm_sees_its_marks(options):
    lm, engine = rule_lm(answer_if_told_briefly)
    student, denoiser = program(KEPT), WordDenoiser()
    better = compile_with(student=student, lm=lm, denoiser=denoiser, **options)
    texts = [trial.instructions for trial in better.detailed_results.trials]
    assert len(texts) > 5 and all("what the customer wrote" in text for text in texts)
    assert not any("keep]]" in text for text in (*engine.prompts, *denoiser.seen, *texts))
    assert student.signature.instructions == KEPT
    assert better.detailed_results.instructions_before == {"self": KEPT}
    assert "keep]]" not in better.signature.instructions


def test_marks_in_a_text_that_another_optimizer_wrote_hold_as_well():
    class Rewriter:
        """As COPRO leaves its result: new instructions on a copy, with its own records."""

        def compile(self, student):
            signature = student.signature.with_instructions(f"Carefully. {KEPT}")
            copy = student.deepcopy()
            copy.signature, copy.candidate_programs = signature, [{"score": 1.0, "program": copy}]
            return copy

    better = compile_with(student=Rewriter().compile(program()), sweeps=3, acceptance=KeepAll())
    assert "what the customer wrote" in better.signature.instructions
    assert better.detailed_results.counts.accepted > 5


@pytest.mark.parametrize("text", ["[[keep]]a", "a[[/keep]]", "[[keep]]a[[keep]]b[[/keep]]"])
@pytest.mark.parametrize("options", [{}, {"predictors": ["other"]}])
def test_marks_that_do_not_fit_are_refused_before_any_call(text, options):
    class Steps(dspy.Module):
        def __init__(self):
            super().__init__()
            self.first = dspy.Predict(dspy.Signature("text -> clue", text))
            self.other = dspy.Predict("clue -> colour")

    lm, engine = rule_lm(answer_if_told_briefly)
    with pytest.raises(ValueError, match=r"the instructions of 'first': \[\[/?keep\]\]"):
        compile_with(student=Steps(), lm=lm, **options)
    assert engine.prompts == []


def test_passages_that_a_gepa_candidate_keeps_stay_in_all_that_comes_of_it():
    with dspy.context(lm=rule_lm(answer_if_told_briefly)[0], adapter=TemplateAdapter()):
        proposer = InfillProposer(WordDenoiser(), ROWS, guidance=None)
        text = KEPT
        for _ in range(12):
            text = proposer({"self": text}, {}, ["self"])["self"]
            assert "what the customer wrote" in text and "keep]]" not in text


def distance(text: str) -> int:
    return sum(old != new for old, new in zip(TASK.split(), text.split(), strict=True))


def test_the_edit_fraction_bounds_all_edits_together():
    options = {"window": 2, "stride": 1, "mask": 2, "sweeps": 3, "acceptance": KeepAll()}
    free = compile_with(**options).detailed_results
    bound = compile_with(**options, max_edit_fraction=0.3).detailed_results
    assert max(distance(trial.instructions) for trial in free.trials) > 4
    assert max(distance(trial.instructions) for trial in bound.trials) == 4  # of 14 words
    assert bound.counts.edited_too_much > 0 == free.counts.edited_too_much
    assert bound.counts.validated == len(bound.trials)


@pytest.mark.parametrize(
    ("bound", "count"),
    [({"max_instruction_tokens": 16}, "too_long"), ({"max_growth": 1.15}, "grew_too_much")],
)
def test_the_length_of_all_edits_together_is_bounded(bound, count):
    options = {"window": 2, "mask": 3, "stride": 2, "sweeps": 3, "acceptance": KeepAll()}
    results = compile_with(**options, **bound).detailed_results
    assert max(len(trial.instructions.split()) for trial in results.trials) == 16  # of 14
    assert getattr(results.counts, count) > 0


def test_instructions_that_are_too_long_already_are_refused_before_any_call():
    lm, engine = rule_lm(answer_if_told_briefly)
    with pytest.raises(ValueError, match=r"must be at least 14, .* of 'self', got 13"):
        compile_with(lm=lm, max_instruction_tokens=13)
    assert engine.prompts == []


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_edit_fraction": 2}, ValueError, "max_edit_fraction must be above 0 and at most 1"),
        ({"max_growth": 0.5}, ValueError, "max_growth must be a finite factor of at least 1"),
        ({"leaks": "drop"}, ValueError, "leaks must be one of 'refuse', 'show', 'off'"),
        ({"protect_structure": "no"}, TypeError, "protect_structure must be True or False"),
    ],
)
def test_a_wrong_option_is_refused_when_it_is_given(options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        DiffusionInfill(**options)


def test_structure_is_protected_and_told_unless_it_is_switched_off():
    student = program("Walk 5 km and then tell the colour that you see there now")
    kept = compile_with(student=student, sweeps=2, acceptance=KeepAll()).detailed_results
    assert all(" 5 km " in f"{trial.instructions} " for trial in kept.trials)
    assert Protected(5, 9, "number") in kept.protected["self"]
    assert [one.kind for one in kept.protected["self"]] == ["number", "field"]
    free = compile_with(
        student=student, sweeps=2, acceptance=KeepAll(), protect_structure=False
    ).detailed_results
    assert not all("5 km" in trial.instructions for trial in free.trials)
    assert [one.kind for one in free.protected["self"]] == ["field"]


def copying(**options):
    rows = [
        dspy.Example(text=f"{row.text} says Zwiebelfisch", colour=row.colour).with_inputs("text")
        for row in ROWS
    ]
    denoiser = WordDenoiser(words=("Zwiebelfisch", "kindly", "please", "only", "now"))
    options = {"window": 2, "stride": 2, "mask": 2, "sweeps": 1, "acceptance": KeepAll(), **options}
    return compile_with(rows=rows, denoiser=denoiser, **options).detailed_results


def test_copies_of_examples_are_refused_or_shown():
    refused, shown, off = (copying(leaks=leaks) for leaks in ("refuse", "show", "off"))
    assert refused.counts.copies_example > 0 == shown.counts.copies_example
    assert not any("Zwiebelfisch" in trial.instructions for trial in refused.trials)
    copies = [trial for trial in shown.trials if "Zwiebelfisch" in trial.instructions]
    assert copies and all(trial.nearest[0].kind == "name" for trial in copies)
    assert copies[0].nearest[0].text == "Zwiebelfisch"
    assert all(trial.nearest == (None,) for trial in off.trials)


def test_each_edit_kept_or_not_tells_the_nearest_example_and_nothing_of_it():
    results = copying(acceptance=None)
    assert {one.accepted for one in results.trials} == {True, False}
    for trial in results.trials:
        (nearest,) = trial.nearest
        assert nearest.kind is None and 0 < nearest.similarity <= 1
        assert nearest.row in range(len(ROWS)) and nearest.field in ("text", "colour")
        assert nearest.text in trial.new_text.lower()
    assert "Zwiebelfisch" not in repr(results)
