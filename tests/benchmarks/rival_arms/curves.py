"""What a run leaves behind: held-out scores against program runs, and the tables over tasks."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from dspy_diffusion_infill.evaluation.statistics import Interval, compare_means

Point = tuple[int, float]
Figure = Callable[["Outcome"], float | None]
_NEARLY = 0.9  # of the reference's final gain


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One arm on one task under one seed.

    Attributes:
        task: its name.
        half: ``choose`` or ``report``.
        answers: ``free`` or ``literal``.
        arm: its name.
        seed: see above.
        budget: program runs that were allowed.
        calls: program runs that were made.
        tried: different instructions among them; 1 says that the arm had none of its own.
        curve: (program runs, score on held-out rows) of each incumbent, the start first.
        instructions: those of each incumbent.
        error: what ended the arm before its time; None for nothing.
        seconds: the arm took, held-out rows apart.
    """

    task: str
    half: str
    answers: str
    arm: str
    seed: int
    budget: int
    calls: int
    tried: int
    curve: tuple[Point, ...]
    instructions: tuple[str, ...]
    error: str | None
    seconds: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "curve", tuple((int(c), float(s)) for c, s in self.curve))
        object.__setattr__(self, "instructions", tuple(self.instructions))

    @property
    def has_run(self) -> bool:
        """Whether the program was run at all."""
        return self.error is None or self.calls > 0

    @property
    def area(self) -> float:
        """Mean held-out score over the budget, 0 to 1: the area under the curve."""
        ends = [*(calls for calls, _ in self.curve[1:]), self.budget]
        steps = zip(self.curve, ends, strict=True)
        return sum(score * (end - calls) for (calls, score), end in steps) / self.budget

    @property
    def gain(self) -> float:
        """Held-out score at the end over that of the start."""
        return self.curve[-1][1] - self.curve[0][1]

    def calls_to(self, score: float) -> int:
        """Program runs until an incumbent scores so much; the budget where none does."""
        return next((calls for calls, found in self.curve if found >= score), self.budget)

    def score_at(self, calls: int) -> float:
        """Held-out score of the incumbent after so many program runs."""
        return [score for made, score in self.curve if made <= calls][-1]


def by_task(outcomes: Iterable[Outcome], arm: str, figure: Figure) -> dict[tuple[str, str], float]:
    """A figure of an arm for each task and kind of answers: the mean over seeds that have it."""
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for one in outcomes:
        if one.arm == arm and one.has_run and (value := figure(one)) is not None:
            found[one.task, one.answers].append(value)
    return {task: float(np.mean(values)) for task, values in found.items()}


def report(outcomes: Sequence[Outcome], reference: str) -> str:
    """Markdown: a table for each half, the gains by task, and what did not run."""
    halves = [half for half in ("choose", "report") if any(o.half == half for o in outcomes)]
    parts = []
    for half in [*halves, *(["all"] if len(halves) > 1 else [])]:
        own = [o for o in outcomes if half in ("all", o.half)]
        parts.append(f"## Half: {half}\n\n{_arms_table(own, reference)}\n\n{_gains_table(own)}")
    ended = sorted({f"- {o.arm}, {o.task}, seed {o.seed}: {o.error}" for o in outcomes if o.error})
    if ended:
        parts.append("Ended before their time:\n\n" + "\n".join(ended))
    return "\n\n".join(parts)


def _arms_table(outcomes: Sequence[Outcome], reference: str) -> str:
    """By area under the curve, in points; intervals by bootstrap over tasks."""
    head = ["Arm", "Tasks", "Area", f"Area over {reference}", "Gain", f"Gain over {reference}"]
    head += ["Worst task", "Runs", "Tried", f"Runs to {_NEARLY:.0%} of the gain of {reference}"]
    areas = {arm: by_task(outcomes, arm, _area) for arm in dict.fromkeys(o.arm for o in outcomes)}
    means = {arm: np.mean(list(own.values())) for arm, own in areas.items() if own}
    rows = [_arm_row(outcomes, arm, reference) for arm in sorted(means, key=lambda a: -means[a])]
    rows += [[arm, "did not run", *[""] * 8] for arm in areas if arm not in means]
    return _table(head, rows)


def _arm_row(outcomes: Sequence[Outcome], arm: str, reference: str) -> list[str]:
    wanted = {
        (o.task, o.answers, o.seed): o.curve[0][1] + _NEARLY * o.gain
        for o in outcomes
        if o.arm == reference and o.gain > 0
    }

    def calls_to_wanted(one: Outcome) -> float | None:
        score = wanted.get((one.task, one.answers, one.seed))
        return None if score is None else one.calls_to(score)

    def against(figure: Figure) -> str:
        own, others = by_task(outcomes, arm, figure), by_task(outcomes, reference, figure)
        tasks = sorted(own.keys() & others.keys()) if arm != reference else []
        return _with_interval([others[t] for t in tasks], [own[t] for t in tasks], "+")

    areas, gains, calls, tried, nearly = (
        list(by_task(outcomes, arm, figure).values())
        for figure in (_area, _gain, lambda o: o.calls, lambda o: o.tried, calls_to_wanted)
    )
    nothing = [0.0] * len(areas)
    return [
        arm,
        str(len(areas)),
        _with_interval(nothing, areas),
        against(_area),
        _with_interval(nothing, gains, "+"),
        against(_gain),
        f"{100 * min(gains):+.1f}",
        f"{np.mean(calls):.0f}",
        f"{np.mean(tried):.1f}",
        f"{np.mean(nearly):.0f}" if nearly else "",
    ]


def _area(one: Outcome) -> float:
    return one.area


def _gain(one: Outcome) -> float:
    return one.gain


def _gains_table(outcomes: Sequence[Outcome]) -> str:
    """Held-out score of the start, and each arm's gain, by task, in points."""
    arms = list(dict.fromkeys(o.arm for o in outcomes))
    gains = {arm: by_task(outcomes, arm, _gain) for arm in arms}
    start = {(o.task, o.answers): o.curve[0][1] for o in outcomes}
    rows = [
        [task, answers, f"{100 * before:.1f}"]
        + [f"{100 * gains[arm][key]:+.1f}" if key in gains[arm] else "" for arm in arms]
        for key, before in sorted(start.items())
        for task, answers in [key]
    ]
    return _table(["Task", "Answers", "Start", *arms], rows)


def _with_interval(first: Sequence[float], second: Sequence[float], sign: str = "") -> str:
    """The mean difference in points, with its 95 % interval where there are three tasks."""
    found = compare_means(first, second)
    if found.difference is None:
        return ""
    mean, interval = f"{100 * found.difference:{sign}.1f}", found.interval
    return mean if interval is None else f"{mean} {_shown(interval, sign)}"


def _shown(interval: Interval, sign: str) -> str:
    return f"[{100 * interval.low:{sign}.1f}, {100 * interval.high:{sign}.1f}]"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])
