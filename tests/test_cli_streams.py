"""Printing never raises: no result is lost to a narrow encoding or to a reader that has gone."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dspy_diffusion_infill.cli.streams import forgiving_streams

TEXT = "yes → no · désirée 漢字"
PRINTS = f"""
import sys
from rich.console import Console
from dspy_diffusion_infill.cli import app
import typer

@app.app.command("talk")
def talk(file: str):
    for k in range(2000):
        Console().print({TEXT!a})
        typer.echo({TEXT!a})
        print({TEXT!a}, file=sys.stderr)
    open(file, "w").write("paid for")
    print("the end")

app.main()
"""


def talk(file: Path, **environment: str) -> subprocess.Popen:
    command = [sys.executable, "-c", PRINTS, "talk", str(file)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env={**os.environ, **environment}, **pipes)


@pytest.mark.parametrize(
    ("environment", "shown"),
    [
        ({"PYTHONIOENCODING": "cp1252"}, "yes \\u2192 no · désirée".encode("cp1252")),
        ({"PYTHONIOENCODING": "ascii"}, b"yes \\u2192 no \\xb7 d\\xe9sir\\xe9e"),
        (
            {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""},
            b"yes \\u2192 no",
        ),
    ],
)
def test_any_text_can_be_printed_in_any_encoding(
    tmp_path: Path, environment: dict[str, str], shown: bytes
) -> None:
    process = talk(tmp_path / "result", **environment)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err[-500:]
    assert shown in out and out.endswith(b"the end" + os.linesep.encode())
    assert (tmp_path / "result").read_text() == "paid for"


@pytest.mark.parametrize("closed", [["stdout"], ["stderr"], ["stdout", "stderr"]])
def test_a_reader_that_closes_the_pipe_ends_nothing(tmp_path: Path, closed: list[str]) -> None:
    process = talk(tmp_path / "result", PYTHONIOENCODING="utf-8")
    for name in closed:
        stream = getattr(process, name)
        stream.read(10)
        stream.close()
        setattr(process, name, None)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert (tmp_path / "result").read_text() == "paid for"


def test_a_stream_that_is_no_file_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr(sys, "stdout", written)
    before = sys.stderr
    with forgiving_streams():
        assert sys.stdout is written
        print(TEXT)
    assert (sys.stdout, sys.stderr) == (written, before)
    assert written.getvalue() == f"{TEXT}\n"
