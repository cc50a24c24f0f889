"""``dspy-infill mini`` hands its options on; ``reproduce mini`` names it."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dspy_diffusion_infill.cli import app as cli
from dspy_diffusion_infill.reproduction import mini


def test_options_reach_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict] = []
    monkeypatch.setattr(mini, "run_mini", lambda **options: asked.append(options))
    rows, output = tmp_path / "new/rows.json", tmp_path / "out"
    command = ["mini", "--seeds", "2", "--scale", "smoke", "--output", str(output)]
    result = CliRunner().invoke(cli.app, [*command, "--json", str(rows)])
    assert result.exit_code == 0, result.exception
    assert asked == [{"seeds": 2, "scale": "smoke", "output": output, "json": rows}]
    assert rows.parent.is_dir()


def test_the_command_under_its_old_name_is_named() -> None:
    result = CliRunner().invoke(cli.app, ["reproduce", "mini"])
    assert isinstance(result.exception, ValueError)
    assert "a command of its own: dspy-infill mini" in str(result.exception)


@pytest.mark.parametrize("option", ["--seeds", "--json"])
def test_options_of_mini_are_no_options_of_reproduce(option: str) -> None:
    result = CliRunner().invoke(cli.app, ["reproduce", "table1", option, "3"])
    assert result.exit_code == 2 and "No such option" in result.output


def test_rows_hold_null_for_a_perplexity_that_overflowed() -> None:
    shares = dict.fromkeys(("infill_exact_match", "downstream_accuracy", "told_accuracy"), 0.0)
    row = mini.MiniRow(stage="FS", seed=0, perplexity=float("inf"), num_contexts=1, **shares)
    assert json.loads(json.dumps(row.as_json(), allow_nan=False))["perplexity"] is None
