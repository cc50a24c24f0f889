"""Scoring programs within a budget of runs."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import dspy

from dspy_diffusion_infill.journal import Journal
from dspy_diffusion_infill.optimizer.checks import num_positional
from dspy_diffusion_infill.optimizer.options import Scoring
from dspy_diffusion_infill.runs import Evaluation, TooManyFailuresError, as_float, evaluate


class BudgetSpentError(Exception):
    """The next evaluation would pass ``max_metric_calls``."""


@dataclass(slots=True)
class Validator:
    """Scores programs and keeps the budget.

    Attributes:
        scoring: metric, limits and budget.
        metric_calls: spent so far.
        failure_kinds: how often each kind of exception was raised, with its first words.
        lowest: the lowest score that the metric has given, at most 0.
    """

    scoring: Scoring
    metric_calls: int = 0
    failure_kinds: Counter[str] = field(default_factory=Counter)
    lowest: float = 0.0
    _arguments: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        metric = self.scoring.metric
        assert metric is not None, "a plan has a metric"
        self._arguments = num_positional(metric)

    @property
    def num_failures(self) -> int:
        """Runs that raised, over all evaluations."""
        return self.failure_kinds.total()

    def room_for(self, num_rows: int) -> bool:
        """Whether the budget allows that many more metric calls."""
        budget = self.scoring.max_metric_calls
        return budget is None or self.metric_calls + num_rows <= budget

    def replay(self, evaluation: Evaluation) -> None:
        """Counts an evaluation that was paid for in a run that was cut off."""
        self.metric_calls += len(evaluation.scores)
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
        known = None if anew else journal.get(key)
        if known is not None:
            evaluation = evaluation_from_json(known)
            self.replay(evaluation)
            return evaluation
        evaluation = self.evaluate(program, rows)
        journal.put(key, evaluation_to_json(evaluation), about=about)
        return evaluation

    def evaluate(self, program: dspy.Module, rows: Sequence[dspy.Example]) -> Evaluation:
        """Runs and scores the program on every row.

        Raises:
            BudgetSpentError: before any call, if the budget does not allow all of them.
            TooManyFailuresError: more than ``max_errors`` rows raised.
        """
        if not self.room_for(len(rows)):
            raise BudgetSpentError(
                f"{self.metric_calls} of {self.scoring.max_metric_calls} metric calls are spent"
            )
        limit = self.scoring.max_errors
        self.metric_calls += len(rows)
        try:
            found = evaluate(
                program,
                rows,
                self._score,
                num_threads=self.scoring.num_threads,
                max_errors=dspy.settings.max_errors if limit is None else limit,
                failure_score=self.scoring.failure_score or 0.0,
            )
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


def evaluation_to_json(evaluation: Evaluation) -> dict[str, Any]:
    """The scores and failures; traces are not written."""
    return {
        "scores": list(evaluation.scores),
        "failures": list(evaluation.failures),
        "failed": list(evaluation.failed),
        "num_unread": evaluation.num_unread,
    }


def evaluation_from_json(value: Mapping[str, Any]) -> Evaluation:
    """An evaluation without traces."""
    scores: Sequence[float] = value["scores"]
    return Evaluation(
        scores=tuple(scores),
        traces=(None,) * len(scores),
        failures=tuple(value["failures"]),
        failed=tuple(value["failed"]),
        num_unread=value["num_unread"],
    )
