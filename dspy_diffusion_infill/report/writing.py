"""The report in the form that is asked for, of a search or of its files."""

from os import PathLike
from pathlib import Path

from dspy_diffusion_infill.errors import DataError
from dspy_diffusion_infill.optimizer.results import DetailedResults
from dspy_diffusion_infill.optimizer.run_files import RUN_FILE, read_run
from dspy_diffusion_infill.report.markdown import markdown
from dspy_diffusion_infill.report.page import page


def render(
    results: DetailedResults, kind: str = "html", *, watched: bool = False, rows: bool = True
) -> bytes:
    """The report as ``"html"`` or ``"md"``; half a surrogate pair becomes an escape.

    Args:
        results: of a search, ended or not.
        kind: see above.
        watched: a page asks its server for what is new.
        rows: whether a page holds texts of rows; Markdown never does.
    """
    text = markdown(results) if kind == "md" else page(results, watched=watched, rows=rows)
    return text.encode("utf-8", "backslashreplace")


def write_report(results: DetailedResults, path: str | PathLike[str], *, rows: bool = True) -> Path:
    """Writes Markdown to ``*.md``, the HTML page to any other path; returns the path.

    Args:
        results: of a search, ended or not.
        path: of the file; its folder must exist.
        rows: as for ``render``.
    """
    path = Path(path)
    path.write_bytes(render(results, "md" if path.suffix == ".md" else "html", rows=rows))
    return path


def report_of(
    folder: Path, kind: str = "html", *, watched: bool = False, rows: bool = True
) -> bytes:
    """The report of a search from its ``log_dir``; the rest is as in ``render``.

    Raises:
        DataError: as ``read_run``, and for values that no search writes.
    """
    results = read_run(folder)
    try:
        return render(results, kind, watched=watched, rows=rows)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise DataError(f"{folder / RUN_FILE} or its events are damaged: {error!r:.200}") from error
