"""How a trial is scored: on all rows, or on as many as it takes to tell that it cannot win."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import dspy

from dspy_diffusion_infill.identity import key_of
from dspy_diffusion_infill.journal import Journal
from dspy_diffusion_infill.optimizer.guidance import Gain
from dspy_diffusion_infill.optimizer.plan import Plan
from dspy_diffusion_infill.optimizer.racing import Race, RowHistory
from dspy_diffusion_infill.optimizer.validation import Validator
from dspy_diffusion_infill.outcomes import Evaluation

Scored = tuple[Evaluation, list[int]]
"""Scores with the numbers of their rows: all in order, or fewer."""


@dataclass(frozen=True, slots=True)
class TrialRuns:
    """Runs the programs of trials over rows of the valset.

    Attributes:
        plan: what is to be done.
        validator: scores programs and keeps the budget.
        journal: has what was paid for before.
        history: every score so far, by row of the valset.
    """

    plan: Plan
    validator: Validator
    journal: Journal
    history: RowHistory

    def score(
        self,
        program: dspy.Module,
        texts: Mapping[str, str],
        best: Sequence[float],
        gain: Gain | None,
    ) -> Scored | None:
        """Scores a program; None where the budget has no room for it.

        Args:
            program: with the instructions of the trial.
            texts: the instructions of all predictors under search, by name.
            best: the best program's scores of all rows.
            gain: of the likelihoods, which may decide a tie; None without guidance.
        """
        if self.plan.is_race:
            return self._race(program, texts, best, gain)
        rows = range(len(self.plan.valset))
        evaluation = self._run(program, rows, key_of("trial", texts))
        return None if evaluation is None else (evaluation, list(rows))

    def _race(
        self,
        program: dspy.Module,
        texts: Mapping[str, str],
        best: Sequence[float],
        gain: Gain | None,
    ) -> Scored | None:
        race = Race(self.history, seed=self.plan.options.seed)
        is_tie_enough = gain is not None and gain.is_clear
        found, numbers = Evaluation((), ()), list[int]()
        for block in race.blocks(best):
            more = self._run(program, block, key_of("trial", texts, block), before=found)
            if more is None:
                return None
            found, numbers = found.followed_by(more), [*numbers, *block]
            new = dict(zip(numbers, found.scores, strict=True))
            if not race.can_win(new, best, is_tie_enough=is_tie_enough):
                return found, numbers
        return found.in_order(numbers), sorted(numbers)

    def _run(
        self,
        program: dspy.Module,
        rows: Sequence[int],
        key: str,
        *,
        before: Evaluation | None = None,
    ) -> Evaluation | None:
        """Scores a program on rows by number; None where the budget has no room for them."""
        if not self.validator.room_for(len(rows)):
            return None
        chosen = [self.plan.valset[number] for number in rows]
        traces = self.plan.traces_of(program) if self.plan.contrasts else None
        return self.validator.evaluate_once(
            program, chosen, self.journal, key, about="trial", before=before, traces=traces
        )
