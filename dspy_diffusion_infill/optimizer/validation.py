"""Scoring programs on a data set within a budget of runs."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dspy

from dspy_diffusion_infill.optimizer.checks import num_positional
from dspy_diffusion_infill.runs import Evaluation, TooManyFailuresError, as_float, evaluate


class BudgetSpentError(Exception):
    """The next evaluation would pass ``max_metric_calls``."""


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
        self.metric_calls += len(examples)
        try:
            found = evaluate(
                program,
                examples,
                self._score,
                num_threads=self.num_threads,
                max_errors=dspy.settings.max_errors if self.max_errors is None else self.max_errors,
                failure_score=self.failure_score,
            )
        except TooManyFailuresError as error:
            self.failure_kinds.update(error.failures)
            raise
        self.failure_kinds.update(found.failures)
        return found

    def _score(self, example: dspy.Example, prediction: Any) -> float:
        extra = (None,) * (num_positional(self.metric) - 2)
        return as_float(self.metric(example, prediction, *extra))


def evaluation_to_json(evaluation: Evaluation) -> dict[str, Any]:
    """The scores and failures; traces are not written."""
    return {"scores": list(evaluation.scores), "failures": list(evaluation.failures)}


def evaluation_from_json(value: Mapping[str, Any]) -> Evaluation:
    """An evaluation without traces."""
    scores: Sequence[float] = value["scores"]
    return Evaluation(tuple(scores), (None,) * len(scores), tuple(value["failures"]))
