"""``reproduce table2 --scale smoke`` on SummEval: killed in the middle, the table is the same."""

import signal
import threading
import time
import zlib
from collections import Counter
from pathlib import Path

import forked
import pytest
from embedded_pair import loaded_once, needs_embedded_pair
from forked import Program
from loopback import Loopback, loopback, prompt_of
from typer.testing import CliRunner

from dspy_diffusion_infill.cli import app as cli
from dspy_diffusion_infill.reproduction import models

SUMMEVAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "summeval_dev"
FILES = ("table2.md", "table2.csv", "table2_prompts.md")
NUM_THREADS = 2  # of the smoke scale: calls under way at once
JOURNALING = 2.0  # seconds that the answers before the kill have to be written down


def verdict(number: int, body: dict) -> str:
    """Readable under all three templates, and a function of the prompt alone."""
    digest = zlib.crc32(prompt_of(body).encode())
    return f"It is so. [RESULT] {1 + digest % 9 / 2}"


def command(output: Path, url: str) -> list[str]:
    """What a user would type, with the LM of the loopback server."""
    options = ["--scale", "smoke", "--data", str(SUMMEVAL), "--output", str(output)]
    return ["reproduce", "table2", *options, "--lm", "openai/loopback", "--api-base", url]


def start(output: Path, url: str) -> Program:
    """The command in a process that a test can kill."""
    program = output.with_name("program.py")
    program.write_text("from dspy_diffusion_infill.cli import main\nmain()\n", encoding="utf-8")
    words = [str(program), *command(output, url)]
    return forked.start(words, output.with_name("printed"), cwd=output.parent)


def finish(output: Path, url: str) -> str:
    """The command in this process, where the denoiser is loaded once."""
    result = CliRunner().invoke(cli.app, command(output, url))
    assert result.exit_code == 0, result.exception
    return result.output


def killed_at(num_calls: int, output: Path) -> Loopback:
    """A run that is killed when it makes that call; it and all later ones get no answer."""
    programs: list[Program] = []
    gone = threading.Event()

    def killing(number: int, body: dict) -> str:
        if number < num_calls:
            return verdict(number, body)
        if number == num_calls:
            time.sleep(JOURNALING)
            programs[0].process.kill()
            programs[0].wait()
            gone.set()
        gone.wait(60)
        return ""

    with loopback(killing) as server:
        programs.append(start(output, server.url))
        assert programs[0].wait(900) == -signal.SIGKILL, programs[0].stderr
    return server


@pytest.mark.slow
@needs_embedded_pair
@pytest.mark.skipif(not SUMMEVAL.is_dir(), reason="needs the shared rows of SummEval")
def test_table_2_killed_half_way_and_resumed_is_the_same_and_asks_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "load_denoiser", loaded_once)
    with loopback(verdict) as server:
        said = finish(tmp_path / "whole", server.url)
    whole = [prompt_of(body) for body in server.bodies]
    assert "12 cells, at most:" in said
    assert max(Counter(whole).values()) == 1
    half = len(whole) // 2

    first = [prompt_of(body) for body in killed_at(half, tmp_path / "out").bodies]
    partial = (tmp_path / "out/table2.md").read_text()
    assert 0 < partial.count("| openai/loopback |") < 12
    assert partial.count("| not run yet |") == 12 - partial.count("| openai/loopback |")
    with loopback(verdict) as server:
        finish(tmp_path / "out", server.url)
    second = [prompt_of(body) for body in server.bodies]

    for name in FILES:
        assert (tmp_path / "out" / name).read_text() == (tmp_path / "whole" / name).read_text()
    answered, lost = first[:half], first[half:]
    assert 1 <= len(lost) <= NUM_THREADS
    assert sorted(answered + second) == sorted(whole)
