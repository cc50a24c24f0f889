"""Uncertainty: bootstrap intervals, spread over runs, and paired comparison of two prompts."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dspy_diffusion_infill.evaluation.agreement import (
    Groups,
    Level,
    Measure,
    RatedScores,
    as_floats,
    complete_rows,
    correlation,
    mean_of_known,
    split_by_group,
)

_FEWEST_DEFINED = 0.5  # share of the resamples
_FEWEST_UNITS = 3  # rows, articles or systems: any two of them lie on a line


@dataclass(frozen=True, slots=True)
class Interval:
    """A percentile bootstrap interval.

    Attributes:
        low: lower end.
        high: upper end.
        confidence: in (0, 1).
    """

    low: float
    high: float
    confidence: float


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and standard deviation of a figure over runs.

    Attributes:
        mean: over the runs in which the figure is defined; None where it is in none.
        std: sample standard deviation (n - 1) of them; None for fewer than two.
        num_runs: runs in which it is defined.
    """

    mean: float | None
    std: float | None
    num_runs: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """The difference between two prompts on the same rows.

    Attributes:
        difference: the second's figure minus the first's; above 0 the second is better. None where
            it is not defined: no row has all scores, or a correlation with constant scores.
        interval: of the difference, rows resampled in pairs; None where the difference is, for
            fewer than three rows, and where it is not defined in half of the resamples or more.
        p_value: two-sided, of a permutation test that swaps the two prompts' scores row by row;
            None where the difference is, and for fewer than three rows.
        num_rows: rows that have all scores; None, NaN and infinite scores are missing.
    """

    difference: float | None
    interval: Interval | None
    p_value: float | None
    num_rows: int


def spread(values: Sequence[float | None]) -> Spread:
    """Mean and standard deviation over runs; None and NaN stand for a run without the figure."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known:
        return Spread(None, None, 0)
    std = float(np.std(known, ddof=1)) if len(known) > 1 else None
    return Spread(float(np.mean(known)), std, len(known))


def bootstrap_interval(
    judge_scores: RatedScores,
    human_scores: RatedScores,
    *,
    measure: Measure = "spearman",
    level: Level = "sample",
    groups: Groups | None = None,
    confidence: float = 0.95,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Interval | None:
    """A bootstrap interval of one coefficient of ``agreement``.

    Rows are resampled at sample level, whole articles or systems at the other two.

    Returns:
        None where the coefficient is undefined in half of the resamples or more, and for fewer than
        three rows (articles, systems) with both scores.

    Raises:
        ValueError: as ``agreement``, or ``confidence`` is not in (0, 1).
    """
    rows = complete_rows(judge_scores, human_scores, level=level, groups=groups)
    parts = split_by_group(rows)
    if level == "summary":
        each = [correlation(measure, judge, human) for judge, human in parts]
        if sum(one is not None for one in each) < _FEWEST_UNITS:
            return None
        return _bootstrap(
            lambda chosen: mean_of_known([each[k] for k in chosen]),
            len(each),
            confidence,
            num_resamples,
            seed,
        )
    judge, human = rows.judge, rows.human
    if level == "system":
        judge, human = np.array([(j.mean(), h.mean()) for j, h in parts]).reshape(-1, 2).T
    return _bootstrap(
        lambda chosen: correlation(measure, judge[chosen], human[chosen]),
        len(judge),
        confidence,
        num_resamples,
        seed,
    )


def compare(
    first: RatedScores,
    second: RatedScores,
    human_scores: RatedScores,
    *,
    measure: Measure = "spearman",
    confidence: float = 0.95,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Compares two judges (or two prompts of one judge) on the same rows, at sample level.

    Rows in which any of the three scores is missing do not enter.

    Raises:
        ValueError: the sequences differ in length, or ``confidence`` is not in (0, 1).
    """
    if not len(first) == len(second) == len(human_scores):
        raise ValueError(
            "the two judges and the humans must have scored the same rows, got "
            f"{len(first)}, {len(second)} and {len(human_scores)}"
        )
    return compare_runs(
        [first],
        [second],
        human_scores,
        measure=measure,
        confidence=confidence,
        num_resamples=num_resamples,
        seed=seed,
    )


def compare_means(
    first: RatedScores,
    second: RatedScores,
    *,
    confidence: float = 0.95,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Compares two prompts by their mean score on the same rows (exact match, recall).

    Rows in which either score is missing do not enter.

    Raises:
        ValueError: the sequences differ in length, or ``confidence`` is not in (0, 1).
    """
    if len(first) != len(second):
        raise ValueError(
            f"both prompts must have scored the same rows, got {len(first)} and {len(second)}"
        )
    options = {"confidence": confidence, "num_resamples": num_resamples, "seed": seed}
    return compare_runs([first], [second], **options)


def compare_runs(
    first: Sequence[RatedScores],
    second: Sequence[RatedScores],
    human_scores: RatedScores | None = None,
    *,
    measure: Measure = "spearman",
    confidence: float = 0.95,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Compares two prompts that were run several times over the same rows.

    The difference is the mean over the runs, of coefficients against the human scores where these
    are given, else of mean scores. A row is drawn and swapped with all of its runs together, since
    they are no independent rows. Rows in which any score of any run is missing do not enter.

    Args:
        first: the scores of each run, one for each row.
        second: as ``first``, of as many runs.
        human_scores: one for each row.
        measure: the coefficient.
        confidence: of the interval.
        num_resamples: of the bootstrap, and of the permutation test.
        seed: of both.

    Raises:
        ValueError: the sequences differ in length, or ``confidence`` is not in (0, 1).
    """
    lengths = {len(run) for run in (*first, *second)}
    lengths |= set() if human_scores is None else {len(human_scores)}
    if len(lengths) != 1 or len(first) != len(second):
        raise ValueError(
            f"both prompts must have as many runs over the same rows, got {len(first)} and "
            f"{len(second)} runs of {', '.join(map(str, sorted(lengths))) or 'no'} rows"
        )
    columns = [np.stack([as_floats(run) for run in runs]) for runs in (first, second)]
    columns += [] if human_scores is None else [as_floats(human_scores)[None]]
    known = np.isfinite(np.concatenate(columns)).all(axis=0)
    figure = _mean_coefficient(measure) if human_scores is not None else _mean_score
    kept = tuple(column[:, known] for column in columns)
    return _paired(figure, kept, confidence, num_resamples, seed)


def _mean_score(scores: np.ndarray) -> float | None:
    return float(scores.mean()) if scores.size else None


def _mean_coefficient(measure: Measure) -> Callable[[np.ndarray, np.ndarray], float | None]:
    def figure(scores: np.ndarray, human: np.ndarray) -> float | None:
        found = [correlation(measure, run, human[0]) for run in scores]
        return None if None in found else mean_of_known(found)

    return figure


def _paired(
    figure: Callable[..., float | None],
    columns: tuple[np.ndarray, ...],
    confidence: float,
    num_resamples: int,
    seed: int,
) -> Comparison:
    """Bootstrap over rows, and permutation of the first two columns within rows.

    Columns are (runs, rows); ``figure`` takes the first or the second, and the others.
    """
    num_rows = columns[0].shape[1]

    def difference(a: np.ndarray, b: np.ndarray, *rest: np.ndarray) -> float | None:
        before, after = figure(a, *rest), figure(b, *rest)
        return None if before is None or after is None else after - before

    observed = difference(*columns)
    interval = _bootstrap(
        lambda chosen: difference(*(column[:, chosen] for column in columns)),
        num_rows,
        confidence,
        num_resamples,
        seed,
    )
    if observed is None or num_rows < _FEWEST_UNITS:
        return Comparison(observed, None, None, num_rows)
    rng = np.random.default_rng([seed, 1])
    first, second, *rest = columns
    extreme = defined = 1  # the observed arrangement counts as one of the permutations
    for _ in range(num_resamples):
        swap = rng.random(num_rows) < 0.5
        value = difference(np.where(swap, second, first), np.where(swap, first, second), *rest)
        if value is not None:
            defined += 1
            extreme += abs(value) >= abs(observed) - 1e-12
    return Comparison(observed, interval, extreme / defined, num_rows)


def _bootstrap(
    figure: Callable[[np.ndarray], float | None],
    num_units: int,
    confidence: float,
    num_resamples: int,
    seed: int,
) -> Interval | None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got confidence={confidence}")
    if num_units < _FEWEST_UNITS:
        return None
    rng = np.random.default_rng(seed)
    drawn = (figure(rng.integers(num_units, size=num_units)) for _ in range(num_resamples))
    known = [value for value in drawn if value is not None]
    if len(known) <= _FEWEST_DEFINED * num_resamples:
        return None
    low, high = np.quantile(known, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high), confidence)
