"""Scoring a program on a data set, through ``dspy.Evaluate``."""

import logging
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import dspy
from dspy.utils.exceptions import AdapterParseError

from dspy_diffusion_infill.optimizer.checks import num_positional

Trace = tuple[tuple[Any, dict[str, Any], Any], ...]


class TooManyFailuresError(Exception):
    """More than ``max_errors`` examples of one evaluation raised.

    The search turns it into ``TooManyErrors``.
    """


class BudgetSpentError(Exception):
    """The next evaluation would pass ``max_metric_calls``."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A program's scores.

    Attributes:
        scores: the metric of each example, in order.
        traces: for each example the calls of the run, or None where it raised.
        failures: for each example on which the program or the metric raised, with what.
    """

    scores: tuple[float, ...]
    traces: tuple[Trace | None, ...]
    failures: tuple[str, ...] = ()

    @property
    def mean(self) -> float:
        """Mean score; higher is better. NaN where nothing was scored."""
        return sum(self.scores) / len(self.scores) if self.scores else math.nan

    @property
    def num_failures(self) -> int:
        """Examples on which the program or the metric raised."""
        return len(self.failures)


@dataclass(slots=True)
class _Run:
    """One run of the program on one example, and its score."""

    number: int
    score: float
    trace: Trace | None
    error: Exception | None


@dataclass(slots=True)
class Validator:
    """Scores programs and keeps the budget.

    Attributes:
        metric: called as metric(example, prediction), or with a third None where it requires a
            trace.
        num_threads: of ``dspy.Evaluate``; None is DSPy's setting.
        max_errors: failures in one evaluation that are tolerated; None is DSPy's setting. Answers
            that cannot be parsed are not counted: they are what the instructions are to mend.
        failure_score: what an example that raised counts.
        max_metric_calls: budget over all evaluations; None is none.
        metric_calls: spent so far.
        failure_kinds: how often each kind of exception was raised, with its first words.
    """

    metric: Callable[..., Any]
    num_threads: int | None
    max_errors: int | None
    failure_score: float
    max_metric_calls: int | None
    metric_calls: int = 0
    failure_kinds: Counter[str] = field(default_factory=Counter)

    @property
    def num_failures(self) -> int:
        """Runs that raised, over all evaluations."""
        return self.failure_kinds.total()

    def room_for(self, num_examples: int) -> bool:
        """Whether the budget allows that many more metric calls."""
        return (
            self.max_metric_calls is None
            or self.metric_calls + num_examples <= self.max_metric_calls
        )

    def replay(self, evaluation: Evaluation) -> None:
        """Counts an evaluation that was paid for in a run that was cut off."""
        self.metric_calls += len(evaluation.scores)
        self.failure_kinds.update(evaluation.failures)

    def evaluate(self, program: dspy.Module, examples: Sequence[dspy.Example]) -> Evaluation:
        """Runs and scores the program on every example.

        Raises:
            BudgetSpentError: before any call, if the budget does not allow all of them.
            TooManyFailuresError: more than ``max_errors`` examples raised.
        """
        if not self.room_for(len(examples)):
            raise BudgetSpentError(
                f"{self.metric_calls} of {self.max_metric_calls} metric calls are spent"
            )
        limit = dspy.settings.max_errors if self.max_errors is None else self.max_errors
        runs = _Runs(program, examples, self._score, self.failure_score)
        evaluate = dspy.Evaluate(
            devset=[dspy.Example(number=n).with_inputs("number") for n in range(len(examples))],
            metric=partial(_score_of, runs, limit),
            num_threads=self.num_threads,
            display_progress=False,
            max_errors=1,
            provide_traceback=False,
        )
        self.metric_calls += len(examples)
        try:
            with _quiet_evaluate():
                results = evaluate(cast(Any, runs)).results
        except Exception as error:
            failures = runs.failures()
            if len(serious := [one for one in failures if not is_unreadable(one)]) <= limit:
                raise
            self.failure_kinds.update(map(_kind, failures))
            raise TooManyFailuresError(
                f"{len(serious)} of {len(examples)} examples raised, more than "
                f"max_errors={limit}; the last: {_kind(serious[-1])}"
            ) from error
        ended: list[_Run] = [run for _, run, _ in results]
        failures = tuple(_kind(run.error) for run in ended if run.error is not None)
        self.failure_kinds.update(failures)
        scores = tuple(run.score for run in ended)
        return Evaluation(scores, tuple(run.trace for run in ended), failures)

    def _score(self, example: dspy.Example, prediction: Any) -> float:
        extra = (None,) * (num_positional(self.metric) - 2)
        return as_float(self.metric(example, prediction, *extra))


class _Runs:
    """Runs a program on numbered examples: never raises, and never runs an example twice.

    With several threads, Evaluate sends an example again after 120 seconds; the second call waits
    for the first one's outcome.
    """

    def __init__(
        self,
        program: dspy.Module,
        examples: Sequence[dspy.Example],
        score: Callable[[dspy.Example, Any], float],
        failure_score: float,
    ) -> None:
        self._program, self._examples, self._score = program, examples, score
        self._failure_score = failure_score
        self._lock = threading.Lock()
        self._ended: dict[int, Future[_Run]] = {}

    def __call__(self, number: int) -> _Run:
        with self._lock:
            is_first = number not in self._ended
            ended = self._ended.setdefault(number, Future())
        if is_first:
            ended.set_result(self._run(number))
        return ended.result()

    def failures(self) -> list[Exception]:
        """What the runs that have ended raised."""
        with self._lock:
            ended = [future.result() for future in self._ended.values() if future.done()]
        return [run.error for run in ended if run.error is not None]

    def _run(self, number: int) -> _Run:
        example = self._examples[number]
        try:
            with dspy.context(trace=[]):
                prediction = self._program(**example.inputs())
                trace = tuple(dspy.settings.trace)
            return _Run(number, self._score(example, prediction), trace, None)
        except Exception as error:
            return _Run(number, self._failure_score, None, error)


def _score_of(runs: _Runs, limit: int, _: dspy.Example, run: _Run) -> float:
    """What Evaluate gets for a run; ends the evaluation where too many have raised."""
    serious = [error for error in runs.failures() if not is_unreadable(error)]
    if len(serious) > limit:
        raise TooManyFailuresError from serious[-1]
    return run.score


def is_unreadable(error: Exception) -> bool:
    """Whether an LM did answer, but not in the form that the adapter reads."""
    return isinstance(error, AdapterParseError)


@contextmanager
def _quiet_evaluate() -> Iterator[None]:
    """Without what Evaluate logs of each trial: the progress bar, and our errors, say it better."""
    names = ("dspy.evaluate.evaluate", "dspy.utils.parallelizer")
    loggers = [logging.getLogger(name) for name in names]
    levels = [one.level for one in loggers]
    for one, level in zip(loggers, (logging.WARNING, logging.CRITICAL), strict=True):
        one.setLevel(level)
    try:
        yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)


def as_float(score: Any) -> float:
    """A metric's answer (float, bool, or ``Prediction(score=…)``) as a number.

    Raises:
        TypeError: it is None or another thing that is no number.
        ValueError: it is NaN, with which nothing can be compared.
    """
    value = score.score if isinstance(score, dspy.Prediction) else score
    if value is None or isinstance(value, str):
        raise TypeError(
            f"the metric must return a number, a bool or dspy.Prediction(score=…), got {score!r}"
        )
    if math.isnan(number := float(value)):
        raise ValueError("the metric must return a number, got nan")
    return number


def _kind(error: Exception) -> str:
    first_line = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {first_line:.120}"
