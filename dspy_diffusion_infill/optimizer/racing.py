"""Racing: a trial is scored on a few rows first, and goes on only while it can still win."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

import numpy as np

_FIRST_ROWS = 4  # then as many again, then twice as many, ...
_EQUAL = 1e-9  # sums of scores that are closer are the same
_PRIOR_ROWS = 2.0  # how many rows of this trial the rows' history is worth


@dataclass(slots=True)
class RowHistory:
    """What every evaluation so far has scored on each row.

    Attributes:
        scores: of each row, in the order of the evaluations.
    """

    scores: list[list[float]]

    @classmethod
    def over(cls, num_rows: int) -> "RowHistory":
        """A history without an evaluation."""
        return cls([[] for _ in range(num_rows)])

    def add(self, scores: Mapping[int, float]) -> None:
        """Takes the scores of some rows, by number."""
        for number, score in scores.items():
            self.scores[number].append(score)

    @property
    def bounds(self) -> tuple[float, float]:
        """(lowest, highest) score so far, but at least from 0 to 1."""
        seen = [score for own in self.scores for score in own]
        return min(0.0, *seen), max(1.0, *seen)

    def rates(self) -> np.ndarray:
        """Each row's mean score, scaled to 0..1, drawn towards a half where little is known."""
        low, high = self.bounds
        return np.array(
            [
                (1 + sum((s - low) / (high - low) for s in own)) / (2 + len(own))
                for own in self.scores
            ]
        )

    def spread(self) -> list[float]:
        """How much each row's scores differ between evaluations: their variance."""
        return [float(np.var(own)) if own else 0.0 for own in self.scores]


@dataclass(slots=True)
class Race:
    """Decides on which rows a trial is scored next, and whether it goes on.

    The chance that a trial beats the best program is predicted from its own rows so far: in the
    rows that the best program has right and in those that it has wrong, the number that the trial
    will have right is beta-binomial, with the rows' history as prior. A trial ends when that chance
    is below ``error``.

    Attributes:
        history: of all rows.
        error: the chance below which a trial is given up.
        seed: decides the order of rows about which nothing is known.
    """

    history: RowHistory
    error: float = 0.2
    seed: int = 0
    _shuffled: list[int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._shuffled = list(range(len(self.history.scores)))
        random.Random(f"{self.seed}/rows").shuffle(self._shuffled)

    def blocks(self, best: Sequence[float]) -> list[list[int]]:
        """The rows' numbers in the order of the race, in growing blocks.

        In turn one that the best program has wrong, without which nothing can be won, and one that
        it has right, where something can be lost; of each, those first on which evaluations differ
        most.

        Args:
            best: the best program's scores of all rows.
        """
        spread, (low, high) = self.history.spread(), self.history.bounds
        ranked = sorted(self._shuffled, key=lambda number: -spread[number])
        wrong = [number for number in ranked if not is_right(best[number], low, high)]
        right = [number for number in ranked if is_right(best[number], low, high)]
        both = zip_longest(wrong, right)
        rows = [number for pair in both for number in pair if number is not None]
        blocks, start, size = [], 0, _FIRST_ROWS
        while start < len(rows):
            blocks.append(rows[start : start + size])
            start += size
            size = start
        return blocks

    def can_win(
        self, new: Mapping[int, float], best: Sequence[float], *, is_tie_enough: bool
    ) -> bool:
        """Whether the chance to beat the best program is ``error`` or more.

        Args:
            new: the trial's scores so far, by row.
            best: the best program's scores of all rows.
            is_tie_enough: whether an equal sum wins.
        """
        rest = [number for number in range(len(best)) if number not in new]
        if not rest:
            return True
        low, high = self.history.bounds
        lead = sum(score - best[number] for number, score in new.items())
        needed = (sum(best[number] - low for number in rest) - lead) / (high - low)
        chances = self._chances(new, best, rest)
        numbers = np.arange(len(chances))
        wins = numbers > needed - _EQUAL if is_tie_enough else numbers > needed + _EQUAL
        return float(chances[wins].sum()) >= self.error

    def _chances(
        self, new: Mapping[int, float], best: Sequence[float], rest: Sequence[int]
    ) -> np.ndarray:
        """The chance of each number of right answers, 0 to all, in the rows that are left."""
        from scipy.stats import betabinom

        low, high = self.history.bounds
        rates, chances = self.history.rates(), np.ones(1)
        for was_right in (True, False):
            rows = [number for number in rest if is_right(best[number], low, high) == was_right]
            own = [
                (score - low) / (high - low)
                for number, score in new.items()
                if is_right(best[number], low, high) == was_right
            ]
            if rows:
                prior = _PRIOR_ROWS * float(np.mean(rates[rows]))
                hits, misses = prior + sum(own), _PRIOR_ROWS - prior + len(own) - sum(own)
                numbers = np.arange(len(rows) + 1)
                of_group = betabinom.pmf(numbers, len(rows), hits, max(misses, _EQUAL))
                chances = np.convolve(chances, of_group)
        return chances


def smallest_race(rows: Sequence[object]) -> int:
    """The fewest rows on which a trial of these rows can end."""
    return min(_FIRST_ROWS, len(rows))


def is_right(score: float, low: float, high: float) -> bool:
    """Whether a score is nearer to the highest one than to the lowest."""
    return score > (low + high) / 2
