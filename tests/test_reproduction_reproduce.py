"""Whole experiments on rows of our own and a loopback server, checked against a plain count."""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from doubles import WordDenoiser
from loopback import loopback, prompt_of
from small_experiment import FilledIn, Infill, infilled_by, run_small, specs, write_summeval

from dspy_diffusion_infill.errors import DataError, ExperimentError
from dspy_diffusion_infill.reproduction import perplexity as perplexity_module
from dspy_diffusion_infill.reproduction.experiment_files import parse_experiment
from dspy_diffusion_infill.reproduction.experiment_run import run_experiment
from dspy_diffusion_infill.reproduction.models import Models
from dspy_diffusion_infill.reproduction.perplexity import GoldPerplexity
from dspy_diffusion_infill.reproduction.reproduce import reproduce, train_missing
from dspy_diffusion_infill.reproduction.tables import Table
from dspy_diffusion_infill.reproduction.targets import make_target

PLAIN = [{"label": {"Prompt": "C-gen"}, "model": "a", "template": "c_gen"}]


@pytest.fixture(autouse=True)
def no_denoiser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Models, "denoiser", lambda self, name: WordDenoiser(name=name))


def write_rows(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")


def run(
    content: dict,
    data: Path,
    url: str,
    output: Path,
    *,
    infill: Infill | None = None,
    echo: Callable[[str], None] = lambda _: None,
) -> Table:
    experiment = parse_experiment({"title": "Own", **content}, name="own", scale="full")
    with infilled_by(infill or FilledIn()):
        return run_experiment(experiment, specs(url), data=data, output=output, echo=echo)


# GSM8K

SUMS = {
    "name": "gsm8k",
    "task": "gsm8k",
    "test": {"name": "gsm8k", "split": "test"},
    "shots": {"name": "gsm8k", "split": "train", "num": 2},
    "seeds": [0],
    "measures": ["em", "em_strict", "tokens"],
}


@pytest.fixture
def sums(tmp_path: Path) -> Path:
    def solved(n: int) -> dict:
        return {"question": f"What is {n} and {n}?", "answer": f"{n}+{n}\n#### {2 * n:,}"}

    write_rows(tmp_path / "data/gsm8k/train.jsonl", [solved(n) for n in range(380)])
    write_rows(tmp_path / "data/gsm8k/test.jsonl", [solved(n) for n in range(1000, 1004)])
    return tmp_path / "data"


def adds(number: int, body: dict) -> str:
    """Right and strict, right and flexible, wrong, and no number at all."""
    n = int(re.findall(r"What is (\d+)", prompt_of(body))[-1])
    answers = [f"#### {2 * n}", f"It is ${2 * n:,}.", "#### 7", "I do not know."]
    return answers[n % 4]


def test_gsm8k_is_scored_by_both_rules_and_demos_are_counted(sums: Path, tmp_path: Path) -> None:
    conditions = [
        {"label": {"Prompt": name}, "model": "a", "template": "gsm8k", "demos": demos}
        for name, demos in (("plain", 0), ("ICL", 2))
    ]
    content = {key: value for key, value in SUMS.items() if key != "name"}
    with loopback(adds) as server:
        table = run({**content, "conditions": conditions}, sums, server.url, tmp_path / "out")
        lengths = [-(-len(prompt_of(body)) // 4) for body in server.bodies]
    for row in table.rows:
        assert (row.ours["em"].mean, row.ours["em_strict"].mean) == (50, 25)
    assert sorted(lengths)[:4] == [7, 7, 7, 7]
    assert table.rows[0].ours["tokens"].mean == 7
    assert table.rows[1].ours["tokens"].mean == pytest.approx(sum(sorted(lengths)[4:]) / 4, abs=1)
    assert "Answers: 8, of which 2 hold no number and count as wrong." in table.markdown()
    assert "Measured on 4 of 4 rows of gsm8k/test.jsonl (test); 2 shots of" in table.markdown()


def test_more_demos_than_shots_are_refused(sums: Path, tmp_path: Path) -> None:
    condition = {"label": {}, "model": "a", "template": "gsm8k", "demos": 3}
    content = {key: value for key, value in SUMS.items() if key != "name"}
    with loopback(adds) as server:
        with pytest.raises(ValueError, match="3 demos are asked for, and there are 2 shots"):
            run({**content, "conditions": [condition]}, sums, server.url, tmp_path / "out")
        assert server.bodies == []


# HoVer

CLAIMS: dict[str, Any] = {
    "task": "hover",
    "test": {"name": "hover_mini", "split": "dev"},
    "shots": {"name": "hover_mini", "split": "dev", "num": 1},
    "seeds": [0],
    "measures": ["recall", "f1", "label_accuracy"],
    "conditions": [{"label": {"Model": "A"}, "model": "a"}],
    "pages_per_hop": 1,
}


@pytest.fixture
def claims(tmp_path: Path) -> Path:
    folder = tmp_path / "data/hover/hotpot_mini"
    pages = {"Rain": "Rain falls in Oslo.", "Snow": "Snow falls in Bergen.", "Sun": "Sun shines."}
    write_rows(folder / "corpus.jsonl", [{"title": t, "text": text} for t, text in pages.items()])
    rows = [
        {
            "claim": f"{first} falls and {second} too.",
            "supporting_facts": [{"key": first, "value": 0}, {"key": second, "value": 0}],
            "label": label,
        }
        for first, second, label in (("Rain", "Snow", 1), ("Snow", "Rain", 0))
    ]
    path = folder / "hover_dev_covered_claims.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return tmp_path / "data"


def asks_for_snow(number: int, body: dict) -> str:
    prompt = prompt_of(body)
    if "[[ ## query ## ]]" in prompt:
        return "[[ ## query ## ]]\nSnow in Bergen\n\n[[ ## completed ## ]]"
    name = next(n for n in ("verdict", "more_notes", "notes") if f"`[[ ## {n} ## ]]`" in prompt)
    value = "supported" if name == "verdict" else "It rains."
    return f"[[ ## {name} ## ]]\n{value}\n\n[[ ## completed ## ]]"


def test_hover_is_scored_on_retrieval_and_label(claims: Path, tmp_path: Path) -> None:
    with loopback(asks_for_snow) as server:
        table = run(CLAIMS, claims, server.url, tmp_path / "out")
    (row,) = table.rows
    assert row.num_rows == 2
    assert row.ours["recall"].mean is not None and 0.5 <= row.ours["recall"].mean <= 1
    assert row.ours["label_accuracy"].mean == 0.5
    assert "Claims: 2; labels that could not be read and count as wrong: 0." in table.markdown()


def test_hover_without_a_corpus_says_what_to_give(claims: Path, tmp_path: Path) -> None:
    (claims / "hover/hotpot_mini/corpus.jsonl").unlink()
    with loopback(asks_for_snow) as server:
        with pytest.raises(DataError, match=r"as corpus\s+\(--corpus\), or as corpus\.jsonl in"):
            run(CLAIMS, claims, server.url, tmp_path / "out")
        assert server.bodies == []


# Perplexity, notes, files


def test_perplexity_is_asked_for_once_and_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, asked = write_summeval(tmp_path / "data"), []

    def perplexity(denoiser, prompts, responses, *, over, num_samples, seed) -> GoldPerplexity:
        asked.append((denoiser, len(prompts), responses[0], num_samples, seed))
        assert all(prompt.endswith("numerical score (1-5).") for prompt in prompts)
        return GoldPerplexity(4.0 + seed, 0.3 + seed / 10, len(prompts) - seed, seed)

    content = {
        "task": "summeval",
        "test": {"name": "summeval", "split": "dev[6:]"},
        "shots": {"name": "summeval", "split": "dev[:6]", "num": 2},
        "seeds": [0, 1],
        "measures": ["perplexity"],
        "perplexity_rows": 3,
        "perplexity_samples": 4,
        "conditions": PLAIN,
    }
    monkeypatch.setattr(perplexity_module, "measure_perplexity", perplexity)
    with loopback(lambda *_: 500) as server:
        tables = [run(content, data, server.url, tmp_path / "out") for _ in range(2)]
        assert server.bodies == []
    assert [entry[1:] for entry in asked] == [
        (3, "[RESULT] 3.5", 4, 0),
        (3, "[RESULT] 3.5", 4, 1),
    ]
    text = tables[1].markdown()
    assert "| C-gen | 4.50 ± 0.71 (SE 0.25) | – |" in text
    assert "left out of perplexity: 1 (C-gen: 1)." in text
    header, line = tables[1].csv().splitlines()
    assert header.startswith("Prompt,perplexity,perplexity_std,perplexity_runs,perplexity_se,")
    assert line.split(",")[4] == "0.25"
    assert "perplexity on the first 3 of them, with 4 draws of masks each." in text
    assert "shots of" not in text and "Prompts proposed" not in text


def test_a_table_does_not_depend_on_where_the_data_lie(tmp_path: Path) -> None:
    texts = []
    for place in ("one", "another/and deeper"):
        data = write_summeval(tmp_path / place / "summeval")
        with loopback(lambda *_: "[RESULT] 3") as server:
            table = run_small(data.parent, tmp_path / place / "out", server.url)
        texts.append(table.markdown())
    assert texts[0] == texts[1]
    assert "rows of summeval/outputs.jsonl (dev[6:]); 2 shots of summeval/outputs.jsonl" in texts[0]
    assert "Prompts proposed by: a = a-denoiser." in texts[0]


def test_a_run_says_what_it_will_take_and_what_it_took(tmp_path: Path) -> None:
    said: list[str] = []
    data = write_summeval(tmp_path / "data")
    content = {
        "task": "summeval",
        "test": {"name": "summeval", "split": "dev[6:]"},
        "shots": {"name": "summeval", "split": "dev[:6]", "num": 2},
        "seeds": [0],
        "measures": ["pearson"],
        "judge": {"retries": 0},
        "conditions": PLAIN,
    }
    with loopback(lambda *_: "[RESULT] 3") as server:
        for _ in range(2):
            run(content, data, server.url, tmp_path / "out", echo=said.append)
    first, second = said[: len(said) // 2], said[len(said) // 2 :]
    assert first[0] == "Own (full scale): 1 cells, at most:"
    assert first[1].startswith("  a: 12 calls, ")
    assert second[1] == "  a: nothing left to do"
    assert "12 calls made" in first[-1] and "; 0 calls made" in second[-1]
    # A judge that always says 3 has no correlation.
    assert "| C-gen | – | – |" in first[-2]


# Options


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"table": "mini"}, "mini is a command of its own: dspy-infill mini"),
        ({"table": "table9"}, "table must be one of table1, table2, table3"),
        ({"corpus": "pages.jsonl"}, "corpus .* is what HoVer searches, and table1 is not on HoVer"),
        ({"api_base": "http://localhost:1"}, "api_base is the address of an LM: give lm too"),
        ({"checkpoints": ["nobody=x"]}, "model must be one of llada, .* got 'nobody'"),
        (
            {"checkpoints": ["prometheus-13b=x"]},
            "table1 does not use the denoiser of 'prometheus-13b' .* it uses those of dream, llada",
        ),
        (
            {"checkpoints": ["llama-8b=x"], "table": "table4", "lm": "openai/x"},
            "table4 does not use the denoiser of 'llama-8b'",
        ),
        ({"context_lengths": ["dream"]}, "given as NAME=TOKENS, got 'dream'"),
        ({"context_lengths": ["dream=0"]}, "given as NAME=TOKENS, got 'dream=0'"),
        ({"context_lengths": ["llada-ro=9"]}, "table1 does not use the denoiser of 'llada-ro'"),
        ({"rows": "1,7"}, "rows .* ranges of 1..6, such as 1-3,6, got '7'"),
        ({"rows": "3-2"}, "rows .* got '3-2'"),
        ({"models": "llada-ro"}, "those that table1 measures, llada, dream; got 'llada-ro'"),
        ({"rows": "1", "models": "dream"}, "leave no row of table1"),
        ({"budget_hours": 0.0}, "must be above 0, got 0"),
        ({"budget_hours": float("nan")}, "must be above 0, got nan"),
        ({"budget_hours": 5.0, "scale": "smoke"}, "no model here has a known size"),
        ({"train": True}, "table1 uses no checkpoint that is trained here"),
        ({"serve": True}, "table1 asks no LM that is served here"),
        ({"serve": True, "table": "table4", "lm": "openai/x"}, "table4 asks no LM that is served"),
    ],
)
def test_an_option_that_means_nothing_for_the_table_is_refused(
    tmp_path: Path, options: dict, problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        reproduce(**{"table": "table1", "output": tmp_path / "out", **options})
    assert not (tmp_path / "out").exists()


def test_missing_checkpoints_are_trained_in_processes_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs/llada-fs/stages").mkdir(parents=True)
    commands: list[list[str]] = []

    def called(command: list[str], *, check: bool) -> subprocess.CompletedProcess:
        commands.append(command[1:])
        return subprocess.CompletedProcess(command, int("llada-fs-lora" in command))

    monkeypatch.setattr(subprocess, "run", called)
    target = make_target("table7", train=True)
    with pytest.raises(ExperimentError, match=r"the training of llada-fs failed: .* --resume"):
        train_missing(target)
    training = ["-m", "dspy_diffusion_infill.training"]
    assert commands == [
        [*training, "llada-fs-lora", "--output", "runs/llada-fs", "--resume"],
    ]
    train_missing(make_target("table7", train=True, models="llada,llada-ro"))
    assert commands[1:] == [[*training, "llada-ro-lora", "--output", "runs/llada-ro"]]
