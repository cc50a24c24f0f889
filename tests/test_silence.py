"""An LM that is gone ends a search, whatever the number of threads; one that answers does not."""

import random
import threading

import dspy
import pytest
from doubles import rule_lm
from dspy.utils.exceptions import (
    ContextWindowExceededError,
    LMRateLimitError,
    LMServerError,
    LMTransportError,
)
from test_budget import FakeClock
from test_diffusion_infill import answer_if_told_briefly, compile_with

from dspy_diffusion_infill.errors import TooManyErrors
from dspy_diffusion_infill.optimizer.budget import Budget
from dspy_diffusion_infill.optimizer.options import Scoring
from dspy_diffusion_infill.optimizer.silence import Silence
from dspy_diffusion_infill.optimizer.validation import Validator
from dspy_diffusion_infill.outcomes import Failure, Outcome
from dspy_diffusion_infill.runs import TooManyFailuresError
from dspy_diffusion_infill.time_limits import OutOfTimeError
from dspy_diffusion_infill.usage import ModelUsage

GONE = Outcome(None, failure=Failure.of(LMServerError("gone")))
RETRIES = 7.0  # seconds until DSPy gives a call up


def last_run(outcomes, seconds: float) -> int | None:
    """The number of the run, from 1, with which a search ends; each takes so long."""
    clock = FakeClock()
    silence = Silence(clock)
    for number, outcome in enumerate(outcomes, start=1):
        clock.now += seconds
        if silence.reason_to_end(outcome):
            return number
    return None


@pytest.mark.parametrize(("seconds", "number"), [(0.25, 101), (RETRIES, 6), (20.0, 6)])
def test_a_silent_lm_ends_the_search_after_25_seconds_and_six_runs(seconds, number):
    assert last_run([GONE] * 1000, seconds) == number


@pytest.mark.parametrize(
    "error", [LMTransportError("refused"), LMServerError("500"), OutOfTimeError("late")]
)
def test_servers_that_refuse_fail_or_hang_are_silent(error):
    assert last_run([Outcome(None, failure=Failure.of(error))] * 9, RETRIES) == 6


@pytest.mark.parametrize(
    "sign",
    [
        Outcome(0.0),
        Outcome(None, failure=Failure.of(RuntimeError("a bug"))),
        Outcome(None, failure=Failure.of(ContextWindowExceededError())),
        Outcome(None, failure=Failure.of(LMRateLimitError("slow down"))),
        Outcome(None, failure=GONE.failure, usage=(ModelUsage("the first step's", 9, 1),)),
    ],
    ids=["answer", "bug", "too long", "429", "half a run"],
)
def test_any_sign_of_life_begins_anew(sign):
    assert last_run(([GONE] * 5 + [sign]) * 20, RETRIES) is None
    assert last_run([GONE] * 5 + [sign] + [GONE] * 9, RETRIES) == 12


class Flaky(dspy.Module):
    """Takes as long as DSPy's retries, and gets an answer at some rate."""

    def __init__(self, clock: FakeClock, rng: random.Random, rate: float) -> None:
        super().__init__()
        self.clock, self.rng, self.rate = clock, rng, rate

    def forward(self, number):
        self.clock.now += RETRIES
        if self.rng.random() >= self.rate:
            raise LMServerError("gone")
        return dspy.Prediction(number=number)


def seconds_of(rate: float, num_times: int) -> float:
    """What a program takes on one thread, on four rows at a time, until the search ends."""
    clock = FakeClock()
    scoring = Scoring(metric=lambda row, prediction: 1.0, num_threads=1, max_errors=1000)
    validator = Validator(scoring, Budget(clock=clock))
    rows = [dspy.Example(number=k).with_inputs("number") for k in range(4)]
    program = Flaky(clock, random.Random(0), rate)
    for _ in range(num_times):
        validator.evaluate(program, rows)
    return clock.now


def test_a_dead_lm_ends_evaluations_of_one_thread_within_a_minute():
    with pytest.raises(TooManyFailuresError, match=r"no LM .* in 6 runs in a row, for 35 s; "):
        seconds_of(0.0, 2)


def test_an_lm_that_fails_once_in_five_runs_is_never_given_up():
    assert seconds_of(0.8, 50) == 200 * RETRIES


def test_a_limit_that_no_run_reaches_changes_nothing():
    free, bounded = (
        compile_with(max_metric_calls=24, num_threads=2, run_timeout=limit).detailed_results
        for limit in (None, 600)
    )
    assert bounded == free and free.lm_tokens == 2 * 24


def test_a_run_that_hangs_ends_the_search_with_its_best_program():
    calls, go_on = [], threading.Event()

    def hangs(prompt: str) -> str:
        calls.append(prompt)
        if len(calls) > 30:
            go_on.wait()
        return answer_if_told_briefly(prompt)

    lm, _ = rule_lm(hangs)
    try:
        with pytest.raises(TooManyErrors, match="OutOfTimeError: no answer within 2 s") as caught:
            compile_with(lm=lm, run_timeout=2, max_errors=0, sweeps=4)
    finally:
        go_on.set()
    results = caught.value.detailed_results
    assert results.score_after > results.score_before
    assert len(calls) == 31
