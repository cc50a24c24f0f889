from pathlib import Path

import pytest
from test_run_files import written
from typer.testing import CliRunner

from dspy_diffusion_infill.cli import app, report_command


def run(*arguments: object):
    return CliRunner().invoke(app.app, ["report", *map(str, arguments)])


def test_the_page_is_written_beside_the_journal(tmp_path: Path):
    written(tmp_path)
    done = run(tmp_path)
    assert done.output.strip() == f"report written to {tmp_path / 'report.html'}"
    assert (tmp_path / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_markdown_goes_to_the_terminal_or_into_a_file(tmp_path: Path):
    written(tmp_path)
    assert run(tmp_path, "--format", "md").output.startswith("## Instructions infilled: 37.5%")
    run(tmp_path, "--format", "md", "-o", tmp_path / "x.md")
    assert (tmp_path / "x.md").read_text(encoding="utf-8").startswith("## Instructions")


def test_texts_of_rows_are_left_out_where_that_is_asked_for(tmp_path: Path):
    written(tmp_path)
    files = [tmp_path / f"{name}.html" for name in ("with", "without")]
    run(tmp_path, "-o", files[0])
    run(tmp_path, "--no-rows", "-o", files[1])
    assert ["Billing" in file.read_text(encoding="utf-8") for file in files] == [True, False]


def test_open_shows_the_file_in_a_browser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    written(tmp_path)
    opened: list[str] = []
    monkeypatch.setattr(report_command.webbrowser, "open", opened.append)
    run(tmp_path, "--open")
    assert opened == [(tmp_path / "report.html").as_uri()]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "holds no run.json"),
        (["--watch", "-o", "x.html"], "leave --output and --format out"),
        (["--watch", "--format", "md"], "leave --output and --format out"),
    ],
)
def test_what_cannot_be_done_is_said(tmp_path: Path, arguments: list[str], message: str):
    assert message in str(run(tmp_path, *arguments).exception)


def test_values_that_no_search_writes_are_a_clear_error(tmp_path: Path):
    written(tmp_path)
    file = tmp_path / "run.json"
    file.write_text(file.read_text().replace('"seconds": ', '"seconds": 1e999, "": '))
    assert "run.json or its events are damaged" in str(run(tmp_path).exception)


def test_a_report_that_cannot_be_written_is_said(tmp_path: Path):
    written(tmp_path)
    assert "cannot be written" in str(run(tmp_path, "-o", tmp_path / "no" / "x.html").exception)
