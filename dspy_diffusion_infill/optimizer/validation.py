"""Scoring programs within a budget."""

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

import dspy
from pydantic import Field, TypeAdapter
from typing_extensions import NotRequired, TypedDict

from dspy_diffusion_infill.accounting import RunRefusedError
from dspy_diffusion_infill.journal import Journal
from dspy_diffusion_infill.optimizer.budget import Budget, BudgetSpentError, Reservation
from dspy_diffusion_infill.optimizer.checks import num_positional
from dspy_diffusion_infill.optimizer.options import Scoring
from dspy_diffusion_infill.runs import Evaluation, TooManyFailuresError, as_float, evaluate
from dspy_diffusion_infill.usage import ModelUsage, Usage, added

__all__ = ["BudgetSpentError", "Validator", "evaluation_from_json", "evaluation_to_json"]

_SPENT = "spent"  # in the journal: what an evaluation took of which no score counts


class _EvaluationJson(TypedDict):
    scores: list[float]
    failures: list[str]
    failed: list[int]
    num_unread: int
    usage: NotRequired[list[Any]]


_EVALUATION = TypeAdapter(_EvaluationJson)
_TOKENS = Annotated[int, Field(ge=0, lt=2**53)]
_USAGE = TypeAdapter(list[tuple[str, _TOKENS, _TOKENS]])


class Validator:
    """Scores programs and keeps the budget.

    Attributes:
        scoring: metric and limits.
        budget: what was spent, and of what there is room for.
        failure_kinds: how often each kind of exception was raised, with its first words.
        lowest: the lowest score that the metric has given, at most 0.
    """

    def __init__(self, scoring: Scoring, budget: Budget | None = None) -> None:
        """Without a budget, one by the caps of ``scoring``."""
        assert scoring.metric is not None, "a plan has a metric"
        self.scoring, self.budget = scoring, budget or Budget(scoring.caps)
        self.failure_kinds: Counter[str] = Counter()
        self.lowest = 0.0
        self._in_a_row = 0
        self._arguments = num_positional(scoring.metric)

    @property
    def metric_calls(self) -> int:
        """Program runs so far."""
        return self.budget.metric_calls

    @property
    def num_failures(self) -> int:
        """Runs that raised, over all evaluations."""
        return self.failure_kinds.total()

    def room_for(self, num_rows: int) -> bool:
        """Whether ``max_metric_calls`` allows that many more, be they of the journal or not."""
        return self.budget.room_for_calls(num_rows)

    def resume(self, journal: Journal) -> None:
        """Counts what evaluations took that were cut off in earlier processes."""
        for key in _spent_keys(journal):
            self.budget.replay(journal.read(key, _usage_from_json) or ())

    def replay(self, evaluation: Evaluation) -> None:
        """Counts an evaluation that was paid for in a run that was cut off."""
        self.budget.replay(evaluation.usage, metric_calls=len(evaluation.scores))
        self._count(evaluation)

    def evaluate_once(
        self,
        program: dspy.Module,
        rows: Sequence[dspy.Example],
        journal: Journal,
        key: str,
        *,
        about: str,
        anew: bool = False,
    ) -> Evaluation:
        """As ``evaluate``, but from the journal, without traces, where it has the key.

        Args:
            program: see above.
            rows: see above.
            journal: has the evaluations that were paid for.
            key: of this one.
            about: what the journal's line says that it is.
            anew: evaluate it whatever the journal has.
        """
        evaluation = journal.read(key, lambda value: evaluation_from_json(value, len(rows)))
        if evaluation is not None:
            if not anew:
                self.replay(evaluation)
                return evaluation
            self.budget.replay(evaluation.usage)  # it was paid for all the same
            _keep_spent(journal, evaluation.usage)
        meter = _Meter(self.budget)
        try:
            evaluation = self._evaluate(program, rows, meter)
        except BaseException:
            _keep_spent(journal, meter.usage)
            raise
        journal.put(key, evaluation_to_json(evaluation), about=about)
        return evaluation

    def evaluate(self, program: dspy.Module, rows: Sequence[dspy.Example]) -> Evaluation:
        """Runs and scores the program on every row.

        Raises:
            BudgetSpentError: a cap was reached; before any call, where that can be told.
            TooManyFailuresError: more than ``max_errors`` rows raised.
        """
        return self._evaluate(program, rows, _Meter(self.budget))

    def check_race(self, whole: Evaluation, last: Evaluation) -> None:
        """Raises where a race has too many failures, each block of which has few enough.

        A race ends early where all rows raise. So the failures of whole blocks are counted over
        races until some row is answered: a dead LM ends the search here too.

        Args:
            whole: all blocks of the race so far.
            last: the last of them.

        Raises:
            TooManyFailuresError: more than ``max_errors`` rows of the race, or of all blocks since
                a row was answered, raised.
        """
        serious = last.num_failures - last.num_unread
        self._in_a_row = self._in_a_row + serious if serious == len(last.scores) else 0
        most = max(self._in_a_row, whole.num_failures - whole.num_unread)
        if most > self._max_errors:
            raise TooManyFailuresError(
                f"{most} examples raised, more than max_errors={self._max_errors}; the last: "
                f"{whole.failures[-1]}",
                whole.failures,
            )

    @property
    def _max_errors(self) -> int:
        limit = self.scoring.max_errors
        return dspy.settings.max_errors if limit is None else limit

    def _evaluate(
        self, program: dspy.Module, rows: Sequence[dspy.Example], meter: "_Meter"
    ) -> Evaluation:
        self.budget.check_room(len(rows))
        try:
            found = evaluate(
                program,
                rows,
                self._score,
                num_threads=self.scoring.num_threads,
                max_errors=self._max_errors,
                failure_score=self.scoring.failure_score or 0.0,
                accountant=meter,
            )
        except RunRefusedError as error:
            raise BudgetSpentError(self.budget.in_words()) from error
        except TooManyFailuresError as error:
            self.failure_kinds.update(error.failures)
            raise
        self._count(found)
        return self._below_all(found)

    def _count(self, evaluation: Evaluation) -> None:
        self.failure_kinds.update(evaluation.failures)
        self.lowest = min(self.lowest, *evaluation.scores)

    def _below_all(self, evaluation: Evaluation) -> Evaluation:
        """Without a ``failure_score`` of the user's, a failure never outranks an answer.

        Under a metric whose best score is 0, a failure that counts 0 would be the best answer.
        """
        if self.scoring.failure_score is not None or not evaluation.failed:
            return evaluation
        scores = list(evaluation.scores)
        for number in evaluation.failed:
            scores[number] = self.lowest
        return replace(evaluation, scores=tuple(scores))

    def _score(self, example: dspy.Example, prediction: Any) -> float:
        metric = self.scoring.metric
        assert metric is not None, "a plan has a metric"
        return as_float(metric(example, prediction, *(None,) * (self._arguments - 2)))


class _Meter:
    """The budget, and what was taken of it by way of this."""

    def __init__(self, budget: Budget) -> None:
        self.usage: Usage = ()
        self._budget, self._lock = budget, threading.Lock()

    def reserve(self) -> Reservation | None:
        return self._budget.reserve()

    def settle(self, reservation: Reservation | None, usage: Usage) -> None:
        self._budget.settle(reservation, usage)
        with self._lock:
            self.usage = added(self.usage, usage)


def _spent_keys(journal: Journal) -> list[str]:
    """The keys under which cut-off evaluations stand: numbered from 0."""
    keys: list[str] = []
    while journal.get(key := f"{_SPENT} {len(keys)}") is not None:
        keys.append(key)
    return keys


def _keep_spent(journal: Journal, usage: Usage) -> None:
    if usage:
        new = f"{_SPENT} {len(_spent_keys(journal))}"
        journal.put(new, _usage_to_json(usage), about=_SPENT)


def _usage_to_json(usage: Usage) -> list[Any]:
    return [[one.model, one.prompt_tokens, one.completion_tokens] for one in usage]


def _usage_from_json(value: Any) -> Usage:
    return tuple(ModelUsage(*one) for one in _USAGE.validate_python(value))


def evaluation_to_json(evaluation: Evaluation) -> dict[str, Any]:
    """The scores, the failures and what the LMs took; traces are not written."""
    return {
        "scores": list(evaluation.scores),
        "failures": list(evaluation.failures),
        "failed": list(evaluation.failed),
        "num_unread": evaluation.num_unread,
        "usage": _usage_to_json(evaluation.usage),
    }


def evaluation_from_json(value: Any, num_rows: int) -> Evaluation:
    """An evaluation of so many rows, without traces.

    Raises:
        ValueError: it is none.
    """
    found = _EVALUATION.validate_python(value)
    if len(found["scores"]) != num_rows or not set(found["failed"]) <= set(range(num_rows)):
        raise ValueError(f"it must be of {num_rows} rows")
    return Evaluation(
        scores=tuple(found["scores"]),
        traces=(None,) * num_rows,
        failures=tuple(found["failures"]),
        failed=tuple(found["failed"]),
        num_unread=found["num_unread"],
        usage=_usage_from_json(found.get("usage", [])),
    )
