"""Whether a trial is kept: the metric decides, and likelihood decides ties that have evidence."""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

from dspy_diffusion_infill.optimizer.guidance import Gain
from dspy_diffusion_infill.runs import Evaluation

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

    Attributes:
        labels: of the rows, none of which an edit may lose; None loses none, as in the paper.
    """

    labels: Sequence[Hashable] | None = None

    def accepts(self, new: Evaluation, best: Evaluation, gain: Gain | None) -> bool:
        """As ``Acceptance.accepts``."""
        if self.labels is not None and loses_a_label(new.scores, best.scores, self.labels):
            return False
        return is_better(new, best, gain)


def is_better(new: Evaluation, best: Evaluation, gain: Gain | None) -> bool:
    """Whether the metric prefers the new scores.

    On a tie the best stays, unless the gold responses became clearly likelier and the tie says
    something: some row was answered, and none failed that the best program answered.
    """
    difference = sum(new.scores) - sum(best.scores)
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
