"""Caps on what a search may spend: the account, prices, and what is refused."""

import re
import threading
import time
from dataclasses import dataclass

import pytest
from doubles import rule_lm
from hypothesis import given, settings
from hypothesis import strategies as st
from test_diffusion_infill import ROWS, program

from dspy_diffusion_infill.optimizer.budget import (
    Budget,
    BudgetSpentError,
    Caps,
    RunBound,
)
from dspy_diffusion_infill.optimizer.diffusion_infill import DiffusionInfill
from dspy_diffusion_infill.optimizer.options import Scoring
from dspy_diffusion_infill.optimizer.prices import PriceList, price_list
from dspy_diffusion_infill.optimizer.validation import Validator
from dspy_diffusion_infill.usage import ModelUsage

MODEL = "test/rule"
PRICES = {MODEL: (2.0, 10.0)}  # USD a million tokens
ROUNDING = 1e-12


def usage(prompt: int, completion: int = 0, model: str = MODEL) -> tuple[ModelUsage, ...]:
    return (ModelUsage(model, prompt, completion),)


@dataclass
class FakeClock:
    """Goes on when it is told to."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


# The account: never passed


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 20)), min_size=1, max_size=40),
    st.integers(50, 900),
    st.floats(1e-4, 5e-3),
    st.integers(1, 6),
)
def test_no_cap_is_passed_by_runs_within_the_bound_whatever_the_threads(
    sizes, max_tokens, max_cost, num_threads
):
    budget = Budget(
        Caps(max_lm_tokens=max_tokens, max_cost=max_cost, max_metric_calls=25),
        prices=PriceList(PRICES),
        bound=RunBound(50, 30 * 2e-6 + 20 * 10e-6),
    )
    left, lock, done = list(sizes), threading.Lock(), []

    def work():
        while True:
            with lock:
                if not left:
                    return
                size = left.pop()
            if (reservation := budget.reserve()) is None:
                return
            time.sleep(0)
            budget.settle(reservation, usage(*size))
            with lock:
                done.append(size)

    threads = [threading.Thread(target=work) for _ in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert budget.lm_tokens == sum(map(sum, done)) <= max_tokens
    assert budget.lm_cost is not None and budget.lm_cost <= max_cost + ROUNDING
    assert budget.metric_calls == len(done) <= 25
    if len(done) < len(sizes):  # something was refused, and only for want of room
        assert budget.end_reason in ("max_lm_tokens", "max_cost", "max_metric_calls")


@given(st.lists(st.integers(0, 300), min_size=1, max_size=30), st.integers(1, 900))
def test_a_run_over_the_bound_passes_the_cap_by_its_own_excess_only(sizes, cap):
    prices, most = PriceList(PRICES), 50
    budget = Budget(Caps(max_lm_tokens=cap), prices=prices, bound=RunBound(50))
    for size in sizes:
        if (reservation := budget.reserve()) is None:
            break
        budget.settle(reservation, usage(size))
        assert budget.lm_tokens <= cap + max(0, size - most)
        most = max(most, size)


@given(
    st.lists(st.tuples(st.sampled_from(["run", "batch"]), st.floats(0.01, 5)), min_size=1),
    st.floats(0.5, 60),
)
def test_the_deadline_is_passed_only_by_what_takes_longer_than_all_of_its_kind(steps, limit):
    clock = FakeClock()
    budget = Budget(Caps(max_seconds=limit), clock=clock)
    longest = {"run": 0.0, "batch": 0.0}
    for kind, seconds in steps:
        try:
            if kind == "run":
                if (reservation := budget.reserve()) is None:
                    break
                clock.now += seconds
                budget.settle(reservation, ())
            else:
                with budget.batch("proposals"):
                    clock.now += seconds
        except BudgetSpentError:
            break
        assert budget.seconds <= limit + max(0.0, seconds - longest[kind]) + 1e-9
        longest[kind] = max(longest[kind], seconds)
    else:
        return
    assert budget.end_reason == "max_seconds"


@given(st.floats(0.1, 5), st.floats(5, 60), st.lists(st.floats(0.01, 1), max_size=40))
def test_the_deadline_is_never_passed_where_the_first_run_is_the_longest(first, limit, shares):
    clock = FakeClock()
    budget = Budget(Caps(max_seconds=limit), clock=clock)
    for share in [1.0, *shares]:
        if (reservation := budget.reserve()) is None:
            break
        clock.now += first * share
        budget.settle(reservation, ())
        assert budget.seconds <= limit + 1e-9


def test_near_a_cap_a_run_waits_for_those_under_way():
    caps = Caps(max_lm_tokens=150)
    budget = Budget(caps, prices=PriceList(PRICES), bound=RunBound(100))
    first, got = budget.reserve(), []
    waiting = threading.Thread(target=lambda: got.append(budget.reserve()))
    waiting.start()
    waiting.join(0.1)
    assert waiting.is_alive() and budget.end_reason is None
    budget.settle(first, usage(50))
    waiting.join(20)
    assert got[0] is not None
    budget.settle(got[0], usage(51))
    assert budget.reserve() is None and budget.end_reason == "max_lm_tokens"
    assert budget.in_words() == "101 of max_lm_tokens=150 are spent"


def test_an_evaluation_is_not_begun_that_would_likely_be_cut_off():
    caps = Caps(max_lm_tokens=100)
    budget = Budget(caps, prices=PriceList(PRICES), bound=RunBound(20))
    for _ in range(4):
        budget.settle(budget.reserve(), usage(10))
    budget.check_room(6)
    with pytest.raises(BudgetSpentError, match="40 of max_lm_tokens=100"):
        budget.check_room(7)


def test_tokens_without_a_price_end_a_search_with_a_cap_on_cost():
    budget = Budget(Caps(max_cost=1.0), prices=price_list(PRICES, [rule_lm(str)[0]]))
    budget.settle(budget.reserve(), usage(10))
    assert budget.lm_cost == pytest.approx(2e-5)
    budget.settle(budget.reserve(), usage(10, model="no/such-model"))
    assert budget.lm_cost is None and budget.reserve() is None
    assert budget.end_reason == "max_cost" and "pass prices=" in budget.in_words()


# Prices


def test_the_users_price_goes_before_the_list_and_our_own_lms_are_free():
    pytest.importorskip("litellm")
    listed = PriceList().price("openai/gpt-4o-mini")
    assert listed == pytest.approx((0.15, 0.6))
    assert PriceList({"openai/gpt-4o-mini": (1, 2)}).price("openai/gpt-4o-mini") == (1, 2)
    assert PriceList().price("embedded/abc/chatml") == PriceList().price("diffusion/x") == (0, 0)
    assert PriceList().price("no/such-model") is None
    assert PriceList(PRICES).cost(usage(10**6, 10**5)) == pytest.approx(3.0)
    assert PriceList(PRICES).cost(usage(1) + usage(1, model="no/such-model")) is None


# What is refused

BAD = {
    "tokens 0": ({"max_lm_tokens": 0}, ValueError, "max_lm_tokens must be at least 1"),
    "half a token": ({"max_lm_tokens": 1.5}, TypeError, "max_lm_tokens must be a whole number"),
    "tokens True": ({"max_lm_tokens": True}, TypeError, "max_lm_tokens=True"),
    "cost 0": ({"max_cost": 0}, ValueError, "max_cost must be a number of USD above 0"),
    "cost below 0": ({"max_cost": -1}, ValueError, "max_cost=-1"),
    "cost NaN": ({"max_cost": float("nan")}, ValueError, "max_cost=nan"),
    "cost True": ({"max_cost": True}, TypeError, "max_cost=True"),
    "cost as text": ({"max_cost": "5"}, TypeError, "max_cost='5'"),
    "seconds 0": ({"max_seconds": 0}, ValueError, "a number of seconds above 0, or None"),
    "seconds without end": ({"max_seconds": float("inf")}, ValueError, "max_seconds=inf"),
    "auto": ({"auto": "lite"}, ValueError, "auto must be one of 'light', 'medium', 'heavy'"),
    "auto True": ({"auto": True}, ValueError, "auto=True"),
    "auto and a number": (
        {"auto": "light", "max_metric_calls": 9},
        ValueError,
        "leave one of them out",
    ),
    "prices as a list": ({"prices": [1]}, TypeError, "prices must be {model:"),
    "one price": ({"prices": {"a": 1.0}}, TypeError, "prices['a']=1.0"),
    "price as text": ({"prices": {"a": ("1", 2)}}, TypeError, "prices['a']=('1', 2)"),
    "price True": ({"prices": {"a": (True, 2)}}, TypeError, "prices['a']=(True, 2)"),
    "price below 0": ({"prices": {"a": (1, -2)}}, ValueError, "a price must be at least 0"),
    "price NaN": ({"prices": {"a": (1, float("nan"))}}, ValueError, "a price must be at least 0"),
}


@pytest.mark.parametrize("name", BAD)
def test_caps_that_make_no_sense_are_refused(name):
    options, kind, message = BAD[name]
    with pytest.raises(kind, match=re.escape(message)):
        DiffusionInfill(**options)


def test_a_validator_makes_its_own_budget_of_the_caps():
    validator = Validator(Scoring(metric=lambda e, p: 1.0, caps=Caps(max_seconds=1e-9)))
    with pytest.raises(BudgetSpentError, match="max_seconds=1e-09 are over"):
        validator.evaluate(program(), ROWS)
