"""``dspy-infill report``: a search as a page or as Markdown, once or while it runs."""

import webbrowser
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class Format(str, Enum):
    """What is written."""

    html = "html"
    md = "md"


def register(app: typer.Typer) -> None:
    """Adds the command to the root."""
    app.command("report")(report)


def report(
    log_dir: Annotated[Path, typer.Argument(help="The log_dir of a search.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File; else LOG_DIR/report.html, or the terminal."),
    ] = None,
    format: Annotated[Format, typer.Option(help="Page, or text for a pull request.")] = Format.html,
    open: Annotated[bool, typer.Option("--open", help="Show it in a browser.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Serve it while the search runs.")] = False,
    rows: Annotated[
        bool, typer.Option("--rows/--no-rows", help="Inputs and answers of rows, or none.")
    ] = True,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of --watch; 0 is a free one.")] = 0,
) -> None:
    """Shows what a search did: instructions, scores, trials, rows, cost."""
    if watch:
        if output is not None or format is not Format.html:
            raise ValueError("--watch serves the page: leave --output and --format out")
        _watch(log_dir, port=port, is_opened=open, rows=rows)
        return
    from dspy_diffusion_infill.report.writing import report_of

    text = report_of(log_dir, format.value, rows=rows)
    if output is None and format is Format.md and not open:
        typer.echo(text.decode(), nl=False)
        return
    path = output or log_dir / f"report.{format.value}"
    try:
        path.write_bytes(text)
    except OSError as error:
        raise ValueError(f"the report cannot be written: {error}") from error
    typer.echo(f"report written to {path}")
    if open:
        webbrowser.open(path.resolve().as_uri())


def _watch(folder: Path, *, port: int, is_opened: bool, rows: bool) -> None:
    try:
        from dspy_diffusion_infill.report.watch import watch
    except ImportError as error:
        raise ValueError(
            f"--watch needs {error.name}: pip install 'dspy-diffusion-infill[watch]'"
        ) from error

    def on_ready(address: str) -> None:
        typer.echo(f"watching {folder} at {address} (Ctrl-C ends it)")
        if is_opened:
            webbrowser.open(address)

    try:
        watch(folder, port=port, on_ready=on_ready, rows=rows)
    except OSError as error:
        raise ValueError(f"--port {port}: {error.strerror or error}") from error
