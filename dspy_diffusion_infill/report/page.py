"""The report as one HTML page that needs no network; in a notebook, the beginning of it."""

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import groupby, zip_longest
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from dspy_diffusion_infill.infiller.leaks import Likeness
from dspy_diffusion_infill.optimizer.results import DetailedResults, ProposalCounts, Trial
from dspy_diffusion_infill.report.charts import (
    HEIGHT,
    WIDTH,
    row_strip,
    score_chart,
    spend_chart,
)
from dspy_diffusion_infill.report.privacy import without_rows
from dspy_diffusion_infill.report.snippet import snippet
from dspy_diffusion_infill.report.story import (
    DROPS,
    OUTCOMES,
    ToldTrial,
    changed_rows,
    changes,
    heat,
    told_trials,
)
from dspy_diffusion_infill.report.terminal import counts_line
from dspy_diffusion_infill.shortening import TEXT_LENGTH, short

MINUS = "\u2212"
_MOST_REFUSED = 200  # dropped proposals that are listed
_MOST_CHANGED = 400  # rows gained and lost that are listed
_MOST_BY_ROW = 400_000  # characters that show single rows, over all trials
_MARKUP = 270  # characters around those of one trial


def page(results: DetailedResults, *, watched: bool = False, rows: bool = True) -> str:
    """The whole page.

    Args:
        results: of a search, ended or not.
        watched: the page asks its server for what is new.
        rows: whether it holds texts of rows.
    """
    results = results if rows else without_rows(results)
    told = told_trials(results)
    gained, lost = changed_rows(results)
    listed = gained[:_MOST_CHANGED], lost[:_MOST_CHANGED]
    by_row, refused = _by_row(told), results.refused[-_MOST_REFUSED:]
    style, script = _file("page.css"), _file("page.js")
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            r=results,
            policy=_policy(style, script),
            style=Markup(style),
            script=Markup(script),
            watched=watched,
            has_texts=rows,
            duration=_duration(results.seconds),
            predictors=[_predictor(results, told, name) for name in results.instructions_before],
            scores=score_chart(results, told),
            spend=spend_chart(results),
            width=WIDTH,
            height=HEIGHT,
            gained=listed[0],
            lost=listed[1],
            more_rows=len(gained) + len(lost) - sum(map(len, listed)),
            told=[_trial_row(one, by_row.get(one.trial.number)) for one in told],
            num_by_row=len(by_row),
            names=sorted({trial.predictor for trial in results.trials}),
            outcomes=OUTCOMES,
            kinds={one.outcome for one in told},
            bars=_bars(results.counts),
            refused=refused,
            dropped_names=sorted({one.predictor for one in refused}),
            reasons=sorted({one.reason.replace("_", " ") for one in refused}),
            snippet=snippet(results),
            used=_shown(results.settings.get("used", {})),
            options=_shown(results.settings.get("options", {})),
            text_length=TEXT_LENGTH,
        )
    )


def notebook_html(results: DetailedResults) -> str:
    """Scores and diff without scripts; the notebook's own colours show through."""
    pairs = results.instructions_before, results.instructions_after
    diffs = [(name, list(changes(text, pairs[1][name]))) for name, text in pairs[0].items()]
    template = _environment().get_template("notebook.html.j2")
    return template.render(r=results, diffs=diffs, lines=counts_line(results).splitlines())


@cache
def _environment() -> Environment:
    """Loads ``*.j2`` of this package; every value in them is escaped, ``value|short`` cuts it."""
    made = Environment(
        loader=PackageLoader("dspy_diffusion_infill.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["short"] = short
    return made


@cache
def _file(name: str) -> str:
    return files("dspy_diffusion_infill.report").joinpath(name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """Only this style and this script count, and nothing is loaded from anywhere."""
    hashed = [
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for text in (style, script)
    ]
    return (
        f"default-src 'none'; style-src 'sha256-{hashed[0]}'; script-src 'sha256-{hashed[1]}'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'"
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    if minutes >= 10:
        return f"{minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


@dataclass(frozen=True, slots=True)
class _HeatSpan:
    """Words in a row that were tried alike; the level of their colour is -3 to 3."""

    text: str
    tries: int
    change: float
    level: int

    @property
    def change_text(self) -> str:
        """The change of the score, with four decimals."""
        return f"{self.change:+.4f}".replace("-", MINUS)


def _predictor(results: DetailedResults, told: Sequence[ToldTrial], name: str) -> dict[str, Any]:
    before, after = results.instructions_before[name], results.instructions_after[name]
    words = heat(results, told, name)
    most = max((abs(word.change) for word in words), default=0.0)
    spans = [
        _HeatSpan("".join(word.text for word in group), tries, change, _level(change, most))
        for (tries, change), group in groupby(words, key=lambda word: (word.tries, word.change))
    ]
    helpful = sorted((one for one in spans if one.change > 0), key=lambda one: -one.change)
    return {
        "name": name,
        "skipped": results.skipped.get(name),
        "is_same": before == after,
        "diff": list(changes(before, after)),
        "after": after,
        "heat": spans if any(word.tries for word in words) else [],
        "most": f"{most:.3g}",
        "best_words": helpful[:3],
    }


def _level(change: float, most: float) -> int:
    return int(math.copysign(math.ceil(abs(change) / most * 3 - 1e-9), change)) if most else 0


@dataclass(frozen=True, slots=True)
class _ByRow:
    """A trial's rows one by one: as strips of colour, their scores, and those near to its edits."""

    strip: Mapping[str, str]
    exact: str
    near: Sequence[str]

    @property
    def size(self) -> int:
        """Characters in the page."""
        parts = (self.exact, *self.near, *self.strip.values())
        return _MARKUP + sum(map(len, parts))


def _by_row(told: Sequence[ToldTrial]) -> dict[int, _ByRow]:
    """The trials whose rows are shown one by one: first those kept, then the latest."""
    shown, room = dict[int, _ByRow](), _MOST_BY_ROW
    for one in sorted(told, key=lambda one: (not one.trial.accepted, -one.trial.number)):
        signs = one.signs()
        kinds = (("same", 0), ("gained", 1), ("lost", -1))
        strip = {name: row_strip(signs, sign) for name, sign in kinds}
        rows = _ByRow(strip, _exact(one.trial), _near(one.trial))
        room -= rows.size
        if room < 0:
            break
        shown[one.trial.number] = rows
    return shown


def _trial_row(told: ToldTrial, by_row: _ByRow | None) -> dict[str, Any]:
    trial = told.trial
    gain = trial.log_likelihood_gain
    edits = (trial, *trial.also)
    near = by_row.near if by_row else _near(trial) if trial.accepted else ()
    return {
        "number": trial.number,
        "outcome": told.outcome,
        "predictors": "\n".join(edit.predictor for edit in edits),
        "edits": [
            {
                "predictor": e.predictor,
                "old": short(e.old_text),
                "new": short(e.new_text),
                "near": row,
            }
            for e, row in zip_longest(edits, near[: len(edits)])
        ],
        "score": f"{trial.score:.3f}",
        "change": f"{told.change:+.3f}".replace("-", MINUS),
        "gained": told.gained,
        "lost": told.lost,
        "num_rows": len(trial.scores),
        "raced": len(trial.rows) < len(told.best),
        "strip": by_row.strip if by_row else None,
        "exact": by_row.exact if by_row else "",
        "gain": "" if gain is None or math.isnan(gain) else f"{gain:+.2f}".replace("-", MINUS),
        "confidence": f"{trial.confidence:.2f}",
        "calls": trial.spent.metric_calls,
    }


def _exact(trial: Trial) -> str:
    """The score of each row that was tried, a run of rows that score alike as one."""
    runs, rest = list[str](), iter(sorted(zip(trial.rows, trial.scores, strict=False)))
    numbered = [(row, row - place, f"{score:.3g}") for place, (row, score) in enumerate(rest)]
    for (_, score), run in groupby(numbered, key=lambda one: one[1:]):
        rows = [row for row, *_ in run]
        places = f"{rows[0]}" if len(rows) == 1 else f"{rows[0]}-{rows[-1]}"
        runs.append(f"{places}={score}")
    return ", ".join(runs)


def _near(trial: Trial) -> list[str]:
    """What each edit of a trial has in common with an example."""
    return [_nearest(likeness) for likeness in trial.nearest]


def _nearest(likeness: Likeness | None) -> str:
    if likeness is None:
        return ""
    what = f"copies a {likeness.kind} of" if likeness.kind else "nearest to"
    row = "an example" if likeness.row is None else f"row {likeness.row} of the trainset"
    shared = f"{likeness.field} “{short(likeness.text)}”, {likeness.similarity:.0%}"
    return f"{what} {row}: {shared}"


def _bars(counts: ProposalCounts) -> list[dict[str, Any]]:
    """What became of the proposals; trials may also come from merges."""
    numbers = {label: getattr(counts, name) for name, label in DROPS.items()}
    numbers = {label: count for label, count in numbers.items() if count}
    numbers |= {"tried": counts.validated, "kept": counts.accepted}
    most = max(1, *numbers.values())
    return [
        {"label": label, "count": count, "share": round(100 * count / most, 1)}
        for label, count in numbers.items()
    ]


def _shown(settings: Mapping[str, Any]) -> dict[str, str]:
    return {
        name: ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        for name, value in settings.items()
    }
