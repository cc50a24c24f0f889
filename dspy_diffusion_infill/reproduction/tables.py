"""The table of an experiment: our figures with the paper's beside them."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from dspy_diffusion_infill.evaluation.statistics import Comparison, Spread, spread
from dspy_diffusion_infill.reproduction.experiment import Condition, Experiment, PaperFigure
from dspy_diffusion_infill.reproduction.footers import count_remarks
from dspy_diffusion_infill.reproduction.perplexity import PERPLEXITY, GoldPerplexity
from dspy_diffusion_infill.reproduction.runner import CellResult
from dspy_diffusion_infill.reproduction.significance import REMARK, PairedRow
from dspy_diffusion_infill.reproduction.tasks import Benchmark

HEADINGS = {
    "pearson": "Pearson",
    "spearman": "Spearman",
    "kendall": "Kendall τ-b",
    "em": "Exact match (%)",
    "em_strict": "Exact match, strict (%)",
    "tokens": "Prompt tokens",
    "recall": "Recall",
    "f1": "F1",
    "label_accuracy": "Label accuracy",
    "perplexity": "Perplexity",
    "end_of_text": "End-of-text (% of filled tokens)",
    "only_end_of_text": "Nothing else (% of prompts)",
}
_DIGITS = {
    "em": 1,
    "em_strict": 1,
    "tokens": 1,
    "perplexity": 2,
    "end_of_text": 1,
    "only_end_of_text": 1,
}
_NOTHING = "\u2013"


@dataclass(frozen=True, slots=True)
class TableRow:
    """A condition's figures over all seeds.

    Attributes:
        condition: with its labels and the paper's figures.
        ours: each measure over the seeds.
        num_rows: rows measured, over all seeds.
        num_failed: rows whose call failed, over all seeds.
        num_too_long: rows that did not fit the model's context, over all seeds.
        perplexity_error: standard error of the mean perplexity, from its draws of masks; None
            where there is none.
        model: what was measured: the model's real name, or why nothing was.
    """

    condition: Condition
    ours: Mapping[str, Spread]
    num_rows: int
    num_failed: int
    num_too_long: int
    perplexity_error: float | None
    model: str

    def standard_error(self, measure: str) -> float | None:
        """The standard error of perplexity, which is an estimate; None for other measures."""
        return self.perplexity_error if measure == PERPLEXITY else None


@dataclass(frozen=True, slots=True)
class Table:
    """The figures of a finished experiment.

    Attributes:
        experiment: what was run.
        rows: one for each condition.
        notes: the footer, a paragraph each.
        paired: rows against their baselines; empty where none were compared.
    """

    experiment: Experiment
    rows: tuple[TableRow, ...]
    notes: tuple[str, ...]
    paired: tuple[PairedRow, ...] = ()

    def markdown(self) -> str:
        """The table as Markdown, with heading, caution and footer."""
        measures = self.experiment.measures
        heads = [*self.experiment.columns]
        for measure in measures:
            heads += [HEADINGS[measure], "paper"]
        heads.append("measured on")
        lines = [heads, ["---"] * len(heads)]
        for row in self.rows:
            cells = [row.condition.label.get(name, "") for name in self.experiment.columns]
            for measure in measures:
                error = row.standard_error(measure)
                cells += [
                    ours_text(measure, row.ours[measure], self._num_runs, standard_error=error),
                    paper_text(measure, row.condition.paper.get(measure)),
                ]
            lines.append([*cells, row.model])
        text = "\n".join(_line(line) for line in lines)
        caution = [f"> **{self.experiment.caution}**"] if self.experiment.caution else []
        footer = "\n".join(f"- {note}" for note in self.notes)
        parts = [f"# {self.experiment.title}", *caution, text, footer, *self._significance()]
        return "\n\n".join(parts) + "\n"

    def _significance(self) -> list[str]:
        """The heading, table and footer of the comparisons, where there are any."""
        compared = {name for row in self.paired for name in row.comparisons}
        measures = [name for name in self.experiment.measures if name in compared]
        if not measures:
            return []
        columns = self.experiment.columns
        heads = [*columns, "against", *(HEADINGS[measure] for measure in measures)]
        lines = [heads, ["---"] * len(heads)]
        for row in self.paired:
            cells = [row.condition.label.get(name, "") for name in columns]
            cells.append(", ".join(row.baseline.label.values()))
            cells += [compared_text(one, row.comparisons.get(one)) for one in measures]
            lines.append(cells)
        return ["## Paired significance", "\n".join(map(_line, lines)), f"- {REMARK}"]

    def json(self) -> str:
        """All figures and comparisons; what is not defined is null."""
        paired = {id(row.condition): row for row in self.paired}
        rows = []
        for row in self.rows:
            against = paired.get(id(row.condition))
            rows.append(
                {
                    "label": dict(row.condition.label),
                    "figures": {name: asdict(figure) for name, figure in row.ours.items()},
                    "paper": {name: asdict(one) for name, one in row.condition.paper.items()},
                    "num_rows": row.num_rows,
                    "measured_on": row.model,
                    "against": against and dict(against.baseline.label),
                    "paired": against and {k: asdict(v) for k, v in against.comparisons.items()},
                }
            )
        content = {"title": self.experiment.title, "scale": self.experiment.scale, "rows": rows}
        return json.dumps({**content, "paired_test": REMARK}, indent=1, ensure_ascii=False) + "\n"

    def csv(self) -> str:
        """One line a condition; undefined figures are empty."""
        out = io.StringIO()
        heads = [*self.experiment.columns]
        for measure in self.experiment.measures:
            heads += [f"{measure}{suffix}" for suffix in ("", "_std", "_runs")]
            heads += [f"{measure}_se"] if measure == PERPLEXITY else []
            heads += [f"paper_{measure}", f"paper_{measure}_std"]
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([*heads, "rows", "failed", "too_long", "measured_on"])
        for row in self.rows:
            cells: list[object] = [row.condition.label.get(n, "") for n in self.experiment.columns]
            for measure in self.experiment.measures:
                ours, paper = row.ours[measure], row.condition.paper.get(measure)
                cells += [ours.mean, ours.std, ours.num_runs]
                cells += [row.standard_error(measure)] if measure == PERPLEXITY else []
                cells += [paper and paper.mean, paper and paper.std]
            writer.writerow([*cells, row.num_rows, row.num_failed, row.num_too_long, row.model])
        return out.getvalue()

    @property
    def _num_runs(self) -> int:
        return len(self.experiment.seeds)


def make_table(
    experiment: Experiment,
    task: Benchmark,
    results: Sequence[CellResult],
    *,
    models: Mapping[str, str],
    notes: Sequence[str],
) -> Table:
    """Makes the table; each row joins the seeds of a condition.

    Args:
        experiment: what was run.
        task: adds its remarks to the footer.
        results: every cell's.
        models: the real name of each model that was measured.
        notes: put at the end of the footer.
    """
    rows = tuple(
        _row(experiment, condition, _of(condition, results), models)
        for condition in experiment.conditions
    )
    measured = [row for result in results for row in result.rows]
    undefined = sum(s.num_runs < len(experiment.seeds) for row in rows for s in row.ours.values())
    footer = [
        f"Runs: {len(experiment.seeds)} (seeds {', '.join(map(str, experiment.seeds))}); ± is the "
        f"standard deviation over runs. {_NOTHING} is a figure that is not defined (constant or "
        f"missing scores) or not in the paper; {undefined} of ours lack a run or more.",
        *(task.remarks(measured) if measured else []),
        *count_remarks(results),
        *notes,
    ]
    return Table(experiment, rows, tuple(footer))


def _of(condition: Condition, results: Sequence[CellResult]) -> list[CellResult]:
    return [result for result in results if result.cell.condition is condition]


def _row(
    experiment: Experiment,
    condition: Condition,
    results: Sequence[CellResult],
    models: Mapping[str, str],
) -> TableRow:
    """One condition's row; it says why it is empty where it was not run."""
    return TableRow(
        condition=condition,
        ours={
            measure: spread([result.figures.get(measure) for result in results])
            for measure in experiment.measures
        },
        num_rows=sum(len(result.rows) for result in results),
        num_failed=sum(result.num_failed for result in results),
        num_too_long=sum(result.num_too_long for result in results),
        perplexity_error=_error_of_mean([result.perplexity for result in results]),
        model=models[condition.model] if results else not_run(condition),
    )


def not_run(condition: Condition) -> str:
    """What a row says that has no figures."""
    return f"not run: {condition.not_run}" if condition.not_run else "not run yet"


def _error_of_mean(found: Sequence[GoldPerplexity | None]) -> float | None:
    """The standard error of the runs' mean perplexity; their draws are independent."""
    errors = [one.standard_error for one in found if one is not None]
    known = [error for error in errors if error is not None]
    return math.hypot(*known) / len(known) if known else None


def ours_text(
    measure: str, figure: Spread, num_runs: int, *, standard_error: float | None = None
) -> str:
    """``0.535 ± 0.007``, ``4.50 ± 0.71 (SE 0.05)``.

    Where it is defined in fewer runs than ``num_runs``, in how many.
    """
    if figure.mean is None:
        return _NOTHING
    digits = _DIGITS.get(measure, 3)
    error = "" if standard_error is None else f" (SE {standard_error:.{digits}f})"
    missing = figure.num_runs < num_runs
    runs = f" ({figure.num_runs} of {num_runs} runs)" if missing else ""
    return _number(measure, figure.mean, figure.std) + error + runs


def compared_text(measure: str, found: Comparison | None) -> str:
    """``+0.035 (+0.010 to +0.060), p = 0.012``; the difference alone where it was not tested."""
    if found is None or found.difference is None:
        return _NOTHING
    digits = _DIGITS.get(measure, 3)
    text = f"{found.difference:+.{digits}f}"
    if found.interval is not None:
        text += f" ({found.interval.low:+.{digits}f} to {found.interval.high:+.{digits}f})"
    return text if found.p_value is None else f"{text}, p = {found.p_value:.3f}"


def paper_text(measure: str, figure: PaperFigure | None) -> str:
    """The paper's figure, written as ours."""
    return _NOTHING if figure is None else _number(measure, figure.mean, figure.std)


def _number(measure: str, mean: float, std: float | None) -> str:
    digits = _DIGITS.get(measure, 3)
    return f"{mean:.{digits}f}" + ("" if std is None else f" ± {std:.{digits}f}")


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"
