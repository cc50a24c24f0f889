"""Scoring a program on a data set, through ``dspy.Evaluate``."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import dspy

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
        num_failures: examples on which the program or the metric raised.
    """

    scores: tuple[float, ...]
    traces: tuple[Trace | None, ...]
    num_failures: int

    @property
    def mean(self) -> float:
        """Mean score; higher is better."""
        return sum(self.scores) / len(self.scores)


@dataclass(slots=True)
class _Run:
    """One run of the program on one example."""

    prediction: Any
    trace: Trace | None
    error: Exception | None


@dataclass(slots=True)
class Validator:
    """Scores programs and keeps the budget.

    Attributes:
        metric: called as metric(example, prediction), or with a third None where it requires a
            trace.
        num_threads: of ``dspy.Evaluate``; None is DSPy's setting.
        max_errors: failures in one evaluation that are tolerated; None is DSPy's setting.
        failure_score: what an example that raised counts.
        max_metric_calls: budget over all evaluations; None is none.
        metric_calls: spent so far.
        num_failures: over all evaluations.
        failure_kinds: how often each kind of exception was raised, with its first words.
    """

    metric: Callable[..., Any]
    num_threads: int | None
    max_errors: int | None
    failure_score: float
    max_metric_calls: int | None
    metric_calls: int = 0
    num_failures: int = 0
    failure_kinds: Counter[str] = field(default_factory=Counter)

    def room_for(self, num_examples: int) -> bool:
        """Whether the budget allows that many more metric calls."""
        return (
            self.max_metric_calls is None
            or self.metric_calls + num_examples <= self.max_metric_calls
        )

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
        failures: list[Exception] = []
        evaluate = dspy.Evaluate(
            devset=list(examples),
            metric=self._metric(failures, limit),
            num_threads=self.num_threads,
            display_progress=False,
            max_errors=1,
            provide_traceback=False,
        )
        self.metric_calls += len(examples)
        try:
            with _quiet_evaluate():
                results = evaluate(cast(Any, _traced(program))).results
        except Exception as error:
            if len(failures) <= limit:
                raise
            self.num_failures += len(failures)
            raise TooManyFailuresError(
                f"{len(failures)} of {len(examples)} examples raised, more than "
                f"max_errors={limit}; "
                f"the last: {type(failures[-1]).__name__}: {failures[-1]}"
            ) from error
        runs: list[_Run] = [run for _, run, _ in results]
        num_failures = sum(run.error is not None for run in runs)
        self.num_failures += num_failures
        self.failure_kinds.update(_kind(run.error) for run in runs if run.error is not None)
        traces = tuple(run.trace for run in runs)
        return Evaluation(tuple(float(score) for *_, score in results), traces, num_failures)

    def _metric(
        self, failures: list[Exception], limit: int
    ) -> Callable[[dspy.Example, _Run], float]:
        extra = (None,) * (num_positional(self.metric) - 2)

        def score(example: dspy.Example, run: _Run) -> float:
            if run.error is None:
                try:
                    return as_float(self.metric(example, run.prediction, *extra))
                except Exception as error:
                    run.error, run.trace = error, None
            failures.append(run.error)
            if len(failures) > limit:
                raise TooManyFailuresError from run.error
            return self.failure_score

        return score


@contextmanager
def _quiet_evaluate() -> Iterator[None]:
    """Without the line that Evaluate logs for each trial; the progress bar says it better."""
    evaluate_logger = logging.getLogger("dspy.evaluate.evaluate")
    level = evaluate_logger.level
    evaluate_logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        evaluate_logger.setLevel(level)


def as_float(score: Any) -> float:
    """A metric's answer (float, bool, or ``Prediction(score=…)``) as a number.

    Raises:
        TypeError: it is None or another thing that is no number.
    """
    value = score.score if isinstance(score, dspy.Prediction) else score
    if value is None or isinstance(value, str):
        raise TypeError(
            f"the metric must return a number, a bool or dspy.Prediction(score=…), got {score!r}"
        )
    return float(value)


def _traced(program: dspy.Module) -> Callable[..., _Run]:
    """The program as a function that never raises and keeps the trace of its run."""

    def run(**inputs: Any) -> _Run:
        with dspy.context(trace=[]):
            try:
                prediction = program(**inputs)
            except Exception as error:
                return _Run(None, None, error)
            return _Run(prediction, tuple(dspy.settings.trace), None)

    return run


def _kind(error: Exception) -> str:
    first_line = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {first_line:.120}"
