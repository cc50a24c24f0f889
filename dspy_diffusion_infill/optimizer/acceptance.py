"""Whether a trial is kept: the metric decides, and likelihood decides ties that have evidence."""

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from dspy_diffusion_infill.optimizer.guidance import Gain
from dspy_diffusion_infill.outcomes import Evaluation

_EQUAL = 1e-9  # sums of scores that are closer are the same


class Acceptance(Protocol):
    """Decides whether a trial becomes the best program. Implement it to plug in another rule."""

    def accepts(self, new: Evaluation, best: Evaluation, gain: Gain | None) -> bool:
        """Whether the trial is kept.

        Args:
            new: the trial's scores.
            best: those of the best program so far, on the same rows in the same order.
            gain: what the gold responses' likelihood gained; None without guidance.
        """
        ...


@dataclass(frozen=True, slots=True)
class MetricFirst:
    """Keeps what the metric prefers, and on a tie what guidance clearly prefers.

    The defaults keep every gain, however small; the options ask for more.

    Attributes:
        labels: of the rows of the valset, none of which an edit may lose. None are those that the
            rows have, where there is guidance; ``()`` is none.
        min_gain: mean score that a trial must gain, 0 or more. A tie gains nothing.
        max_p: the largest p-value of a trial's gain, by ``paired_p``, above 0 and at most 1; None
            asks for none. Many trials are compared with one best program, so some are this good by
            chance.
        length_penalty: mean score that each further character of the instructions must bring, 0
            or more; of two programs that score alike the shorter one is then better.

    Raises:
        ValueError: a number is out of its range.
    """

    labels: Sequence[Hashable] | None = None
    min_gain: float = 0.0
    max_p: float | None = None
    length_penalty: float = 0.0

    def __post_init__(self) -> None:
        for name in ("min_gain", "length_penalty"):
            if not (math.isfinite(value := getattr(self, name)) and value >= 0):
                raise ValueError(f"{name} must be 0 or more, got {name}={value}")
        if self.max_p is not None and not 0 < self.max_p <= 1:
            raise ValueError(f"max_p must be above 0 and at most 1, got max_p={self.max_p}")

    def accepts(self, new: Evaluation, best: Evaluation, gain: Gain | None) -> bool:
        """As ``Acceptance.accepts``."""
        if self.labels and loses_a_label(new.scores, best.scores, self.labels):
            return False
        penalty = self.length_penalty * (new.length - best.length)
        if self.min_gain > 0 and new.mean - best.mean - penalty < self.min_gain - _EQUAL:
            return False
        if self.max_p is not None and paired_p(new.scores, best.scores) > self.max_p:
            return False
        return is_better(new, best, gain, penalty=penalty)


def paired_p(new: Sequence[float], best: Sequence[float]) -> float:
    """The chance of a gain as large as this, over the same rows, if neither program were better.

    A one-sided permutation test: each row's difference has either sign with equal chance. Exact for
    at most 13 rows that differ, else over 9,999 draws, the same ones each time. 1 where no row
    differs.
    """
    from scipy.stats import permutation_test

    pairs = [(a, b) for a, b in zip(new, best, strict=True) if abs(a - b) > _EQUAL]
    if not pairs:
        return 1.0
    if len(pairs) == 1:  # which scipy refuses
        return 0.5 if pairs[0][0] > pairs[0][1] else 1.0
    found = permutation_test(
        tuple(zip(*pairs, strict=True)),
        lambda a, b, axis: a.mean(axis) - b.mean(axis),
        permutation_type="samples",
        vectorized=True,
        alternative="greater",
        rng=0,
    )
    return float(found.pvalue)


def is_better(
    new: Evaluation, best: Evaluation, gain: Gain | None, *, penalty: float = 0.0
) -> bool:
    """Whether the metric prefers the new scores, by more than a penalty of their mean.

    On a tie the best stays, unless the gold responses became clearly likelier and the tie says
    something: some row was answered, and none failed that the best program answered.
    """
    difference = sum(new.scores) - sum(best.scores) - len(new.scores) * penalty
    if abs(difference) > _EQUAL:
        return difference > 0
    has_evidence = len(new.failed) < len(new.scores) and set(new.failed) <= set(best.failed)
    return gain is not None and gain.is_clear and has_evidence


def loses_a_label(new: Sequence[float], best: Sequence[float], labels: Sequence[Hashable]) -> bool:
    """Whether all rows of one label are wrong now, of which the best program had some right.

    Where one label is frequent in a few rows, to answer it every time is often the better score on
    them, and on no others. A row is wrong at a score of 0 or less, or at the lowest score of all
    under a metric that is never above 0.
    """
    worst = min(0.0, *new, *best)
    of_label: dict[Hashable, list[tuple[float, float]]] = defaultdict(list)
    for label, pair in zip(labels, zip(new, best, strict=True), strict=True):
        of_label[label].append(pair)
    return len(of_label) > 1 and any(
        max(now for now, _ in pairs) <= worst < max(was for _, was in pairs)
        for pairs in of_label.values()
    )


def acceptance_of(given: Acceptance | None, labels: Sequence[Hashable] | None = None) -> Acceptance:
    """The user's rule, or the metric's; ``MetricFirst`` without labels gets those of the rows."""
    rule = given or MetricFirst()
    if isinstance(rule, MetricFirst) and rule.labels is None:
        return replace(rule, labels=labels)
    return rule
