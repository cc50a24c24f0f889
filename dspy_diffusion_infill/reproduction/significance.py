"""Paired significance: each row of a table against its baseline, over the same test rows."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

from dspy_diffusion_infill.evaluation.agreement import Measure
from dspy_diffusion_infill.evaluation.statistics import Comparison, Interval, compare_runs
from dspy_diffusion_infill.identity import key_of
from dspy_diffusion_infill.journal import Journal
from dspy_diffusion_infill.reproduction.experiment import Condition, Experiment
from dspy_diffusion_infill.reproduction.runner import CellResult
from dspy_diffusion_infill.reproduction.tasks import COEFFICIENTS, MEANS

FEWEST_ROWS = 20
"""Rows below which no test is made: it could find very large differences only."""
NUM_RESAMPLES = 1000
_VERSION = "paired/1"

REMARK = (
    "Each row is compared with the nearest row above it that has the same model and the prompt as "
    "given (no rewriting, no worked examples); where there is none, and for such rows themselves, "
    "with the first row of the table. Shown are the difference, which is above 0 where the row has "
    "the higher figure, its 95 % interval of a paired bootstrap over test rows, and p, two-sided, "
    f"of a paired permutation test ({NUM_RESAMPLES:,} resamples each; a test row is drawn and "
    "swapped with all of its runs). Only test rows that both answered in all runs count, so that "
    "the difference can be another than that of the figures above; fewer than "
    f"{FEWEST_ROWS} are not tested. p is not corrected for the number of comparisons."
)


@dataclass(frozen=True, slots=True)
class PairedRow:
    """A row of a table against another one.

    Attributes:
        condition: the row.
        baseline: the other.
        comparisons: by measure, in the measure's unit; measures without a score for each test row
            have none.
    """

    condition: Condition
    baseline: Condition
    comparisons: Mapping[str, Comparison]


def baseline_of(experiment: Experiment, condition: Condition) -> Condition | None:
    """The row that a row is compared with; None for the first one."""
    above = experiment.conditions[: experiment.conditions.index(condition)]
    if not above:
        return None
    plain = [one for one in above if one.model == condition.model and _is_as_given(one)]
    return above[0] if _is_as_given(condition) or not plain else plain[-1]


def _is_as_given(condition: Condition) -> bool:
    return not condition.steps and not condition.demos


def paired_rows(
    experiment: Experiment, results: Sequence[CellResult], journal: Journal
) -> tuple[PairedRow, ...]:
    """Compares every row that has a baseline; the journal keeps tests, which take a while."""
    measures = [one for one in experiment.measures if one in COEFFICIENTS or one in MEANS]
    found = []
    for condition in experiment.conditions:
        baseline = baseline_of(experiment, condition)
        if baseline is None or not measures:
            continue
        pairs = _runs_of_both(baseline, condition, results)
        compared = {one: _compared(one, pairs, journal) for one in measures if pairs}
        found.append(PairedRow(condition, baseline, compared))
    return tuple(found)


def _runs_of_both(
    first: Condition, second: Condition, results: Sequence[CellResult]
) -> list[tuple[CellResult, CellResult]]:
    """The results of both conditions with the same seed, where both have rows."""
    before, after = (
        {one.cell.seed: one for one in results if one.cell.condition is condition and one.rows}
        for condition in (first, second)
    )
    return [(before[seed], after[seed]) for seed in before if seed in after]


def _compared(
    measure: str, pairs: Sequence[tuple[CellResult, CellResult]], journal: Journal
) -> Comparison:
    """The comparison by one measure; without a test where too few rows are known."""
    size = 1 + max(number for pair in pairs for one in pair for number in one.row_numbers)
    field, times = MEANS.get(measure, ("score", 1.0))
    first, second = ([_column(pair[k], field, size, times) for pair in pairs] for k in (0, 1))
    human = None
    options: dict[str, Any] = {}
    if measure in COEFFICIENTS:
        given = (zip(one.row_numbers, one.rows, strict=True) for pair in pairs for one in pair)
        by_number = {number: row["human"] for rows in given for number, row in rows}
        human = [by_number.get(number) for number in range(size)]
        options = {"measure": cast(Measure, measure)}
    untested = compare_runs(first, second, human, num_resamples=0, **options)
    if untested.num_rows < FEWEST_ROWS:
        return Comparison(untested.difference, None, None, untested.num_rows)
    key = key_of(_VERSION, NUM_RESAMPLES, measure, first, second, human)
    if (tested := journal.read(key, _from_json)) is None:
        tested = compare_runs(first, second, human, num_resamples=NUM_RESAMPLES, **options)
        journal.put(key, asdict(tested), about=f"{measure}: {pairs[0][1].cell}")
    return tested


def _column(result: CellResult, field: str, size: int, times: float = 1.0) -> list[float | None]:
    """A field of the test rows in order; None for a row that was not answered."""
    by_number = dict(zip(result.row_numbers, result.rows, strict=True))
    values = [by_number[k][field] if k in by_number else None for k in range(size)]
    return [None if value is None else times * value for value in values]


def _from_json(value: Any) -> Comparison:
    interval = value["interval"] and Interval(**value["interval"])
    return Comparison(**{**value, "interval": interval})
