"""What ``compile`` may be given: programs of several steps, teachers, demos; what it refuses."""

import logging
import re

import dspy
import pytest
from doubles import WordDenoiser, rule_lm
from test_diffusion_infill import (
    ROWS,
    Steps,
    answer_if_told_briefly,
    compile_with,
    ends_with_colour,
    program,
    two_steps,
)

from dspy_diffusion_infill.optimizer.diffusion_infill import DiffusionInfill
from dspy_diffusion_infill.template_adapter import TemplateAdapter


def test_middle_predictors_get_traced_responses():
    denoiser = WordDenoiser()
    results = compile_with(
        two_steps, student=Steps(), denoiser=denoiser, predictors=["find"], metric=ends_with_colour
    ).detailed_results
    assert set(trial.predictor for trial in results.trials) == {"find"}
    assert any("<assistant>\nnumber 3 is grey" in text for text in denoiser.seen)


def test_all_predictors_of_a_program_are_searched():
    results = compile_with(two_steps, student=Steps(), metric=ends_with_colour).detailed_results
    assert {trial.predictor for trial in results.trials} == {"find", "name"}


def test_a_teacher_gives_the_responses_of_the_middle(monkeypatch):
    denoiser = WordDenoiser()
    teacher = Steps()
    teacher.set_lm(rule_lm(lambda prompt: f"taught {two_steps(prompt)}")[0])
    lm, _ = rule_lm(two_steps)
    with dspy.context(lm=lm, adapter=TemplateAdapter()):
        DiffusionInfill(
            ends_with_colour, denoiser, guidance=None, num_threads=1, display_progress=False
        ).compile(Steps(), ROWS, teacher=[teacher])
    assert any("<assistant>\ntaught number 3 is grey" in text for text in denoiser.seen)


def test_demos_of_the_program_are_part_of_its_contexts():
    student, denoiser = program(), WordDenoiser()
    student.demos = [dspy.Example(text="number 9 is teal", colour="teal")]
    compile_with(student=student, denoiser=denoiser, max_metric_calls=12)
    assert all("teal" in text for text in denoiser.seen)


def test_contexts_that_do_not_fit_lose_examples_and_then_characters(caplog):
    rows = [
        dspy.Example(text=f"number {k} is red " + "x y " * 300, colour="red").with_inputs("text")
        for k in range(3)
    ]
    denoiser = WordDenoiser(context_length=220)
    with caplog.at_level(logging.WARNING):
        results = compile_with(rows=rows, denoiser=denoiser, max_metric_calls=9).detailed_results
    assert results.trials
    assert caplog.text.count("values are cut") == 1
    assert all(denoiser.num_tokens(text) <= 220 for text in denoiser.seen)
    parts = [text.partition("Text: ") for text in denoiser.seen]
    assert all("…" not in instructions and "…" in row for instructions, _, row in parts)


BAD = {
    "empty trainset": (dict(rows=[]), ValueError, "trainset must hold at least one example"),
    "trainset of strings": (dict(rows=["a"]), TypeError, "trainset[0] must be a dspy.Example"),
    "trainset that is a string": (dict(rows="abc"), TypeError, "trainset must be a list"),
    "no inputs": (
        dict(rows=[dspy.Example(text="a", colour="b")]),
        ValueError,
        "call example.with_inputs('text')",
    ),
    "metric with five arguments": (
        dict(metric=lambda gold, pred, trace, name, extra: 1.0),
        TypeError,
        "metric must be callable as metric(example, prediction, trace=None)",
    ),
    "stride over window": (
        dict(stride=12),
        ValueError,
        "stride must be in 1..window=8, got stride=12",
    ),
    "no mask": (dict(mask=()), ValueError, "mask must be a number or several, got none"),
    "window 0": (dict(window=0), ValueError, "window must be at least 1, got window=0"),
    "no sweeps": (dict(sweeps=0), ValueError, "sweeps must be at least 1, got sweeps=0"),
    "sweeps of another order": (
        dict(sweeps=3, order="adaptive"),
        ValueError,
        "sweeps=3 is for order='left_to_right': give that too, or leave sweeps out",
    ),
    "unknown predictor": (
        dict(predictors=["nobody"]),
        ValueError,
        "predictors must be among ['self']",
    ),
    "predictors as a string": (dict(predictors="self"), TypeError, "write ['self']"),
    "student that is no module": (
        dict(student="text -> colour"),
        TypeError,
        "must be a dspy.Module",
    ),
    "student that is a class": (dict(student=Steps), TypeError, "did you forget the parentheses"),
    "labels of no output": (
        dict(rows=[dspy.Example(text="a", other="b").with_inputs("text")]),
        ValueError,
        "pass metric=",
    ),
    "budget too small": (
        dict(max_metric_calls=3),
        ValueError,
        "does not cover the first evaluations",
    ),
    "examples_per_context": (dict(examples_per_context=(3, 1)), ValueError, "1 <= fewest <= most"),
    "protect": (dict(protect=[3]), TypeError, "protect must hold strings"),
    "no predictors": (dict(predictors=[]), ValueError, "must name at least one predictor"),
    "no time": (dict(run_timeout=0), ValueError, "run_timeout must be a number of seconds above 0"),
    "max_errors as text": (dict(max_errors="3"), TypeError, "max_errors must be a whole number"),
    "no failure_score": (dict(failure_score="0"), TypeError, "failure_score must be a finite"),
    "half a token": (dict(window=8.5), TypeError, "window must be a whole number of tokens"),
    "a row that cannot be rendered": (
        dict(rows=[*ROWS, dspy.Example(text=None, colour="red").with_inputs("text")]),
        ValueError,
        "cannot render the trainset's example",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_clear_error_before_any_call(name):
    options, kind, message = BAD[name]
    lm, engine = rule_lm(answer_if_told_briefly)
    with pytest.raises(kind, match=re.escape(message)):
        compile_with(lm=lm, **options)
    assert engine.prompts == []


def test_a_teacher_that_is_no_program_is_refused_before_a_denoiser_is_loaded():
    lm, _ = rule_lm(answer_if_told_briefly)
    with dspy.context(lm=lm), pytest.raises(TypeError, match=r"teacher must be a dspy\.Module"):
        DiffusionInfill(denoiser="no/such").compile(program(), ROWS, teacher="me")


def test_a_student_whose_copy_shares_predictors_is_refused():
    class Sticky(dspy.Module):
        def __init__(self):
            super().__init__()
            self.inner = program()

        def __deepcopy__(self, memo):
            return self

    with pytest.raises(TypeError, match=r"shares the predictors \['inner'\]"):
        compile_with(student=Sticky())
