"""The rows of all stages and seeds as one table: means, standard deviations, intervals."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import norm
from scipy.stats import t as student

from dspy_diffusion_infill.reproduction.mini.recipe import STAGES, StageName

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class MiniRow:
    """One stage's scores at one seed.

    Attributes:
        stage: ``None`` (pretrained only), ``RO``, ``FS`` or ``FS+RO``.
        seed: decides the split, the weights, every text and every mask.
        infill_exact_match: share of masked, unseen instructions infilled word for word, in [0, 1].
        downstream_accuracy: share of new inputs answered right under the infilled instructions, in
            [0, 1].
        perplexity: diffusion perplexity of the true responses under the true instructions; lower is
            better.
        told_accuracy: share of new inputs answered right under the true instructions, in [0, 1]:
            whether the stage learned to follow instructions at all.
        num_contexts: test contexts behind the shares.
    """

    stage: StageName
    seed: int
    infill_exact_match: float
    downstream_accuracy: float
    perplexity: float
    told_accuracy: float
    num_contexts: int

    def as_json(self) -> dict[str, str | int | float | None]:
        """The measures that are compared among stages; a perplexity that overflowed is None."""
        return {
            "stage": self.stage,
            "seed": self.seed,
            "infill_exact_match": self.infill_exact_match,
            "downstream_accuracy": self.downstream_accuracy,
            "perplexity": self.perplexity if math.isfinite(self.perplexity) else None,
        }


@dataclass(frozen=True, slots=True)
class SeedMean:
    """The mean of a measure over seeds.

    Attributes:
        mean: over the seeds.
        std: sample standard deviation over the seeds; NaN for one seed.
        low: lower end of the 95 % interval: Student's t over seeds, and for a share no narrower
            than Wilson's over all contexts, which is not 0 wide where all seeds agree. NaN where a
            perplexity is infinite.
        high: its upper end.
    """

    mean: float
    std: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class MiniColumn:
    """A column of the table.

    Attributes:
        field: of ``MiniRow``.
        title: what a reader sees.
        is_share: whether it counts contexts, in [0, 1]; a perplexity starts from 1.
    """

    field: str
    title: str
    is_share: bool = True

    @property
    def lowest(self) -> float:
        """The least value that the measure can have."""
        return 0.0 if self.is_share else 1.0

    @property
    def highest(self) -> float:
        """The greatest value that the measure can have."""
        return 1.0 if self.is_share else math.inf


COLUMNS = (
    MiniColumn("infill_exact_match", "infill exact match"),
    MiniColumn("downstream_accuracy", "downstream accuracy"),
    MiniColumn("perplexity", "perplexity", is_share=False),
    MiniColumn("told_accuracy", "accuracy, true instruction"),
)


def values_of(rows: Sequence[MiniRow], stage: StageName, column: MiniColumn) -> list[float]:
    """The column's value at each seed of a stage."""
    return [float(getattr(row, column.field)) for row in rows if row.stage == stage]


def mean_over_seeds(rows: Sequence[MiniRow], stage: StageName, column: MiniColumn) -> SeedMean:
    """The column's mean, deviation and interval over the seeds of a stage."""
    values = values_of(rows, stage, column)
    mean = statistics.fmean(values)
    if not math.isfinite(mean):
        return SeedMean(mean, math.nan, math.nan, math.nan)
    lows, highs, std = [mean], [mean], math.nan
    if len(values) > 1:
        std = statistics.stdev(values)
        quantile = float(student.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
        reach = quantile * std / math.sqrt(len(values))
        lows.append(max(mean - reach, column.lowest))
        highs.append(min(mean + reach, column.highest))
    if column.is_share:
        low, high = wilson(mean, sum(row.num_contexts for row in rows if row.stage == stage))
        lows.append(low)
        highs.append(high)
    return SeedMean(mean, std, min(lows), max(highs))


def wilson(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of ``count`` independent trials."""
    z = float(norm.ppf((1 + CONFIDENCE) / 2))
    center = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    spread = math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    reach = z * spread / (1 + z**2 / count)
    return max(0.0, center - reach), min(1.0, center + reach)


def cell(value: SeedMean) -> str:
    """``0.98 ± 0.01 [0.95, 1.00]``; no deviation for one seed."""
    digits = 2 if value.mean < 100 else 0
    std = "" if math.isnan(value.std) else f" ± {value.std:.{digits}f}"
    return f"{value.mean:.{digits}f}{std} [{value.low:.{digits}f}, {value.high:.{digits}f}]"


def table(rows: Sequence[MiniRow]) -> list[list[str]]:
    """The cells of the table: a header, then a line for each stage."""
    lines = [["stage", *(column.title for column in COLUMNS)]]
    for stage in STAGES:
        means = (mean_over_seeds(rows, stage, column) for column in COLUMNS)
        lines.append([stage, *map(cell, means)])
    return lines


def markdown(rows: Sequence[MiniRow]) -> str:
    """The table and the verdicts."""
    header, *lines = table(rows)
    text = ["| " + " | ".join(line) + " |" for line in (header, ["---"] * len(header), *lines)]
    return "\n".join([*text, "", *verdicts(rows), ""])


def verdicts(rows: Sequence[MiniRow]) -> list[str]:
    """Lines that compare FS and FS+RO with RO by exact match, and whether the intervals overlap."""
    column = COLUMNS[0]
    response_only = mean_over_seeds(rows, "RO", column)
    lines = []
    for stage in ("FS", "FS+RO"):
        value = mean_over_seeds(rows, stage, column)
        apart = value.low > response_only.high
        ratio = value.mean / response_only.mean if response_only.mean else math.inf
        times = f"{ratio:.1f} times" if response_only.mean else "no ratio to 0"
        lines.append(
            f"{stage} infills {value.mean:.2f} of the instructions, RO {response_only.mean:.2f} "
            f"({times}); the {CONFIDENCE:.0%} intervals {'lie' if apart else 'do not lie'} apart."
        )
    return lines
