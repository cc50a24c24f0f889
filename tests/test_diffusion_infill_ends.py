"""How a search ends: within its estimate, resumed, cut off, or refused before it costs anything."""

import json
import re

import dspy
import pytest
from doubles import WordDenoiser, rule_lm
from test_diffusion_infill import (
    ROWS,
    TASK,
    Steps,
    answer_if_told_briefly,
    compile_with,
    ends_with_colour,
    program,
    two_steps,
)

from dspy_diffusion_infill.optimizer.diffusion_infill import DiffusionInfill
from dspy_diffusion_infill.template_adapter import TemplateAdapter

MANY = [f"word{k}" for k in range(300)]  # so that none comes thrice in a row


def always_better():
    """A metric under which every trial beats the one before."""
    calls = []

    def metric(example, prediction, trace=None):
        calls.append(example)
        return len(calls)

    return metric


@pytest.mark.parametrize("mask", [(8, 12), (4, 8), 24])
def test_instructions_that_grow_stay_within_the_estimate(mask):
    lm, engine = rule_lm(lambda prompt: "red")
    denoiser = WordDenoiser(words=MANY)
    options = {"guidance": None, "mask": mask, "sweeps": 3, "num_proposals": 4}
    with dspy.context(lm=lm, adapter=TemplateAdapter()):
        optimizer = DiffusionInfill(
            always_better(), denoiser, num_threads=1, display_progress=False, **options
        )
        cost = optimizer.estimate(program(), ROWS)
        results = optimizer.compile(program(), ROWS).detailed_results
    assert results.counts.accepted > 5
    assert results.metric_calls == len(engine.prompts) <= cost.metric_calls


def test_a_sweep_over_grown_instructions_goes_on_where_the_last_one_stopped():
    options = {"mask": 24, "sweeps": 2, "denoiser": WordDenoiser(words=MANY)}
    results = compile_with(metric=always_better(), **options)
    first, second = (
        [t.start for t in results.detailed_results.trials if t.sweep == sweep] for sweep in (0, 1)
    )
    assert second[0] > first[-1]


def test_instructions_that_outgrow_the_context_end_the_sweep_and_keep_the_best(caplog):
    denoiser = WordDenoiser(words=MANY, context_length=60)
    options = {"mask": 24, "sweeps": 3, "denoiser": denoiser, "examples_per_context": (1, 1)}
    results = compile_with(metric=always_better(), **options).detailed_results
    assert results.score_after > results.score_before
    assert "a sweep ends early" in caplog.text


def test_whatever_ends_the_search_the_best_program_so_far_is_on_the_exception():
    class Breaks(WordDenoiser):
        def infill(self, requests, sampling):
            if len(self.seen) > 20:
                raise OSError("the device is gone")
            return super().infill(requests, sampling)

    with pytest.raises(OSError, match="device is gone") as caught:
        compile_with(metric=always_better(), denoiser=Breaks(), sweeps=5)
    results = caught.value.detailed_results
    assert results.score_after > results.score_before
    best = caught.value.best_program.signature.instructions
    assert best == results.instructions_after["self"] != TASK


def test_a_search_with_traces_is_resumed_without_a_call_made_twice(tmp_path):
    options = {"student": Steps(), "metric": ends_with_colour, "sweeps": 1, "seed": 2}
    whole = compile_with(two_steps, log_dir=tmp_path, **options).detailed_results
    lm, engine = rule_lm(two_steps)
    again = compile_with(lm=lm, log_dir=tmp_path, **options).detailed_results
    assert engine.prompts == []
    assert again.trials == whole.trials
    assert again.metric_calls == whole.metric_calls


def test_a_resumed_search_counts_the_failures_of_the_first(tmp_path):
    def fails_on_one(prompt: str) -> str:
        if "number 1" in prompt:
            raise RuntimeError("the service is down")
        return answer_if_told_briefly(prompt)

    first, again = (
        compile_with(fails_on_one, log_dir=tmp_path, max_metric_calls=18).detailed_results
        for _ in range(2)
    )
    assert again.num_failures == first.num_failures > 0


OTHERS = {
    "metric": dict(metric=lambda example, prediction, trace=None: 1.0),
    "failure_score": dict(failure_score=0.5),
    "lm": dict(lm=dspy.LM("test/rule", engine=rule_lm(two_steps)[1], temperature=0.3)),
    "options": dict(sweeps=3),
    "trainset": dict(rows=ROWS[:4]),
}


@pytest.mark.parametrize("name", OTHERS)
def test_the_journal_of_a_search_that_differs_is_refused(name, tmp_path):
    metric = {"metric": lambda example, prediction, trace=None: 0.25}
    compile_with(**metric, log_dir=tmp_path, max_metric_calls=12)
    with pytest.raises(ValueError, match="another search"):
        compile_with(**{**metric, **OTHERS[name]}, log_dir=tmp_path, max_metric_calls=12)


def test_the_journal_of_another_adapter_is_refused(tmp_path):
    lm, _ = rule_lm(answer_if_told_briefly)
    options = {"guidance": None, "display_progress": False, "log_dir": tmp_path}
    for adapter in (TemplateAdapter(), dspy.JSONAdapter()):
        optimizer = DiffusionInfill(None, WordDenoiser(), max_metric_calls=12, **options)
        with dspy.context(lm=lm, adapter=adapter):
            if isinstance(adapter, TemplateAdapter):
                optimizer.compile(program(), ROWS)
            else:
                with pytest.raises(ValueError, match=r"another search \(other adapter\)"):
                    optimizer.compile(program(), ROWS)


def test_line_breaks_of_other_alphabets_and_torn_characters_do_not_break_a_journal(tmp_path):
    denoiser = WordDenoiser(words=("näher\u2028heran", "größer\x85als", "schön"))
    options = {"denoiser": denoiser, "log_dir": tmp_path, "max_metric_calls": 24}
    whole = compile_with(**options).detailed_results
    journal = tmp_path / "journal.jsonl"
    assert compile_with(**options).detailed_results.trials == whole.trials
    torn = journal.read_bytes()[: journal.read_bytes().rindex("ö".encode()) + 1]
    journal.write_bytes(torn)
    assert compile_with(**options).detailed_results.trials == whole.trials
    assert all(json.loads(line) for line in journal.read_bytes().split(b"\n") if line)


def test_a_budget_that_does_not_cover_the_traced_runs_is_refused_before_any_call():
    lm, engine = rule_lm(two_steps)
    with dspy.context(lm=lm, adapter=TemplateAdapter()):
        optimizer = DiffusionInfill(ends_with_colour, WordDenoiser(), max_metric_calls=9)
        with pytest.raises(ValueError, match="does not cover the first evaluations: 10 program"):
            optimizer.compile(Steps(), ROWS, valset=ROWS[:4])
    assert engine.prompts == []


def test_a_valset_equal_to_the_trainset_is_run_once_for_scores_and_traces():
    lm, engine = rule_lm(two_steps)
    with dspy.context(lm=lm, adapter=TemplateAdapter()):
        optimizer = DiffusionInfill(
            ends_with_colour, WordDenoiser(), guidance=None, max_metric_calls=6, num_threads=1
        )
        optimizer.compile(Steps(), ROWS, valset=list(ROWS))
    assert len(engine.prompts) == 2 * len(ROWS)


def test_answers_that_cannot_be_read_are_failures_but_no_errors():
    signature = dspy.Signature("text -> colour: int", TASK)
    results = compile_with(
        lambda prompt: "no number", student=dspy.Predict(signature), max_errors=0
    ).detailed_results
    assert results.num_failures == results.metric_calls
    assert results.score_after == 0.0


def test_a_metric_that_returns_nan_is_a_failure():
    metric = lambda example, prediction, trace=None: float("nan")  # noqa: E731
    results = compile_with(metric=metric, max_errors=100, max_metric_calls=12).detailed_results
    assert results.num_failures == results.metric_calls
    assert results.counts.accepted == 0


def test_a_named_denoiser_is_loaded_once_for_estimate_and_compile(monkeypatch):
    loaded = []
    where = "dspy_diffusion_infill.optimizer.diffusion_infill.load_denoiser"
    monkeypatch.setattr(where, lambda name: loaded.append(name) or WordDenoiser())
    lm, _ = rule_lm(answer_if_told_briefly)
    with dspy.context(lm=lm, adapter=TemplateAdapter()):
        optimizer = DiffusionInfill(None, "some/model", guidance=None, max_metric_calls=6)
        optimizer.estimate(program(), ROWS)
        optimizer.compile(program(), ROWS)
    assert loaded == ["some/model"]
    assert not any(re.match("_", name) for name in optimizer.get_params())
