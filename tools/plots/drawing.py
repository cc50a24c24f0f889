"""Plots with matplotlib, in two themes; the same figures give the same file."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class Theme:
    """Colours: text, faint lines, removed text and bars before, added text and bars after."""

    text: str
    faint: str
    before: str
    after: str


THEMES: Mapping[str, Theme] = {
    "light": Theme(text="#1f2328", faint="#d1d9e0", before="#6e7781", after="#1a6fb4"),
    "dark": Theme(text="#e6edf3", faint="#3d444d", before="#8b949e", after="#58a6ff"),
}


def draw_demo(figures: Mapping[str, Any], theme: Theme) -> Figure:
    """The instructions before and after, and the best validation score against metric calls."""
    figure = _figure(9.5, 3.0)
    words, curve = figure.subplots(1, 2, width_ratios=(1.05, 1))
    words.axis("off")
    before, after = figures["instructions_before"], figures["instructions_after"]
    _paragraph(words, 0.98, f"\u2212 {before}", theme.before)
    _paragraph(words, 0.80, f"+ {after}", theme.after)
    shares = (100 * figures["heldout_before"], 100 * figures["heldout_after"])
    held_out = "{:.1f} % → {:.1f} %".format(*shares)
    facts = f"accuracy on {figures['heldout_rows']} held-out rows\n{held_out}"
    words.text(0, 0.36, facts, color=theme.text, fontsize=12, weight="bold", va="top")
    cost = f"{figures['metric_calls']} program runs, two CPU cores, no GPU"
    words.text(0, 0.06, cost, color=theme.text, fontsize=9, va="top")
    calls, best = zip(*figures["curve"], strict=True)
    scores = [100 * score for score in best]
    curve.step(calls, scores, "o-", where="post", color=theme.after, linewidth=2, markersize=4)
    curve.set_xlim(0, None)
    _plain(curve, theme, "metric calls", "best validation score (%)")
    curve.set_ylim(0, 100)
    return figure


def draw_tasks(rows: Sequence[Mapping[str, Any]], theme: Theme) -> Figure:
    """Accuracy on test rows before and after, by task; a small dot is a seed."""
    tasks = sorted({row["task"] for row in rows}, key=lambda task: -_gain(rows, task))
    chosen = {row["task"] for row in rows if row.get("helped_to_choose")}
    figure = _figure(7.5, 1.2 + 0.32 * len(tasks))
    axes = figure.subplots()
    for place, task in enumerate(tasks):
        mine = [row for row in rows if row["task"] == task]
        before, after = 100 * _mean(mine, "test_before"), 100 * _mean(mine, "test_after")
        axes.plot([before, after], [place, place], color=theme.faint, linewidth=3, zorder=1)
        axes.scatter(before, place, color=theme.before, s=46, zorder=2)
        axes.scatter(after, place, color=theme.after, s=46, zorder=3)
        seeds = [100 * row["test_after"] for row in mine]
        axes.scatter(seeds, [place] * len(seeds), color=theme.after, s=10, alpha=0.6, zorder=2)
    axes.set_yticks(range(len(tasks)), [task + " *" * (task in chosen) for task in tasks])
    axes.set_ylim(len(tasks) - 0.5, -0.5)
    axes.set_xlim(-2, 100)
    lines = [f"{name}, {mean_gain(half)}" for name, half in halves(rows).items() if half]
    axes.set_title("\n".join(lines), color=theme.text, fontsize=10, loc="left")
    _plain(axes, theme, "accuracy on test rows (%): before (grey), after (blue), seeds (dots)", "")
    return figure


def halves(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """The tasks that chose nothing, and those whose test rows helped to choose (a star)."""
    starred = [row for row in rows if row.get("helped_to_choose")]
    return {"test": [row for row in rows if row not in starred], "starred": starred}


def mean_gain(rows: Sequence[Mapping[str, Any]]) -> str:
    """The mean gain over tasks, with a 95 % bootstrap interval over tasks."""
    gains = [100 * _gain(rows, task) for task in sorted({row["task"] for row in rows})]
    means = np.random.default_rng(0).choice(gains, (10_000, len(gains))).mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return (
        f"mean of {len(gains)} tasks: {np.mean(gains):+.1f} points, "
        f"95 % interval {low:+.1f} to {high:+.1f}"
    )


def draw_probe(rows: Sequence[Mapping[str, Any]], theme: Theme) -> Figure:
    """The infill probe by training run, and the causal model's figure."""
    figure = _figure(7.5, 0.9 + 0.42 * len(rows))
    axes = figure.subplots()
    for place, row in enumerate(rows):
        colour = theme.after if row["ships"] else theme.before
        axes.barh(
            place, row["nll"], 0.6, xerr=row["standard_error"], color=colour, ecolor=theme.text
        )
        axes.text(0.05, place, f"{row['nll']:.3f}", color="white", va="center", fontsize=9)
    axes.set_yticks(range(len(rows)), [row["weights"] for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    _plain(axes, theme, "nats a token, lower is better (blue: the weights that ship)", "")
    return figure


def save(figure: Figure, path: Path) -> None:
    """Writes an SVG without its date."""
    with rc_context({"svg.hashsalt": path.stem}):
        figure.savefig(path, metadata={"Date": None}, transparent=True)


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _paragraph(axes: Axes, top: float, text: str, colour: str) -> None:
    lines = "\n  ".join(textwrap.wrap(text, 40))
    axes.text(0, top, lines, color=colour, fontsize=11, va="top", family="monospace")


def _plain(axes: Axes, theme: Theme, x: str, y: str) -> None:
    axes.set_xlabel(x, color=theme.text, fontsize=9)
    axes.set_ylabel(y, color=theme.text, fontsize=9)
    axes.tick_params(colors=theme.text, labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(theme.faint)
    axes.set_facecolor("none")


def _mean(rows: Sequence[Mapping[str, Any]], name: str) -> float:
    return sum(row[name] for row in rows) / len(rows)


def _gain(rows: Sequence[Mapping[str, Any]], task: str) -> float:
    mine = [row for row in rows if row["task"] == task]
    return _mean(mine, "test_after") - _mean(mine, "test_before")
