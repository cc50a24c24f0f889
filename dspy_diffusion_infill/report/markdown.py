"""The report in short, as Markdown for a pull request."""

import difflib
import re
from collections.abc import Iterable

from dspy_diffusion_infill.optimizer.results import DetailedResults
from dspy_diffusion_infill.report.snippet import snippet
from dspy_diffusion_infill.report.story import changed_rows, told_trials
from dspy_diffusion_infill.report.terminal import counts_line, own_scores
from dspy_diffusion_infill.shortening import short

_MOST_KEPT = 50  # edits that are listed


def markdown(results: DetailedResults) -> str:
    """Scores, diffs, the edits that were kept, and how to run it again.

    Texts of the program stand as code, where they are neither markup nor mentions.
    """
    gained, lost = changed_rows(results)
    kept = [one for one in told_trials(results) if one.outcome == "kept"]
    parts = [
        f"## Instructions infilled: {results.score_before:.1%} → {results.score_after:.1%}",
        _table(results),
        f"{len(gained)} rows gained, {len(lost)} rows lost. " + _sentences(results),
    ]
    for name, before in results.instructions_before.items():
        if (after := results.instructions_after[name]) != before:
            title = "Instructions" if name == "self" else f"Instructions of {_code(name)}"
            parts += [f"### {title}", _fenced(_line_diff(before, after), "diff")]
    if kept:
        listed = (
            f"trial {one.trial.number:>4}  {one.change:+.3f}  "
            f"{_one_line(edit.old_text)} → {_one_line(edit.new_text)}"
            for one in kept[-_MOST_KEPT:]
            for edit in (one.trial, *one.trial.also)
        )
        parts += ["### Edits that were kept", _fenced(listed, "text")]
    versions = ", ".join(f"{name} {number}" for name, number in results.versions.items())
    parts += [
        "### Run it again",
        _fenced([snippet(results)], "python"),
        _code(versions) if versions else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(results: DetailedResults) -> str:
    lines = ["| rows | before | after | change |", "|---|---:|---:|---:|"]
    for name, before, after in own_scores(results):
        lines.append(f"| {name} | {before:.1%} | {after:.1%} | {100 * (after - before):+.1f} |")
    return "\n".join(lines)


def _sentences(results: DetailedResults) -> str:
    cost = "" if not results.lm_cost else f", {results.lm_cost:.4f} USD"
    return ". ".join(counts_line(results).splitlines()) + f", {results.lm_tokens:,} tokens{cost}."


def _line_diff(before: str, after: str) -> list[str]:
    """Whole lines: what went, then what came; lines that stay as context."""
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), n=2, lineterm="")
    return [line for line in lines if not line.startswith(("---", "+++", "@@"))]


def _fenced(lines: Iterable[str], language: str) -> str:
    body = "\n".join(lines)
    fence = "`" * max(3, _longest_ticks(body) + 1)
    return f"{fence}{language}\n{body}\n{fence}"


def _one_line(text: str) -> str:
    return "“" + " ".join(short(text).split()) + "”"


def _code(text: str) -> str:
    """A span in which nothing is markup, a mention or a reference."""
    text = " ".join(text.split())
    ticks = "`" * (_longest_ticks(text) + 1)
    return f"{ticks} {text} {ticks}" if "`" in text else f"{ticks}{text}{ticks}"


def _longest_ticks(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)
