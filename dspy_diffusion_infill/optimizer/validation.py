"""Scoring programs within a budget."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import dspy

from dspy_diffusion_infill.accounting import RunRefusedError
from dspy_diffusion_infill.journal import Journal
from dspy_diffusion_infill.optimizer.budget import Budget, BudgetSpentError
from dspy_diffusion_infill.optimizer.checks import num_positional
from dspy_diffusion_infill.optimizer.options import Scoring
from dspy_diffusion_infill.optimizer.repeats import repeat
from dspy_diffusion_infill.optimizer.run_journal import JournaledRuns
from dspy_diffusion_infill.optimizer.silence import Silence
from dspy_diffusion_infill.optimizer.trace_json import TraceJson
from dspy_diffusion_infill.outcomes import Evaluation, Outcome
from dspy_diffusion_infill.runs import TooManyFailuresError, as_float, evaluate

__all__ = ["BudgetSpentError", "Validator"]


class Validator:
    """Scores programs and keeps the budget.

    Attributes:
        scoring: metric and limits.
        budget: what was spent, and of what there is room for.
        failure_kinds: how often each kind of exception was raised, with its first words.
        lowest: the lowest score that the metric has given, at most 0.
        on_run: is called as an evaluation begins, and by several threads after each of its runs.
    """

    def __init__(self, scoring: Scoring, budget: Budget | None = None) -> None:
        """Without a budget, one by the caps of ``scoring``."""
        assert scoring.metric is not None, "a plan has a metric"
        self.scoring, self.budget = scoring, budget or Budget(scoring.caps)
        self.failure_kinds: Counter[str] = Counter()
        self.lowest = 0.0
        self.on_run: Callable[[JournaledRuns], None] = lambda runs: None
        self._under_way: list[JournaledRuns] = []
        self._unanswered: list[JournaledRuns] = []
        self._num_unanswered = 0
        self._silence = Silence(self.budget.clock)
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
        """Whether ``max_metric_calls`` allows so many rows more, be they of the journal or not."""
        return self.budget.room_for_calls(num_rows * self.scoring.num_repeats)

    def evaluate_once(
        self,
        program: dspy.Module,
        rows: Sequence[dspy.Example],
        journal: Journal,
        key: str,
        *,
        about: str,
        before: Evaluation | None = None,
        traces: TraceJson | None = None,
        is_repeated: bool = True,
    ) -> Evaluation:
        """Scores the program on every row; runs those that the journal does not know.

        Each row ``num_repeats`` times, with the mean as its score.

        Args:
            program: see ``evaluate``.
            rows: see ``evaluate``.
            journal: has the runs that were paid for.
            key: of this evaluation.
            about: what the journal's lines say that it is.
            before: the program on the rows of the race before these; None or no rows where it
                begins here.
            traces: the evaluation must have traces, and the journal holds them so.
            is_repeated: False runs each row a single time.

        Raises:
            BudgetSpentError: a cap was reached; before any call, where that can be told.
            TooManyFailuresError: more than ``max_errors`` rows raised, those of the race before
                them included, or no LM answered for more than ``max_errors`` runs of whole
                evaluations, one after another, or for longer than ``Silence`` allows.
        """
        if before is None or not before.scores:
            self._under_way.clear()
        repeats = list[Evaluation]()
        for left in range(self.scoring.num_repeats if is_repeated else 1, 0, -1):
            number = len(repeats)
            own = f"{key} repeat {number}" if number else key
            runs = JournaledRuns(journal, own, len(rows), about=about, traces=traces)
            if len(runs.known) < len(rows):
                self.budget.check_room(left * len(rows))
            with repeat(program, number):
                repeats.append(self._evaluate_in(runs, program, rows, before))
        return Evaluation.mean_of(repeats)

    def _evaluate_in(
        self,
        runs: JournaledRuns,
        program: dspy.Module,
        rows: Sequence[dspy.Example],
        before: Evaluation | None,
    ) -> Evaluation:
        """One run of each row, or what the journal has of it; raises as ``evaluate_once``."""
        for usage in runs.lost.values():
            self.budget.settle(None, usage)
        for outcome in runs.known.values():
            self.budget.replay(outcome.usage)
        self._under_way.append(runs)
        self.on_run(runs)
        try:
            found = self._evaluate(program, rows, runs)
            self._check_failures(found if before is None else before.followed_by(found))
            self._check_answers(found, runs)
        except TooManyFailuresError:
            self.give_up()
            raise
        return found

    def evaluate(self, program: dspy.Module, rows: Sequence[dspy.Example]) -> Evaluation:
        """As ``evaluate_once``, without a journal."""
        return self.evaluate_once(program, rows, Journal(None), "", about="")

    def give_up(self) -> None:
        """Has the next process make failed runs again, as the search ends because of them.

        Those of the last program, and all from the evaluation on in which an LM last answered.
        """
        for runs in {*self._under_way, *self._unanswered}:
            runs.give_up()

    @property
    def _max_errors(self) -> int:
        limit = self.scoring.max_errors
        return dspy.settings.max_errors if limit is None else limit

    def _check_failures(self, found: Evaluation) -> None:
        """Raises where a race has too many failures, each block of which has few enough."""
        serious = found.num_failures - found.num_unread
        if serious > self._max_errors:
            raise TooManyFailuresError(
                f"{serious} examples raised, more than max_errors={self._max_errors}; the last: "
                f"{found.failures[-1]}",
                found.failures,
            )

    def _check_answers(self, found: Evaluation, runs: JournaledRuns) -> None:
        """Raises where the LM is dead, also if rows are too few to tell in one evaluation."""
        if found.num_unanswered < len(found.scores):
            self._unanswered.clear()
            self._num_unanswered = 0
        else:
            self._num_unanswered += len(found.scores)
        if found.num_unanswered:
            self._unanswered.append(runs)
        if self._num_unanswered > self._max_errors:
            raise TooManyFailuresError(
                f"no LM answered in {self._num_unanswered} runs, more than "
                f"max_errors={self._max_errors}; the last: {found.failures[-1]}",
                found.failures,
            )

    def _evaluate(
        self, program: dspy.Module, rows: Sequence[dspy.Example], runs: JournaledRuns
    ) -> Evaluation:
        try:
            found = evaluate(
                program,
                rows,
                self._score,
                num_threads=self.scoring.num_threads,
                max_errors=self._max_errors,
                failure_score=self.scoring.failure_score or 0.0,
                run_timeout=self.scoring.run_timeout,
                accountant=self.budget,
                known=runs.known,
                on_end=partial(self._ended, runs),
            )
        except RunRefusedError as error:
            raise BudgetSpentError(self.budget.in_words()) from error
        except TooManyFailuresError as error:
            self.failure_kinds.update(error.failures)
            raise
        self._count(found)
        return self._below_all(found)

    def _ended(self, runs: JournaledRuns, number: int, outcome: Outcome) -> None:
        """Writes how the run of a row ended; raises TooManyFailuresError where the LM is gone."""
        runs.put(number, outcome)
        self.on_run(runs)
        if reason := self._silence.reason_to_end(outcome):
            raise TooManyFailuresError(reason, runs.failures)

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
