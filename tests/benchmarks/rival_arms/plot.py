"""The plot: held-out score of the incumbents against program runs, mean over tasks."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.figure import Figure

from rival_arms.curves import Outcome, by_task


def draw(outcomes: Sequence[Outcome]) -> Figure:
    """A line for each arm that has run on every task of the others."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes, colours = figure.subplots(), colormaps["tab20"].colors  # pyright: ignore
    calls = range(max(o.budget for o in outcomes) + 1)
    arms = {o.arm: len(by_task(outcomes, o.arm, lambda o: o.area)) for o in outcomes}
    whole = [arm for arm, num_tasks in arms.items() if num_tasks == max(arms.values())]
    for number, arm in enumerate(whole):
        scores = [
            100 * np.mean(list(by_task(outcomes, arm, lambda o, n=n: o.score_at(n)).values()))
            for n in calls
        ]
        colour, dashes = colours[number % 20], "-" if arm.startswith("infill") else "--"
        axes.step(calls, scores, dashes, where="post", color=colour, label=arm)
    axes.set_xlim(0, calls[-1])
    axes.set_xlabel("program runs")
    axes.set_ylabel("score on held-out rows (%)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def save(outcomes: Sequence[Outcome], path: Path) -> None:
    """Writes an SVG; equal outcomes give the same file."""
    with rc_context({"svg.hashsalt": "rivals"}):
        draw(outcomes).savefig(path, metadata={"Date": None})
