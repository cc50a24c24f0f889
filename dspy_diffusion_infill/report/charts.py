"""Charts as SVG paths, of a size that a page can hold thousands of points in.

Plotly's and Vega's runtimes alone are 0.5 to 4 MB of JavaScript, and Matplotlib draws text as
outlines. Here the template draws the axes, and this module says where the points are.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dspy_diffusion_infill.optimizer.results import DetailedResults
from dspy_diffusion_infill.report.story import OUTCOMES, ToldTrial

WIDTH, HEIGHT = 520, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 12, 34  # room for the labels of the axes


@dataclass(frozen=True, slots=True)
class Tick:
    """A mark on an axis: where it is, and what it says."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Axis:
    """From values to places in the picture."""

    low: float
    high: float
    start: float
    end: float

    def place(self, value: float) -> float:
        """Where a value is, to a tenth."""
        span = (self.high - self.low) or 1.0
        return round(self.start + (value - self.low) / span * (self.end - self.start), 1)

    def ticks(self) -> list[Tick]:
        """About five round values."""
        raw = (self.high - self.low) / 4 or 1.0
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        count = math.floor(self.high / step + 1e-9) - first + 1
        return [Tick(self.place(k * step), f"{k * step:,.6g}") for k in range(first, first + count)]


@dataclass(frozen=True, slots=True)
class Dots:
    """Trials of one outcome: a path whose round line ends are the dots."""

    kind: str
    path: str


@dataclass(frozen=True, slots=True)
class Chart:
    """Something against metric calls.

    Attributes:
        title: what it shows.
        summary: the same in a sentence, for those who do not see it.
        x: metric calls.
        y: what is shown.
        line: the curve.
        dots: single trials.
    """

    title: str
    summary: str
    x: Axis
    y: Axis
    line: str
    dots: tuple[Dots, ...] = ()


def score_chart(results: DetailedResults, told: Sequence[ToldTrial]) -> Chart:
    """The best score so far as a stairway, and each trial as a dot."""
    start = (results.spent_before.metric_calls, results.score_before)
    best = [start, *((t.trial.spent.metric_calls, t.trial.score) for t in told if t.trial.accepted)]
    tried = [(one, (one.trial.spent.metric_calls, one.height)) for one in told]
    scores = [score for _, score in best] + [height for _, (_, height) in tried]
    x, y = _calls(results), _axis(min(scores), max(scores), HEIGHT - _BOTTOM, _TOP)
    line = f"M{x.place(start[0])} {y.place(start[1])}" + "".join(
        f"H{x.place(calls)}V{y.place(score)}" for calls, score in best[1:]
    )
    places = {kind: [place for one, place in tried if one.outcome == kind] for kind in OUTCOMES}
    dots = (Dots(kind, _dots(points, x, y)) for kind, points in places.items() if points)
    return Chart(
        "Score against metric calls",
        f"The best mean score goes from {results.score_before:.3f} to {results.score_after:.3f} "
        f"in {results.metric_calls:,} metric calls and {len(told):,} trials.",
        x,
        y,
        f"{line}H{x.place(results.metric_calls)}",
        tuple(dots),
    )


def spend_chart(results: DetailedResults) -> Chart:
    """What was spent: USD where prices are known and not 0, else tokens, else seconds."""
    name, final = "LM tokens", float(results.lm_tokens)
    if results.lm_cost:
        name, final = "Cost in USD", results.lm_cost
    elif not results.lm_tokens:
        name, final = "Seconds", results.seconds
    moments = [results.spent_before, *(trial.spent for trial in results.trials)]
    points = [(0, 0.0)]
    for one in moments:
        value = {"LM tokens": one.lm_tokens, "Seconds": one.seconds}.get(name, one.lm_cost)
        points.append((one.metric_calls, float(value or 0.0)))
    points.append((results.metric_calls, final))
    x = _calls(results)
    y = _axis(0.0, max(value for _, value in points), HEIGHT - _BOTTOM, _TOP)
    places = dict.fromkeys((x.place(calls), y.place(value)) for calls, value in points)
    line = "M" + "L".join(f"{a} {b}" for a, b in places)
    return Chart(
        f"{name} against metric calls",
        f"{name}: {final:,.6g} after {results.metric_calls:,} metric calls.",
        x,
        y,
        line,
    )


def row_strip(signs: Sequence[int], sign: int) -> str:
    """A path of cells, one a row, over those that have the sign; runs are one cell."""
    path, start = "", None
    for k, one in enumerate([*signs, None]):
        if one == sign and start is None:
            start = k
        elif one != sign and start is not None:
            path += f"M{start} 0h{k - start}v1h-{k - start}z"
            start = None
    return path


def _calls(results: DetailedResults) -> Axis:
    return _axis(0.0, float(max(1, results.metric_calls)), _LEFT, WIDTH - _RIGHT)


def _axis(low: float, high: float, start: float, end: float) -> Axis:
    if high - low < 1e-9:
        low, high = low - 0.05 * (low != 0), high + 0.05
    return Axis(low, high, start, end)


def _dots(points: Iterable[tuple[float, float]], x: Axis, y: Axis) -> str:
    places = dict.fromkeys((x.place(a), y.place(b)) for a, b in points)
    return "".join(f"M{a} {b}h0" for a, b in places)
