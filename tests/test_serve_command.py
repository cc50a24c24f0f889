import re
from pathlib import Path

import pytest
from served_denoiser import with_a_kill
from tiny_denoisers import save_published
from typer.testing import CliRunner

pytest.importorskip("fastapi", reason="needs the extra serve")
pytest.importorskip("prometheus_client", reason="needs the extra serve")

from dspy_diffusion_infill.cli import app
from dspy_diffusion_infill.serving import server


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The command, up to where it would listen; ``serve`` is told to end at once."""
    monkeypatch.delenv("DSPY_INFILL_TOKEN", raising=False)
    seen = {}

    def serve(denoiser, *, on_ready, **options) -> None:
        seen.update(options)
        on_ready("http://127.0.0.1:1")

    monkeypatch.setattr(server, "serve", serve)
    folder = save_published(tmp_path / "llada", "llada")
    return lambda *more: (CliRunner().invoke(app.app, ["serve", str(folder), *more]), seen)


def test_a_token_is_made_and_printed_where_none_is_given(run):
    done, seen = run()
    token = re.search(r"^DSPY_INFILL_TOKEN=(\S{40,})$", done.output, re.MULTILINE)
    assert token is not None and seen["token"] == token[1]
    assert (seen["host"], seen["port"]) == ("127.0.0.1", 8100)


def test_a_given_token_is_not_printed(run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DSPY_INFILL_TOKEN", "from-the-environment")
    done, seen = run("--max-body", "1")
    assert seen["token"] == "from-the-environment" not in done.output
    assert seen["limits"].body_bytes == 2**20
    assert isinstance(run("--token", "short")[0].exception, ValueError)


def test_options_of_the_checkpoint_reach_it(run):
    for option, value in (("compile", "fast"), ("quantization", "2bit"), ("dtype", "int8")):
        error = run(f"--{option}", value, "--device", "cpu")[0].exception
        assert isinstance(error, ValueError) and f"got {option}='{value}'" in str(error)


@pytest.mark.slow
def test_a_replica_that_is_killed_loses_nothing(tmp_path: Path):
    """Two processes of the command; the other one ends on SIGTERM."""
    found = with_a_kill(tmp_path, clients=8, requests=48)
    assert (found.answered, found.twice) == (48, 0)
    assert found.before < 48
    assert found.survivor == -15
