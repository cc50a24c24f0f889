"""The plot of a table: our figures and the paper's side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dspy_diffusion_infill.errors import MissingDependencyError
from dspy_diffusion_infill.evaluation.rows import INSTALL
from dspy_diffusion_infill.reproduction.tables import HEADINGS, Table, TableRow

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_OURS, _PAPER = "#2b6ca3", "#b9c3cd"


def save_plot(table: Table, path: Path) -> list[Path]:
    """Writes ``path`` as PNG and SVG; returns the files.

    Raises:
        MissingDependencyError: ``matplotlib`` is not installed.
    """
    figure = draw(table)
    files = [path.with_suffix(".png"), path.with_suffix(".svg")]
    for file in files:
        figure.savefig(file, dpi=150)
    return files


def draw(table: Table) -> "Figure":
    """The table as a figure: a panel of bars for each measure, or one of dots.

    Raises:
        MissingDependencyError: ``matplotlib`` is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingDependencyError(f"plots need matplotlib: {INSTALL}") from None
    plot = table.experiment.plot
    measures = plot.measures or table.experiment.measures
    height = 1.2 + 0.32 * len(table.rows) if plot.kind == "bars" else 4.2
    figure = Figure(figsize=(3.6 * len(measures) + 2.4, height), layout="constrained")
    FigureCanvasAgg(figure)
    if plot.kind == "bars":
        axes = figure.subplots(1, len(measures), sharey=True, squeeze=False)[0]
        for axis, measure in zip(axes, measures, strict=True):
            _bars(axis, table.rows, measure)
    else:
        _scatter(figure.subplots(), table.rows, str(plot.x), measures[0])
    scale = "" if table.experiment.scale == "full" else f" ({table.experiment.scale} scale)"
    figure.suptitle(_plain(table.experiment.title + scale), fontsize=10)
    return figure


def _bars(axis: Any, rows: Sequence[TableRow], measure: str) -> None:
    for place, row in enumerate(rows):
        ours, paper = row.ours[measure], row.condition.paper.get(measure)
        if ours.mean is not None:
            axis.barh(place - 0.2, ours.mean, 0.4, xerr=ours.std, color=_OURS)
        if paper is not None:
            axis.barh(place + 0.2, paper.mean, 0.4, xerr=paper.std, color=_PAPER)
    axis.set_yticks(range(len(rows)), [_name(row) for row in rows], fontsize=7)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_title(HEADINGS[measure], fontsize=9)
    _legend(axis)


def _scatter(axis: Any, rows: Sequence[TableRow], x: str, y: str) -> None:
    for row in rows:
        ours = row.ours[x].mean, row.ours[y].mean
        if None not in ours:
            axis.scatter(*ours, color=_OURS, zorder=3)
            axis.annotate(_name(row), ours, fontsize=7, xytext=(4, 4), textcoords="offset points")
        paper = row.condition.paper.get(x), row.condition.paper.get(y)
        if paper[0] is not None and paper[1] is not None:
            place = paper[0].mean, paper[1].mean
            axis.scatter(*place, color=_PAPER, zorder=2)
            axis.annotate(_name(row), place, fontsize=7, xytext=(4, -9), textcoords="offset points")
    axis.set_xlabel(HEADINGS[x])
    axis.set_ylabel(HEADINGS[y])
    _legend(axis)


def _legend(axis: Any) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(color=_OURS, label="ours"), Patch(color=_PAPER, label="paper")]
    axis.legend(handles=handles, fontsize=7, loc="best")


def _name(row: TableRow) -> str:
    return _plain(" · ".join(row.condition.label.values()))


def _plain(text: str) -> str:
    """Escapes dollar signs: Matplotlib reads text between two of them as a formula."""
    return text.replace("$", r"\$")
