"""The plot of a run: a panel for each measure."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dspy_diffusion_infill.reproduction.mini.recipe import STAGES
from dspy_diffusion_infill.reproduction.mini.summary import (
    COLUMNS,
    CONFIDENCE,
    MiniColumn,
    MiniRow,
    mean_over_seeds,
    values_of,
)

COLORS = ("#9aa0a6", "#e07b39", "#2a6f97", "#468f6b")


def write_plot(rows: Sequence[MiniRow], folder: Path) -> list[Path]:
    """Writes ``mini.png`` and ``mini.svg``: stages are bars, seeds dots."""
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, column in zip(figure.subplots(1, 3), COLUMNS, strict=False):
        _panel(axes, rows, column)
    seeds = len({row.seed for row in rows})
    figure.supxlabel(
        f"bar: mean of {seeds} seed{'s' * (seeds > 1)}; dot: a seed; "
        f"whiskers: {CONFIDENCE:.0%} interval",
        fontsize=8,
    )
    paths = [folder / "mini.png", folder / "mini.svg"]
    with rc_context({"svg.hashsalt": "mini"}):  # the same rows give the same file
        figure.savefig(paths[0], dpi=160)
        figure.savefig(paths[1], metadata={"Date": None})
    return paths


def _panel(axes: Axes, rows: Sequence[MiniRow], column: MiniColumn) -> None:
    if column.is_share:
        axes.set_ylim(0, 1.05)
        axes.set_title(column.title, fontsize=10)
    else:
        axes.set_yscale("log")
        axes.set_title(f"{column.title} (lower is better)", fontsize=10)
    for x, (stage, color) in enumerate(zip(STAGES, COLORS, strict=True)):
        values, value = values_of(rows, stage, column), mean_over_seeds(rows, stage, column)
        axes.bar(x, value.mean, width=0.65, color=color)
        axes.scatter([x] * len(values), values, s=12, color="black", zorder=3, clip_on=False)
        reach = [[value.mean - value.low], [value.high - value.mean]]
        axes.errorbar(x, value.mean, yerr=reach, color="black", capsize=4, linewidth=1)
    axes.set_ylim(bottom=column.lowest)
    axes.set_xticks(range(len(STAGES)), list(STAGES))
    axes.spines[["top", "right"]].set_visible(False)
