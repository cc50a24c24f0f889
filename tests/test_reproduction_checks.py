"""What ``reproduce --check`` says on a machine that has nothing, and on one that has everything."""

import subprocess
import sys
from pathlib import Path

import pytest
from embedded_pair import needs_embedded_pair
from loopback import loopback
from test_reproduction_fills import write_gsm8k
from typer.testing import CliRunner, Result

from dspy_diffusion_infill.cli import app as cli
from dspy_diffusion_infill.errors import MissingPiecesError
from dspy_diffusion_infill.reproduction import check_machine, checks
from dspy_diffusion_infill.reproduction.check_files import hub
from dspy_diffusion_infill.reproduction.checks import check
from dspy_diffusion_infill.reproduction.experiment_files import TABLES
from dspy_diffusion_infill.reproduction.reproduce import reproduce
from dspy_diffusion_infill.reproduction.targets import make_target

ROOT = Path(__file__).resolve().parent.parent
LLADA = "hf download GSAI-ML/LLaDA-8B-Instruct"
TRAIN = "dspy-infill train {0}-lora --output runs/{0}"
SUMMEVAL = ".to_json('data/summeval/test.jsonl')"
GSM8K = ".to_json('data/gsm8k/train.jsonl')"
COMMANDS = {
    "table1": [GSM8K, LLADA, "hf download Dream-org/", "--context-length dream="],
    "table2": [SUMMEVAL, LLADA, TRAIN.format("llada-fs"), TRAIN.format("dream-fs-ro")],
    "table3": ["'data/biggen/human_eval.jsonl'", SUMMEVAL, TRAIN.format("llada-ro")],
    "table4": [
        SUMMEVAL,
        "vllm serve prometheus-eval/prometheus-13b-v1.0 --port 8001 --chat-template ",
        "vllm serve prometheus-eval/prometheus-8x7b-v2.0 --port 8002 --chat-template ",
        "vllm serve meta-llama/Llama-3.1-8B-Instruct --port 8003",
        "vllm serve Qwen/Qwen2.5-14B-Instruct --port 8004",
    ],
    "table7": ["'data/hover/dev.json'", "dspy-infill hover-corpus DUMP OUT", LLADA],
    "figure2": [GSM8K, LLADA, "hf download Dream-org/"],
    "figure4": [GSM8K, SUMMEVAL, TRAIN.format("llada-ro")],
    "figure5": [SUMMEVAL, LLADA, TRAIN.format("llada-fs")],
    "figure6": [GSM8K, TRAIN.format("dream-fs-ro"), "--context-length dream="],
}


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, no GPU, no checkpoint in the cache, an empty working folder."""
    monkeypatch.setattr(checks, "answers_of", lambda urls: dict.fromkeys(urls))
    monkeypatch.setattr(check_machine, "free_gpu_gib", lambda: 0.0)
    monkeypatch.setattr(hub, "is_cached", lambda name: False)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)


def asked(*options: str) -> Result:
    return CliRunner().invoke(cli.app, ["reproduce", *options])


@pytest.mark.parametrize("table", TABLES)
def test_each_missing_piece_is_named_with_its_command(table: str, bare: None) -> None:
    found = check(make_target(table))
    lines = [line for line in found.lines() if line.startswith("missing: ")]
    for command in COMMANDS[table]:
        assert sum(command in line for line in lines) == 1, command
    assert any(line.startswith("missing: a GPU with ") for line in lines)
    assert len(lines) == len(found.missing) == len({one.what for one in found.missing})
    assert found.target.measured == ()
    assert all(row.condition.not_run.startswith("missing: ") for row in found.target.rows)
    assert all(found.hours[row.number] for row in found.target.rows)


def test_the_command_says_it_without_torch_and_exits_with_3(tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.argv[1:] = ['reproduce', 'figure2', "
        "'--data', 'none', '--model', 'llada=none', '--models', 'llada', '--check']\n"
        "from dspy_diffusion_infill.cli import main\ntry:\n    main()\n"
        "finally:\n    assert not {'torch', 'transformers', 'litellm'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 3, done.stderr
    assert done.stdout.startswith("1. LLaDA (Public): about 0.039 GPU hours; cannot run\n2. ")
    assert "missing: the checkpoint llada, no folder none (rows 1): give another" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_cannot_begin_says_so_and_spends_nothing(bare: None, tmp_path: Path) -> None:
    with pytest.raises(MissingPiecesError, match="no row can run:\nmissing: the data set openai/"):
        reproduce("figure2", output="out")
    result = asked("figure2", "--output", "out")
    assert (result.exit_code, (tmp_path / "out").exists()) == (3, False)


@needs_embedded_pair
def test_where_nothing_is_missing_the_code_is_0_and_no_lm_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = write_gsm8k(Path("data")) / "gsm8k/train.jsonl"
    rows.with_name("test.jsonl").write_bytes(rows.read_bytes())
    with loopback(lambda *_: "1", models=["served"]) as server:
        options = ["table1", "--scale", "smoke", "--data", "data", "--api-base", server.url]
        result = asked(*options, "--check", "--lm", "hosted_vllm/served")
        assert (result.exit_code, server.bodies) == (0, []), result.output
        other = asked(*options, "--check", "--lm", "hosted_vllm/other")
    assert other.exit_code == 3
    assert f"the server at {server.url} serves served (rows 1-6): serve other at " in other.output


def test_rows_over_the_budget_and_rows_that_are_not_asked_for_say_why(bare: None) -> None:
    target = make_target("table2", rows="1-3,5", models="llada", budget_hours=13.5)
    assert [row.number for row in target.measured] == [1, 2, 3, 5]
    found = check(target)
    # Rows that lack something take none of the budget.
    assert {row.condition.not_run[:9] for row in found.target.rows[:3]} == {"missing: "}
    hours = {number: (6.0, 6.0) for number in (1, 2, 3, 5)}
    over = checks._over_budget(target, hours, {})
    assert over == dict.fromkeys((3, 5), "over the budget of 13.5 GPU hours")
    lines = list(found.lines())
    assert lines[3].endswith("C-gen Infill: no GPU hours; not run: not asked for")


def test_table_2_takes_300_hours_and_three_times_as_many_with_all_retries(bare: None) -> None:
    """The arithmetic of docs/evaluation.md: 1,440 summaries of 3 seeds, 128 passes each."""
    target = make_target("table2", rows="5", data="none")
    ((expected, most),) = filter(None, check(target).hours.values())
    tokens = 1041 / 4 + (2439 + 345 + 308) / 4 + 128  # template, row, answer; rubric: some 170
    least = 3 * 1440 * 128 * 2 * 8e9 * tokens / 4e14 / 3600
    assert least < expected < 1.25 * least
    assert most == pytest.approx(3 * expected)
