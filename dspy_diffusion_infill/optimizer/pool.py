"""The pool of a search: programs that are the best on some row of the valset.

As in GEPA (arXiv 2507.19457), the programs on this Pareto front stay, be their mean the best or
not: an edit that helps where the best program fails can be built upon, or merged with it.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

_EQUAL = 1e-9  # scores that are closer are the same


@dataclass(frozen=True, slots=True)
class Member:
    """A program that was scored on all rows.

    Attributes:
        texts: the instructions of all predictors under search, by name.
        scores: of each row of the valset.
    """

    texts: Mapping[str, str]
    scores: tuple[float, ...]


@dataclass(slots=True)
class Pool:
    """The members that no other member makes superfluous.

    A member is superfluous if it is the best only on rows on which another one is, too; of two that
    are the best on the same rows, the newer one.

    Attributes:
        members: the oldest first.
    """

    members: list[Member] = field(default_factory=list[Member])

    def add(self, member: Member) -> bool:
        """Takes a member in where it is not superfluous; whether it was taken."""
        both = [*self.members, member]
        rows = _rows_of(both)
        kept = [
            number
            for number, own in enumerate(rows)
            if not any(own < one or (own == one and k < number) for k, one in enumerate(rows))
        ]
        self.members = [both[number] for number in kept]
        return len(both) - 1 in kept

    def draw(self, rng: random.Random) -> Member:
        """A member, more likely the more rows it is the best on."""
        return rng.choices(self.members, [1 + len(own) for own in _rows_of(self.members)])[0]


def _rows_of(members: Sequence[Member]) -> list[frozenset[int]]:
    """The rows on which each is the best; those on which all score alike tell nothing."""
    scores = np.array([one.scores for one in members])
    best = scores >= scores.max(axis=0) - _EQUAL
    best[:, best.all(axis=0)] = False
    return [frozenset(np.flatnonzero(own).tolist()) for own in best]
