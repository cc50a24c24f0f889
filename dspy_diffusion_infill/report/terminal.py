"""What a person reads after a search: a coloured diff, the scores, what it took."""

import io
import shutil
import sys
from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from dspy_diffusion_infill.optimizer.results import DetailedResults
from dspy_diffusion_infill.report.story import DROPS, changes


def diff(before: str, after: str) -> Text:
    """The new text with what was taken out struck through in red and what was put in green."""
    styles = {"equal": "", "del": "red strike", "ins": "bold green"}
    text = Text()
    for kind, piece in changes(before, after):
        text.append(piece, style=styles[kind])
    return text


def instructions_panel(results: DetailedResults) -> RenderableType:
    """Before and after of every predictor, and the diff between them."""
    panels: list[Panel] = []
    for name, before in results.instructions_before.items():
        after = results.instructions_after[name]
        body = Table.grid(padding=(0, 1))
        body.add_row(Text("before", style="dim"), Text(before))
        body.add_row(Text("after", style="dim"), Text(after))
        body.add_row(Text("diff", style="dim"), diff(before, after))
        title = "instructions" if name == "self" else f"instructions of {name}"
        panels.append(Panel(body, title=title, title_align="left"))
    return Group(*panels)


def summary_table(results: DetailedResults, rows: Sequence[tuple[str, float, float]]) -> Table:
    """Scores before and after: one row for each (name, before, after), in 0..1, shown in %."""
    table = Table(title_justify="left")
    for heading in ("rows", "before", "after", "change"):
        table.add_column(heading, justify="left" if heading == "rows" else "right")
    for name, before, after in rows:
        change = f"{100 * (after - before):+.1f}"
        table.add_row(name, f"{before:.1%}", f"{after:.1%}", change)
    return table


def counts_line(results: DetailedResults) -> str:
    """What became of the proposals, and what it took, in two lines."""
    c = results.counts
    dropped = {label: getattr(c, name) for name, label in DROPS.items()}
    reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items() if count)
    return (
        f"{c.proposed} proposals, {c.validated} validated, {c.accepted} kept"
        + (f"; dropped before any call: {reasons}" if reasons else "")
        + f"\n{results.metric_calls} metric calls, {results.denoiser_passes} denoiser passes, "
        + (f"{results.cache_refreshes} cache refreshes, " if results.cache_refreshes else "")
        + f"{results.seconds:.0f} s"
        + (f", {results.num_failures} runs failed" if results.num_failures else "")
    )


def print_report(
    results: DetailedResults,
    rows: Sequence[tuple[str, float, float]] | None = None,
    *,
    console: Console | None = None,
) -> None:
    """Prints instructions before and after, scores, and counts.

    Args:
        results: ``program.detailed_results``.
        rows: (name, before, after) scores; None is the validation score, and that of the rows that
            were held out.
        console: where to print; None is standard output, on which characters that its encoding
            lacks are written as Python's escapes.
    """
    parts = (
        instructions_panel(results),
        summary_table(results, rows or own_scores(results)),
        counts_line(results),
    )
    if console is not None or Console().encoding.startswith("utf"):
        _print(console or Console(), parts)
        return
    with (captured := Console()).capture() as capture:
        _print(captured, parts)
    encoding = captured.encoding
    sys.stdout.write(capture.get().encode(encoding, "backslashreplace").decode(encoding))


def as_text(results: DetailedResults) -> str:
    """What ``print_report`` prints, without colours, as wide as the terminal is."""
    captured = io.StringIO()
    console = Console(file=captured, width=min(120, shutil.get_terminal_size().columns))
    print_report(results, console=console)
    return captured.getvalue().rstrip()


def own_scores(results: DetailedResults) -> list[tuple[str, float, float]]:
    """(name, before, after) of the valset, and of the rows that were held out."""
    scores = [("validation", results.score_before, results.score_after)]
    if results.holdout_before is not None and results.holdout_after is not None:
        scores.append(("held-out", results.holdout_before, results.holdout_after))
    return scores


def _print(console: Console, parts: Sequence[RenderableType]) -> None:
    for part in parts:
        console.print(part, highlight=False)
