"""Agreement of a judge with humans: Pearson, Spearman and Kendall τ-b at three levels.

*Sample* level correlates all rows at once; the paper's tables are of this kind. *Summary* level
correlates within each article and averages, leaving out articles where the judge or the humans gave
every row the same score. *System* level correlates the mean scores of the systems. The three differ
a lot: always report a figure with its level.
"""

import math
import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

Level = Literal["sample", "summary", "system"]
Measure = Literal["pearson", "spearman", "kendall"]
RatedScores = Sequence[float | None] | np.ndarray
Groups = Sequence[Hashable] | np.ndarray
Coefficients = tuple[float | None, float | None, float | None]

LEVELS: tuple[Level, ...] = ("sample", "summary", "system")
MEASURES: tuple[Measure, ...] = ("pearson", "spearman", "kendall")
_FUNCTIONS: dict[Measure, Callable[..., tuple[float, float]]] = {
    "pearson": stats.pearsonr,
    "spearman": stats.spearmanr,
    "kendall": stats.kendalltau,
}


@dataclass(frozen=True, slots=True)
class Agreement:
    """How a judge agrees with humans; higher is better, each coefficient is in [-1, 1].

    Attributes:
        pearson: None where it is not defined: fewer than two rows, or constant scores.
        spearman: as above.
        kendall: τ-b, as above.
        level: what was correlated.
        num_rows: rows that entered.
        num_skipped: what was left out at this level: rows with a missing score (sample), articles
            without variance (summary), systems without a scored row (system).
        num_missing: rows without a judge's or a human score; at any level they do not enter.
    """

    pearson: float | None
    spearman: float | None
    kendall: float | None
    level: Level
    num_rows: int
    num_skipped: int
    num_missing: int


@dataclass(frozen=True, slots=True)
class ScoredRows:
    """The rows that have both scores.

    Attributes:
        judge: the judge's scores.
        human: the humans' scores.
        groups: article or system of each row; empty where there are none.
        num_missing: rows that were left out.
        num_lost_groups: groups all of whose rows were left out.
    """

    judge: np.ndarray
    human: np.ndarray
    groups: tuple[Hashable, ...]
    num_missing: int
    num_lost_groups: int


def agreement(
    judge_scores: RatedScores,
    human_scores: RatedScores,
    *,
    level: Level = "sample",
    groups: Groups | None = None,
) -> Agreement:
    """Correlates a judge's scores with human ones.

    Args:
        judge_scores: one number a row; None and NaN are missing.
        human_scores: likewise.
        level: ``sample``, ``summary`` (mean over articles) or ``system`` (over systems' means).
        groups: the article (summary) or the system (system) of each row.

    Raises:
        ValueError: unknown level, sequences of different lengths, or groups missing at a level that
            needs them.
    """
    rows = complete_rows(judge_scores, human_scores, level=level, groups=groups)
    if level == "sample":
        return _report(
            correlations(rows.judge, rows.human), level, rows, len(rows.judge), rows.num_missing
        )
    parts = split_by_group(rows)
    if level == "system":
        means = np.array([(judge.mean(), human.mean()) for judge, human in parts]).reshape(-1, 2)
        coefficients = correlations(means[:, 0], means[:, 1])
        return _report(coefficients, level, rows, len(rows.judge), rows.num_lost_groups)
    varied = [(judge, human) for judge, human in parts if _varies(judge) and _varies(human)]
    each = [correlations(judge, human) for judge, human in varied]
    coefficients = (
        mean_of_known([pearson for pearson, _, _ in each]),
        mean_of_known([spearman for _, spearman, _ in each]),
        mean_of_known([kendall for _, _, kendall in each]),
    )
    num_rows = sum(len(judge) for judge, _ in varied)
    num_skipped = len(parts) - len(varied) + rows.num_lost_groups
    return _report(coefficients, level, rows, num_rows, num_skipped)


def complete_rows(
    judge_scores: RatedScores,
    human_scores: RatedScores,
    *,
    level: Level,
    groups: Groups | None,
) -> ScoredRows:
    """Checks the arguments of ``agreement`` and leaves out rows with a missing score.

    Raises:
        ValueError: as ``agreement``.
    """
    if level not in LEVELS:
        raise ValueError(f"level must be one of {LEVELS}, got {level!r}")
    if len(judge_scores) != len(human_scores):
        raise ValueError(
            "judge_scores and human_scores must have one number a row, "
            f"got {len(judge_scores)} and {len(human_scores)}"
        )
    if level != "sample" and groups is None:
        unit = "article" if level == "summary" else "system"
        raise ValueError(f"level={level!r} needs groups=, the {unit} of each row")
    if groups is not None and len(groups) != len(judge_scores):
        raise ValueError(f"groups must name {len(judge_scores)} rows, got {len(groups)}")
    judge, human = as_floats(judge_scores), as_floats(human_scores)
    known = np.isfinite(judge) & np.isfinite(human)
    names = () if groups is None else tuple(groups)
    kept = tuple(name for name, is_known in zip(names, known, strict=False) if is_known)
    num_missing = int((~known).sum())
    return ScoredRows(
        judge[known], human[known], kept, num_missing, len(set(names)) - len(set(kept))
    )


def correlations(judge: np.ndarray, human: np.ndarray) -> Coefficients:
    """Pearson, Spearman and Kendall τ-b of two arrays; None where either does not vary."""
    return (
        correlation("pearson", judge, human),
        correlation("spearman", judge, human),
        correlation("kendall", judge, human),
    )


def correlation(measure: Measure, judge: np.ndarray, human: np.ndarray) -> float | None:
    """One coefficient; None where either array does not vary."""
    if not (_varies(judge) and _varies(human)):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.NearConstantInputWarning)
        value = float(_FUNCTIONS[measure](judge, human)[0])
    return value if math.isfinite(value) else None


def as_floats(scores: RatedScores) -> np.ndarray:
    """An array in which a missing score is NaN."""
    return np.array([math.nan if score is None else float(score) for score in scores], dtype=float)


def split_by_group(rows: ScoredRows) -> list[tuple[np.ndarray, np.ndarray]]:
    """The judge's and the human scores of each group, in order of first appearance."""
    members: dict[Hashable, list[int]] = {}
    for number, name in enumerate(rows.groups):
        members.setdefault(name, []).append(number)
    return [(rows.judge[part], rows.human[part]) for part in members.values()]


def _report(
    coefficients: Coefficients, level: Level, rows: ScoredRows, num_rows: int, num_skipped: int
) -> Agreement:
    return Agreement(*coefficients, level, num_rows, num_skipped, rows.num_missing)


def _varies(values: np.ndarray) -> bool:
    return len(values) > 1 and bool((values != values[0]).any())


def mean_of_known(values: Sequence[float | None]) -> float | None:
    """The mean of the values that are not None; None where there is none."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
