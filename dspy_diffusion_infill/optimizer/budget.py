"""Caps on what a ``compile`` may spend, and the account that keeps to them.

Nobody knows what a run will take before it has ended. So each run is reserved for: with as much as
a run may take by the plan (``RunBound``), or as the largest run so far took where that is more. A
run begins only if what was spent, what the runs under way may take and what it may take itself stay
within every cap. So no cap on tokens or cost is passed as long as no run takes more than that
bound; runs that do can pass it, each by its own excess alone.

Time cannot be bounded by a plan. Nothing is begun at or after the deadline, nor where the longest
one of its kind so far (a run, a batch of the denoiser, a batch of guidance) would not end before
it. So ``max_seconds`` is passed only by what takes longer than all of its kind before it.
"""

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

from dspy_diffusion_infill.optimizer.prices import PriceList
from dspy_diffusion_infill.usage import Usage, num_tokens

Cap = Literal["max_metric_calls", "max_lm_tokens", "max_cost", "max_seconds"]

_RUN = "run"  # the kind of what a reservation is for, beside the kinds of batches


@dataclass(frozen=True, slots=True, kw_only=True)
class Caps:
    """What a ``compile`` may spend; None is no cap.

    Attributes:
        max_metric_calls: program runs.
        max_lm_tokens: prompt and completion tokens of all LM calls.
        max_cost: USD.
        max_seconds: wall time.
    """

    max_metric_calls: int | None = None
    max_lm_tokens: int | None = None
    max_cost: float | None = None
    max_seconds: float | None = None

    def without(self, runs: int, bound: "RunBound") -> "Caps":
        """What is left of the caps where so many runs are kept back, each at its bound."""
        tokens, cost = runs * bound.tokens, runs * bound.cost
        return self.less(Spent(metric_calls=runs, lm_tokens=tokens, lm_cost=cost))

    def less(self, spent: "Spent") -> "Caps":
        """What is left of the caps, at least 0."""
        taken = {
            "max_metric_calls": spent.metric_calls,
            "max_lm_tokens": spent.lm_tokens,
            "max_cost": spent.lm_cost or 0.0,
            "max_seconds": spent.seconds,
        }
        caps = {name: getattr(self, name) for name in taken}
        left = {name: max(0, cap - taken[name]) for name, cap in caps.items() if cap is not None}
        return replace(self, **left)


@dataclass(frozen=True, slots=True)
class RunBound:
    """The most that one run takes: tokens, and USD (0 where a price is unknown)."""

    tokens: int = 0
    cost: float = 0.0


@dataclass(frozen=True, slots=True)
class Reservation:
    """A run under way, and when it began by the budget's clock."""

    started: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What a search has taken at some moment.

    Attributes:
        metric_calls: program runs, those of a journal included.
        lm_tokens: prompt and completion tokens, those of a journal included.
        lm_cost: USD; None where a price is unknown.
        seconds: wall time of this process since ``compile`` was called.
    """

    metric_calls: int = 0
    lm_tokens: int = 0
    lm_cost: float | None = None
    seconds: float = 0.0


class BudgetSpentError(Exception):
    """What comes next would pass a cap; the search ends here, with what it has found."""


class Budget:
    """What was spent, and whether there is room for more. Several threads may use it.

    Attributes:
        caps: never passed, as the module says.
        prices: by which tokens cost.
        clock: seconds, from anywhere.
        metric_calls: program runs, those of a journal included.
        lm_tokens: of all LM calls, those of a journal included.
        unpriced: models that took tokens and have no price.
        end_reason: the cap that was the first to refuse something; None while there is room.
    """

    def __init__(
        self,
        caps: Caps | None = None,
        *,
        prices: PriceList | None = None,
        bound: RunBound | None = None,
        clock: Callable[[], float] = time.monotonic,
        started: float | None = None,
    ) -> None:
        """An account on which nothing stands yet.

        Args:
            caps: None is none.
            prices: None is litellm's list alone.
            bound: the most that a run is expected to take.
            clock: seconds, from anywhere.
            started: when the time that ``max_seconds`` caps began, by the clock; None is now.
        """
        self.caps, self.prices, self.clock = caps or Caps(), prices or PriceList(), clock
        self.metric_calls = self.lm_tokens = 0
        self.unpriced: set[str] = set()
        self.end_reason: Cap | None = None
        self._cost = 0.0
        self._bound = bound or RunBound()
        self._started = clock() if started is None else started
        self._num_open = 0
        self._longest: dict[str, float] = {}
        self._changed = threading.Condition()

    @property
    def lm_cost(self) -> float | None:
        """USD; None where a model that took tokens has no price."""
        return None if self.unpriced else self._cost

    @property
    def seconds(self) -> float:
        """Since the start."""
        return self.clock() - self._started

    @property
    def spent(self) -> Spent:
        """All of it, as it is now."""
        return Spent(
            metric_calls=self.metric_calls,
            lm_tokens=self.lm_tokens,
            lm_cost=self.lm_cost,
            seconds=self.seconds,
        )

    def time_for(self, seconds: float) -> bool:
        """Whether what takes so long would end before the deadline."""
        limit, now = self.caps.max_seconds, self.seconds
        return limit is None or (now < limit and now + seconds <= limit)

    def reserve(self) -> Reservation | None:
        """Room for one run; None where there is none, and nothing will make it.

        Near a cap it waits: runs under way may take less than was reserved for them.
        """
        with self._changed:
            while cap := self._refuses_run():
                if self._num_open == 0 or self._refuses_run(num_open=0) is not None:
                    self._end(cap)
                    self._changed.notify_all()
                    return None
                self._changed.wait()
            self._num_open += 1
            self.metric_calls += 1
            return Reservation(self.clock())

    def settle(self, reservation: Reservation | None, usage: Usage) -> None:
        """A run has ended; without a reservation only what it took is counted."""
        with self._changed:
            if reservation is not None:
                self._num_open -= 1
                self._note(_RUN, self.clock() - reservation.started)
            self._spend(usage)
            self._changed.notify_all()

    def replay(self, usage: Usage) -> None:
        """Counts a run that an earlier process paid for."""
        with self._changed:
            self.metric_calls += 1
            self._spend(usage)

    def reopen(self, caps: Caps) -> None:
        """Goes on under these caps, after others have ended what came before."""
        with self._changed:
            self.caps, self.end_reason = caps, None

    def room_for_calls(self, number: int) -> bool:
        """Whether ``max_metric_calls`` allows that many more, whatever the other caps say."""
        return not _passes(self.metric_calls + number, self.caps.max_metric_calls)

    def check_room(self, num_runs: int) -> None:
        """Before an evaluation: it is not begun where its last runs would likely be refused.

        Likely, because that goes by the mean of the runs so far; each run is reserved for anyhow.

        Raises:
            BudgetSpentError: there is no room.
        """
        with self._changed:
            if (cap := self.end_reason or self._refuses_runs(num_runs)) is None:
                return
            self._end(cap)
        raise BudgetSpentError(self.in_words())

    @contextmanager
    def batch(self, kind: str) -> Iterator[None]:
        """A batch that takes time and no LM call.

        Raises:
            BudgetSpentError: before it, if the longest of its kind so far would end too late.
        """
        if not self.time_for(self._longest.get(kind, 0.0)):
            self._end("max_seconds")
            raise BudgetSpentError(self.in_words())
        started = self.clock()
        yield
        self._note(kind, self.clock() - started)

    def in_words(self) -> str:
        """What was spent of the cap that ended it."""
        caps = self.caps
        if self.end_reason == "max_metric_calls":
            return f"{self.metric_calls} of {caps.max_metric_calls} metric calls are spent"
        if self.end_reason == "max_lm_tokens":
            return f"{self.lm_tokens} of max_lm_tokens={caps.max_lm_tokens} are spent"
        if self.end_reason == "max_seconds":
            return f"{self.seconds:.1f} of max_seconds={caps.max_seconds} are over"
        if self.unpriced:
            return (
                f"max_cost={caps.max_cost} cannot be kept: {sorted(self.unpriced)} took tokens, "
                "and litellm knows no price; pass prices={model: (USD a million prompt tokens, "
                "USD a million completion tokens)}"
            )
        return f"{self._cost:.4f} of max_cost={caps.max_cost} USD are spent"

    def _refuses_run(self, num_open: int | None = None) -> Cap | None:
        """The cap that has no room for one run beside those under way."""
        caps, at_once = self.caps, 1 + (self._num_open if num_open is None else num_open)
        if self.end_reason is not None:
            return self.end_reason
        if _passes(self.metric_calls + 1, caps.max_metric_calls):
            return "max_metric_calls"
        if _passes(self.lm_tokens + at_once * self._bound.tokens, caps.max_lm_tokens):
            return "max_lm_tokens"
        if caps.max_cost is not None and (
            self.unpriced or _passes(self._cost + at_once * self._bound.cost, caps.max_cost)
        ):
            return "max_cost"
        return None if self.time_for(self._longest.get(_RUN, 0.0)) else "max_seconds"

    def _refuses_runs(self, number: int) -> Cap | None:
        """The cap that so many average runs would pass, or that refuses even one."""
        if not self.room_for_calls(number):
            return "max_metric_calls"
        share = number / max(1, self.metric_calls)
        if _passes(self.lm_tokens * (1 + share), self.caps.max_lm_tokens):
            return "max_lm_tokens"
        if _passes(self._cost * (1 + share), self.caps.max_cost):
            return "max_cost"
        return self._refuses_run()

    def _spend(self, usage: Usage) -> None:
        """Counts what one run took, which bounds those that come."""
        tokens, largest = num_tokens(usage), self._bound
        spent = self.prices.cost(usage) or 0.0
        self._bound = RunBound(max(largest.tokens, tokens), max(largest.cost, spent))
        self.lm_tokens += tokens
        for one in usage:
            cost = self.prices.cost((one,))
            self._cost += cost or 0.0
            if cost is None and one.tokens:
                self.unpriced.add(one.model)

    def _note(self, kind: str, seconds: float) -> None:
        self._longest[kind] = max(self._longest.get(kind, 0.0), seconds)

    def _end(self, cap: Cap) -> None:
        self.end_reason = self.end_reason or cap


def _passes(amount: float, cap: float | None) -> bool:
    return amount > (math.inf if cap is None else cap)
