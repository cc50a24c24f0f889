"""What ``compile`` promises around the search: journals, dead LMs, copies, frozen parts, text."""

import copy
import functools
import logging
import pickle
import re
from pathlib import Path

import cloudpickle
import dspy
import pytest
from doubles import WordCountScorer, WordDenoiser, rule_lm
from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_diffusion_infill.denoisers import Sampling
from dspy_diffusion_infill.errors import TooManyErrors
from dspy_diffusion_infill.optimizer.diffusion_infill import DiffusionInfill
from dspy_diffusion_infill.programs import (
    all_predictors,
    instructions_of,
    signature_with,
    with_instructions,
)
from dspy_diffusion_infill.template_adapter import TemplateAdapter

TASK = "Say which kind of message this one is and nothing else"
ROWS = [dspy.Example(text=f"row {k}", label="ab"[k % 2]).with_inputs("text") for k in range(6)]
QUIET = {"guidance": None, "display_progress": False, "num_threads": 1, "sweeps": 1}


class Program(dspy.Module):
    def __init__(self, answer="a", instructions=TASK):
        super().__init__()
        self.step = dspy.Predict(dspy.Signature("text -> label", instructions))
        self.answer = answer

    def forward(self, text):
        return dspy.Prediction(label=self.answer)


def points(example, prediction, trace=None, worth=1.0):
    return worth


def worth(points):
    return lambda example, prediction, trace=None: points


def search(metric=None, program=None, rows=ROWS, denoiser=None, **options):
    optimizer = DiffusionInfill(metric, denoiser or WordDenoiser(), **{**QUIET, **options})
    lm, _ = rule_lm(lambda prompt: "a")
    with dspy.context(lm=lm, adapter=options.pop("adapter", TemplateAdapter())):
        return optimizer.compile(program or Program(), rows)


# A journal answers only for the search that wrote it

OTHERS = {
    "metric": ({"metric": worth(0.25)}, {"metric": worth(0.75)}),
    "metric of a partial": (
        {"metric": functools.partial(points, worth=0.25)},
        {"metric": functools.partial(points, worth=0.75)},
    ),
    "program": ({"program": Program("a")}, {"program": Program("b")}),
    "options, text or pattern": ({"protect": ["a.b"]}, {"protect": [re.compile("a.b")]}),
    "options, flags": (
        {"protect": [re.compile("a.b")]},
        {"protect": [re.compile("a.b", re.IGNORECASE)]},
    ),
    "trainset": (
        {"rows": [*ROWS[:5], dspy.Example(ROWS[5], extra={(1, 2): 3}).with_inputs("text")]},
        {"rows": [*ROWS[:5], dspy.Example(ROWS[5], extra={(1, 2): 4}).with_inputs("text")]},
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_reused_folder_never_answers_for_another_search(name, tmp_path):
    first, other = OTHERS[name]
    part = name.split()[0].removesuffix(",")
    search(**first, log_dir=tmp_path)
    search(**first, log_dir=tmp_path)
    with pytest.raises(ValueError, match=f"journal of another search .other.* {part}"):
        search(**other, log_dir=tmp_path)


def test_an_estimate_leaves_the_folder_alone(tmp_path):
    optimizer = DiffusionInfill(None, WordDenoiser(), **QUIET, log_dir=tmp_path / "new")
    with dspy.context(lm=rule_lm(lambda prompt: "a")[0]):
        optimizer.estimate(Program(), ROWS[:4])
    assert not (tmp_path / "new").exists()


def test_what_cannot_be_described_is_refused_only_where_a_journal_is_kept(tmp_path):
    rows = [dspy.Example(row, lines=(line for line in "ab")).with_inputs("text") for row in ROWS]
    search(rows=rows)
    with pytest.raises(ValueError, match=r"trainset\[0\]\.lines is, and generator objects cannot"):
        search(rows=rows, log_dir=tmp_path)


# Where no run succeeds, nothing is kept


@pytest.mark.parametrize("guidance", [None, WordCountScorer()])
def test_a_student_of_which_every_run_fails_ends_the_search_with_the_cause(guidance, caplog):
    def broken(example, prediction, trace=None):
        raise KeyError("score")

    with caplog.at_level(logging.WARNING):
        better = search(broken, guidance=guidance, sweeps=3)
    assert better.step.signature.instructions == TASK
    assert better.detailed_results.metric_calls == len(ROWS)
    assert "no run of the student succeeded" in caplog.text and "KeyError" in caplog.text


def test_edits_under_which_every_run_fails_are_not_kept_on_a_tie():
    class Fragile(Program):
        def forward(self, text):
            if self.step.signature.instructions != TASK:
                raise RuntimeError("no answer")
            return dspy.Prediction(label="c")

    results = search(program=Fragile(), guidance=WordCountScorer()).detailed_results
    assert results.trials and results.score_before == 0
    assert results.counts.accepted == 0


# Copies of optimizers and errors


def test_an_optimizer_that_has_loaded_its_denoiser_is_copied_and_pickled(monkeypatch):
    loaded = []
    where = "dspy_diffusion_infill.optimizer.diffusion_infill.load_denoiser"
    monkeypatch.setattr(where, lambda name: loaded.append(name) or WordDenoiser())
    optimizer = DiffusionInfill(None, Path("some/model"), **QUIET, seed=3)
    with dspy.context(lm=rule_lm(lambda prompt: "a")[0]):
        optimizer.estimate(Program(), ROWS)
        for twin in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
            assert twin.get_params() == optimizer.get_params()
            twin.estimate(Program(), ROWS)
    assert loaded == ["some/model"] * 3


def test_a_copy_of_an_optimizer_shares_a_denoiser_that_was_handed_in():
    denoiser = WordDenoiser()
    optimizer = DiffusionInfill(None, denoiser, protect=["x"], **QUIET)
    twin = copy.deepcopy(optimizer)
    assert twin.denoiser is denoiser
    twin.protect += ("y",)
    assert optimizer.protect == ("x",)


@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda e: cloudpickle.loads(cloudpickle.dumps(e))]
)
def test_an_error_keeps_the_best_program_through_a_copy(again):
    error = again(TooManyErrors("2 of 3 raised", best_program="best", detailed_results="all"))
    assert str(error) == "2 of 3 raised"
    assert (error.best_program, error.detailed_results) == ("best", "all")


# Frozen parts


class Steps(dspy.Module):
    def __init__(self):
        super().__init__()
        self.note = dspy.ChainOfThought(dspy.Signature("text -> note", "Note what it is about."))
        self.others = {"k": dspy.Predict("note -> label")}

    def forward(self, text):
        return dspy.Prediction(label=self.others["k"](note=self.note(text=text).note).label)


def test_frozen_parts_of_a_teacher_give_responses_like_any_other():
    teacher = Steps()
    teacher.note._compiled = True
    assert list(all_predictors(teacher)) == ["note.predict", "others['k']"]
    assert list(all_predictors(Steps())) == [name for name, _ in Steps().named_predictors()]
    optimizer = DiffusionInfill(points, WordDenoiser(), **QUIET)
    lm, _ = rule_lm(lambda prompt: "Reasoning: s\nNote: short\nLabel: a")
    with dspy.context(lm=lm, adapter=TemplateAdapter()):
        found = optimizer.compile(Steps(), ROWS, teacher=teacher).detailed_results
    assert found.skipped == {}


def test_frozen_parts_ask_the_validating_lm_too():
    own, own_engine = rule_lm(lambda prompt: "a")
    validating, engine = rule_lm(lambda prompt: "Reasoning: s\nNote: n\nLabel: a")
    student = Steps()
    student.set_lm(own)
    student.note._compiled = True
    optimizer = DiffusionInfill(points, WordDenoiser(), **QUIET, validation_lm=validating)
    with dspy.context(adapter=TemplateAdapter()):
        better = optimizer.compile(student, ROWS)
    assert engine.prompts and not own_engine.prompts
    assert all(predictor.lm is own for predictor in all_predictors(better).values())


# Text outside the window

TEXTS = [
    "Sort it.\nnow:\n    - fruit\n    - tools",
    "Sort it.\n    - fruit\n    - tools",
    "Sort it.\n\n        deep\n    less deep",
    "Sort it.\n\tfruit\n\ttools",
]


@pytest.mark.parametrize("text", TEXTS)
def test_instructions_are_kept_to_the_character_whatever_cleandoc_does(text):
    signature = signature_with(dspy.Signature("text -> label"), text)
    assert signature.instructions == text.expandtabs()
    program = with_instructions(Program(), {"step": text.expandtabs()})
    assert instructions_of(with_instructions(program, {}))["step"] == text.expandtabs()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(TEXTS))
def test_text_outside_the_windows_stays_the_same_in_every_candidate(seed, text):
    better = search(program=Program(instructions=text), seed=seed, window=2, stride=2, mask=2)
    before = better.detailed_results.instructions_before["step"]
    for trial in better.detailed_results.trials:
        assert trial.instructions[: trial.start] == before[: trial.start]
        assert trial.instructions.endswith(before[trial.end :])
    written = {t.instructions for t in better.detailed_results.trials} | {before}
    for row in better.candidate_programs:
        assert row["program"].step.signature.instructions in written


# Options and columns


def test_a_column_that_no_step_writes_is_no_label():
    class Counting(Program):
        def forward(self, text):
            told = "only" in self.step.signature.instructions
            number = int(text.split()[-1])
            is_right = number > 2 if told else number == 0
            return dspy.Prediction(label=f"text {text}" if is_right else "")

    sources = ["web"] * 3 + ["mail"] * 3
    rows = [
        dspy.Example(text=f"row {k}", label=f"text row {k}", source=source).with_inputs("text")
        for k, source in enumerate(sources)
    ]
    denoiser = WordDenoiser(words=("only",))
    options = {"window": 1, "stride": 1, "mask": 1, "guidance": WordCountScorer()}
    results = search(program=Counting(), rows=rows, denoiser=denoiser, **options).detailed_results
    assert results.score_after == 0.5


async def awaited(example, prediction, trace=None):
    return 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_threads": 0}, "num_threads must be at least 1"),
        ({"num_threads": "4"}, "num_threads must be a whole number"),
        ({"masking": dspy.Predict}, "masking must be a scheme such as Prefix"),
        ({"masking": 8}, "masking must be a scheme such as Prefix"),
        ({"sampling": 128}, "sampling must be a Sampling or None"),
        ({"sampling": Sampling(), "steps": 3}, "inside of sampling=Sampling"),
        ({"failure_score": float("nan")}, "failure_score must be a finite number"),
        ({"seed": "0"}, "seed must be a whole number"),
        ({"protect": [""]}, "protect must hold no empty string"),
        ({"acceptance": 0.5}, "acceptance must be an object with accepts"),
        ({"metric": awaited}, "coroutine function"),
        ({"metric": functools.partial(awaited, trace=None)}, "coroutine function"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_wrong_values_are_refused_up_front(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        DiffusionInfill(denoiser=WordDenoiser(), **options)


def test_steps_and_temperature_still_work_and_name_what_replaces_them():
    with pytest.warns(DeprecationWarning, match=r"sampling=Sampling\(steps=4, temperature=0.5\)"):
        optimizer = DiffusionInfill(None, WordDenoiser(), steps=4, temperature=0.5)
    assert optimizer.sampling == Sampling(steps=4, temperature=0.5)
