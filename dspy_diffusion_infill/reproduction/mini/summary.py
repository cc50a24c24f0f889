"""The rows of all stages and seeds as one table: means, standard deviations, intervals."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import norm
from scipy.stats import t as student

from dspy_diffusion_infill.reproduction.mini.recipe import STAGES, Stage

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class MiniRow:
    """What one stage did at one seed.

    Attributes:
        stage: ``None`` (pretrained only), ``RO``, ``FS`` or ``FS+RO``.
        seed: decides the split, the weights, every text and every mask.
        infill_exact_match: share of masked, unseen instructions infilled word for word, in [0, 1].
        downstream_accuracy: share of new inputs answered right under the infilled instructions, in
            [0, 1].
        perplexity: diffusion perplexity of the true responses under the true instructions; lower is
            better.
        told_accuracy: share of new inputs answered right under the true instructions: whether the
            stage was taught properly.
        num_contexts: test contexts behind the shares.
    """

    stage: Stage
    seed: int
    infill_exact_match: float
    downstream_accuracy: float
    perplexity: float
    told_accuracy: float
    num_contexts: int

    def as_json(self) -> dict[str, str | int | float]:
        """The measures that are compared among stages."""
        return {
            "stage": self.stage,
            "seed": self.seed,
            "infill_exact_match": self.infill_exact_match,
            "downstream_accuracy": self.downstream_accuracy,
            "perplexity": self.perplexity,
        }


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure over seeds.

    Attributes:
        mean: over the seeds.
        std: sample standard deviation over the seeds; NaN for one seed.
        low: lower end of the 95 % interval: Student's t over seeds, and for a share no narrower
            than Wilson's over all contexts, which is not 0 wide where all seeds agree.
        high: its upper end.
    """

    mean: float
    std: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Measure:
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
        """A value that no interval goes below."""
        return 0.0 if self.is_share else 1.0

    @property
    def highest(self) -> float:
        """A value that no interval goes above."""
        return 1.0 if self.is_share else math.inf


MEASURES = (
    Measure("infill_exact_match", "infill exact match"),
    Measure("downstream_accuracy", "downstream accuracy"),
    Measure("perplexity", "perplexity", is_share=False),
    Measure("told_accuracy", "accuracy, true instruction"),
)


def values_of(rows: Sequence[MiniRow], stage: Stage, measure: Measure) -> list[float]:
    """One value a seed."""
    return [float(getattr(row, measure.field)) for row in rows if row.stage == stage]


def estimate(rows: Sequence[MiniRow], stage: Stage, measure: Measure) -> Estimate:
    """The measure of a stage over its seeds."""
    values = values_of(rows, stage, measure)
    mean = statistics.fmean(values)
    lows, highs, std = [mean], [mean], math.nan
    if len(values) > 1:
        std = statistics.stdev(values)
        quantile = float(student.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
        reach = quantile * std / math.sqrt(len(values))
        lows.append(max(mean - reach, measure.lowest))
        highs.append(min(mean + reach, measure.highest))
    if measure.is_share:
        low, high = wilson(mean, sum(row.num_contexts for row in rows if row.stage == stage))
        lows.append(low)
        highs.append(high)
    return Estimate(mean, std, min(lows), max(highs))


def wilson(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of ``count`` independent trials."""
    z = float(norm.ppf((1 + CONFIDENCE) / 2))
    center = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    spread = math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    reach = z * spread / (1 + z**2 / count)
    return max(0.0, center - reach), min(1.0, center + reach)


def cell(value: Estimate) -> str:
    """``0.98 ± 0.01 [0.95, 1.00]``; no deviation for one seed."""
    digits = 2 if value.mean < 100 else 0
    std = "" if math.isnan(value.std) else f" ± {value.std:.{digits}f}"
    return f"{value.mean:.{digits}f}{std} [{value.low:.{digits}f}, {value.high:.{digits}f}]"


def table(rows: Sequence[MiniRow]) -> list[list[str]]:
    """A header and a line for each stage."""
    lines = [["stage", *(measure.title for measure in MEASURES)]]
    for stage in STAGES:
        lines.append([stage, *(cell(estimate(rows, stage, measure)) for measure in MEASURES)])
    return lines


def markdown(rows: Sequence[MiniRow]) -> str:
    """The table and the verdicts."""
    header, *lines = table(rows)
    text = ["| " + " | ".join(line) + " |" for line in (header, ["---"] * len(header), *lines)]
    return "\n".join([*text, "", *verdicts(rows), ""])


def verdicts(rows: Sequence[MiniRow]) -> list[str]:
    """Whether FS and FS+RO infill at least three times as often as RO, said either way."""
    measure = MEASURES[0]
    response_only = estimate(rows, "RO", measure)
    lines = []
    for stage in ("FS", "FS+RO"):
        value = estimate(rows, stage, measure)
        apart = value.low > response_only.high
        ratio = value.mean / response_only.mean if response_only.mean else math.inf
        times = f"{ratio:.1f} times" if response_only.mean else "no ratio to 0"
        lines.append(
            f"{stage} infills {value.mean:.2f} of the instructions, RO {response_only.mean:.2f} "
            f"({times}); the {CONFIDENCE:.0%} intervals {'lie' if apart else 'do not lie'} apart."
        )
    return lines
