"""Caps in a whole search: never passed, kept over a resumption, covered by the estimate."""

import random
import re
import threading
import zlib
from functools import partial

import dspy
import pytest
from doubles import RuleEngine, WordCountScorer, WordDenoiser, rule_lm
from dspy.lm15 import Message, Response, TextPart, Usage
from hypothesis import given, settings
from hypothesis import strategies as st
from test_budget import MODEL, PRICES, ROUNDING, FakeClock
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

from dspy_diffusion_infill.optimizer import diffusion_infill
from dspy_diffusion_infill.optimizer.budget import Budget
from dspy_diffusion_infill.optimizer.diffusion_infill import DiffusionInfill
from dspy_diffusion_infill.optimizer.trace_json import TraceJson
from dspy_diffusion_infill.template_adapter import TemplateAdapter

MOST = 40  # tokens of an answer


class Meter(RuleEngine):
    """Answers by a rule; each answer takes a number of tokens that is fixed by its prompt."""

    def __init__(self, rule, salt: int = 0):
        super().__init__(rule)
        self.salt, self.taken, self.lock = salt, [], threading.Lock()

    def complete(self, request) -> Response:
        answer = super().complete(request)
        rng = random.Random(zlib.crc32(self.prompts[-1].encode()) + self.salt)
        with self.lock:
            self.taken.append((rng.randrange(1, 60), rng.randrange(1, MOST)))
            prompt, completion = self.taken[-1]
        return Response(
            id=None,
            model="rule",
            message=Message.assistant([TextPart(answer.text)]),
            finish_reason="stop",
            usage=Usage(
                input_tokens=prompt, output_tokens=completion, total_tokens=prompt + completion
            ),
        )

    @property
    def tokens(self) -> int:
        return sum(map(sum, self.taken))

    @property
    def cost(self) -> float:
        return sum(2e-6 * prompt + 10e-6 * completion for prompt, completion in self.taken)


def metered(rule=answer_if_told_briefly, *, cache=False, **options) -> tuple[dspy.LM, Meter]:
    engine = Meter(rule, **options)
    lm = dspy.LM(MODEL, engine=engine, cache=cache, num_retries=0, max_tokens=MOST)
    return lm, engine


# A whole search


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10**6), st.integers(600, 6000), st.integers(1, 5))
def test_a_search_never_passes_its_cap_on_tokens(salt, cap, num_threads):
    lm, engine = metered(salt=salt)
    options = {"num_threads": num_threads, "sweeps": 3, "max_lm_tokens": cap}
    try:
        results = compile_with(lm=lm, **options).detailed_results
    except ValueError as error:
        assert "does not cover the first evaluations" in str(error) and not engine.taken
        return
    assert results.lm_tokens == engine.tokens <= cap
    assert results.metric_calls == len(engine.taken)
    assert results.end_reason in ("max_lm_tokens", "all windows tried")


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.004, 0.03), st.integers(1, 5))
def test_a_search_never_passes_its_cap_on_cost(salt, cap, num_threads):
    lm, engine = metered(salt=salt)
    options = {"num_threads": num_threads, "sweeps": 3, "max_cost": cap, "prices": PRICES}
    results = compile_with(lm=lm, **options).detailed_results
    assert results.lm_cost == pytest.approx(engine.cost)
    assert engine.cost <= cap + ROUNDING
    assert results.end_reason in ("max_cost", "all windows tried")


@settings(max_examples=10, deadline=None)
@given(st.floats(1, 40))
def test_a_search_never_passes_its_deadline(limit):
    clock = FakeClock()

    def answer(prompt: str) -> str:
        clock.now += 0.1
        return answer_if_told_briefly(prompt)

    class Slow(WordDenoiser):
        def infill(self, requests, sampling):
            clock.now += 0.5
            return super().infill(requests, sampling)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diffusion_infill, "budget_of", with_clock(clock))
        better = compile_with(answer, denoiser=Slow(), sweeps=4, max_seconds=limit)
    results = better.detailed_results
    # Nothing but the first batch of the denoiser takes longer than all of its kind before it.
    assert results.seconds == pytest.approx(clock.now)
    assert clock.now <= limit + (0.5 if results.denoiser_passes <= 8 else 0) + 1e-9
    assert results.end_reason in ("max_seconds", "all windows tried")


def with_clock(clock):
    def budget_of(plan, *, started):
        return Budget(plan.scoring.caps, clock=clock)

    return budget_of


def test_a_cap_in_the_first_evaluation_gives_the_student_back(caplog, monkeypatch):
    clock = FakeClock()
    monkeypatch.setattr(diffusion_infill, "budget_of", with_clock(clock))

    def answer(prompt: str) -> str:
        clock.now += 1
        return "red"

    better = compile_with(answer, max_seconds=3)
    assert better.signature.instructions == TASK
    assert better.detailed_results.end_reason == "max_seconds"
    assert better.detailed_results.metric_calls == 3
    assert better.candidate_programs == []
    assert "nothing was tried" in caplog.text


def test_guidance_too_ends_at_the_deadline(monkeypatch):
    clock = FakeClock()
    monkeypatch.setattr(diffusion_infill, "budget_of", with_clock(clock))

    class Slow(WordCountScorer):
        def log_likelihoods(self, pairs):
            clock.now += 10
            return super().log_likelihoods(pairs)

    results = compile_with(guidance=Slow(), max_seconds=35, sweeps=4).detailed_results
    assert results.end_reason == "max_seconds" and clock.now == 30


def test_a_discarded_trial_stays_counted_and_the_best_program_is_returned():
    class Dearer(Meter):  # with every run, so that one is refused inside of a trial
        def complete(self, request):
            answer = super().complete(request)
            extra = 2 * len(self.prompts)
            self.taken[-1] = (extra, 0)
            return Response(
                id=None,
                model="rule",
                message=answer.message,
                finish_reason="stop",
                usage=Usage(input_tokens=extra, output_tokens=0, total_tokens=extra),
            )

    engine = Dearer(answer_if_told_briefly)
    lm = dspy.LM(MODEL, engine=engine, cache=False, num_retries=0, max_tokens=MOST)
    results = compile_with(lm=lm, sweeps=4, max_lm_tokens=800).detailed_results
    assert results.end_reason == "max_lm_tokens"
    scored = sum(len(trial.scores) for trial in results.trials) + len(ROWS)
    assert scored < results.metric_calls == len(engine.taken)
    assert results.lm_tokens == engine.tokens <= 800


def test_the_lm_of_a_metric_counts_too():
    judge, engine = rule_lm(lambda prompt: "1")
    asked = dspy.Predict("colour -> points: int")
    asked.set_lm(judge)

    def metric(example, prediction, trace=None):
        return asked(colour=prediction.colour).points

    lm, answering = metered()
    results = compile_with(lm=lm, metric=metric, max_metric_calls=12).detailed_results
    assert results.lm_tokens == answering.tokens + 2 * len(engine.prompts)


def test_answers_from_the_cache_take_nothing():
    lm, engine = metered(lambda prompt: "red and cached", cache=True)
    options = {"lm": lm, "sweeps": 1, "num_proposals": 2, "prices": PRICES}
    first, again = (compile_with(**options).detailed_results for _ in range(2))
    assert first.lm_tokens == engine.tokens > 0
    assert (again.lm_tokens, again.lm_cost) == (0, 0.0)
    assert again.trials == first.trials


ENDS = {
    "all windows tried": {"sweeps": 1, "num_proposals": 1},
    "max_metric_calls": {"max_metric_calls": 12},
    "max_lm_tokens": {"max_lm_tokens": 1500},
    "max_cost": {"max_cost": 0.006, "prices": PRICES},
    "no run succeeded": {"metric": lambda example, prediction, trace=None: 1 / 0},
}


@pytest.mark.parametrize("reason", ENDS)
def test_the_reason_for_the_end_stands_in_the_result(reason):
    lm, _ = metered()
    results = compile_with(lm=lm, **{"sweeps": 3, **ENDS[reason]}).detailed_results
    assert results.end_reason == reason


def test_a_search_that_was_cut_off_says_so():
    def dies(prompt: str) -> str:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        compile_with(dies)
    assert caught.value.detailed_results.end_reason == "interrupted"


def test_caps_that_are_not_reached_change_nothing():
    free = compile_with(seed=4, sweeps=2).detailed_results
    caps = {"max_lm_tokens": 10**9, "max_cost": 1e6, "prices": PRICES, "max_seconds": 1e6}
    capped = compile_with(seed=4, sweeps=2, **caps).detailed_results
    assert capped.trials == free.trials and capped.counts == free.counts


# Resumed


def test_a_resumed_search_keeps_its_cap_over_both_processes(tmp_path):
    cap, seen = 5000, []

    def crashes(prompt: str) -> str:
        if len(seen) == 40:
            raise KeyboardInterrupt
        seen.append(prompt)
        return answer_if_told_briefly(prompt)

    options = {"sweeps": 4, "seed": 3, "log_dir": tmp_path, "max_lm_tokens": cap}
    lm, first = metered(crashes)
    with pytest.raises(KeyboardInterrupt):
        compile_with(lm=lm, **options)
    lm, second = metered()
    results = compile_with(lm=lm, **options).detailed_results
    assert results.end_reason == "max_lm_tokens"
    assert results.lm_tokens == first.tokens + second.tokens <= cap
    lm, third = metered()
    again = compile_with(lm=lm, **options).detailed_results
    assert again.trials == results.trials
    assert again.lm_tokens == results.lm_tokens + third.tokens <= cap


def test_traced_runs_that_are_made_anew_count_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(TraceJson, "written", lambda *_: None)
    options = {"student": Steps(), "metric": ends_with_colour, "log_dir": tmp_path, "sweeps": 1}
    totals = []
    for _ in range(3):
        lm, engine = metered(two_steps)
        results = compile_with(lm=lm, max_metric_calls=6, **options).detailed_results
        totals.append((results.lm_tokens, engine.tokens))
    (one, new), *_ = totals
    assert [total for total, _ in totals] == [one, 2 * one, 3 * one] and new == one


# What is refused, and what is estimated


def test_a_first_evaluation_that_may_pass_a_cap_is_refused_before_any_call():
    lm, engine = metered()
    for cap in ({"max_lm_tokens": 100}, {"max_cost": 1e-4, "prices": PRICES}):
        with pytest.raises(ValueError, match="does not cover the first evaluations: 6 program"):
            compile_with(lm=lm, **cap)
    assert engine.taken == []


def test_a_cap_on_cost_needs_every_price_before_any_call():
    lm, engine = metered()
    with pytest.raises(ValueError, match=re.escape("price of 'test/rule'") + ".*pass prices="):
        compile_with(lm=lm, max_cost=1.0)
    assert engine.taken == []


@pytest.mark.parametrize(("auto", "runs"), [("light", 20), ("medium", 50), ("heavy", 120)])
def test_auto_is_a_budget_by_the_size_of_the_valset(auto, runs):
    optimizer = DiffusionInfill(None, WordDenoiser(), guidance=None, auto=auto)
    with dspy.context(lm=metered()[0], adapter=TemplateAdapter()):
        cost = optimizer.estimate(program(), ROWS, valset=ROWS[:4])
    assert cost.metric_calls == 4 * runs


def test_an_estimate_covers_the_caps():
    make = partial(DiffusionInfill, None, WordDenoiser(), guidance=None)
    with dspy.context(lm=metered()[0], adapter=TemplateAdapter()):
        unpriced = make().estimate(program(), ROWS)
        free = make(prices=PRICES).estimate(program(), ROWS)
        caps = {"max_lm_tokens": 2000, "max_cost": 0.01, "max_seconds": 9}
        capped = make(prices=PRICES, **caps).estimate(program(), ROWS)
    assert unpriced.cost is None and unpriced.seconds is None
    assert "USD" not in str(unpriced)
    assert free.cost > 0.01 and f"at most {free.cost:.2f} USD" in str(free)
    assert (capped.cost, capped.seconds, capped.lm_tokens) == (0.01, 9, 2000)
    assert str(capped).endswith("at most 0.01 USD, at most 9 s")
