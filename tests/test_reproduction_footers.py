"""What is left out of a table is counted below it: rows too long, prompts that were not filled."""

import json
from pathlib import Path
from typing import Any

import dspy
import pytest
from doubles import WordDenoiser
from loopback import loopback
from small_experiment import FilledIn, write_summeval
from test_reproduction_reproduce import PLAIN, run, write_rows
from tiny_denoisers import save_published

from dspy_diffusion_infill.denoisers import load_denoiser
from dspy_diffusion_infill.reproduction.experiment import ModelSpec
from dspy_diffusion_infill.reproduction.experiment_files import parse_experiment
from dspy_diffusion_infill.reproduction.experiment_run import run_experiment
from dspy_diffusion_infill.reproduction.infill_step import infill
from dspy_diffusion_infill.reproduction.models import Models
from dspy_diffusion_infill.reproduction.perplexity import measure_perplexity
from dspy_diffusion_infill.reproduction.tables import Table

SUMMARIES: dict[str, Any] = {
    "task": "summeval",
    "test": {"name": "summeval", "split": "dev[6:]"},
    "shots": {"name": "summeval", "split": "dev[:6]", "num": 2},
    "seeds": [0],
    "measures": ["pearson"],
}


# Rows that do not fit


@pytest.fixture
def dream(tmp_path: Path) -> Path:
    """A random Dream of 96 tokens; a token is a byte."""
    return save_published(tmp_path / "dream", "dream")


def run_sums(tmp_path: Path, spec: ModelSpec) -> Table:
    def solved(n: int) -> dict:
        return {"question": f"What is {n} and {n}?", "answer": f"{n}+{n}\n#### {2 * n}"}

    write_rows(tmp_path / "data/gsm8k/train.jsonl", [solved(n) for n in range(380)])
    write_rows(tmp_path / "data/gsm8k/test.jsonl", [solved(10**n) for n in (1, 30, 40)])
    content = {
        "title": "Sums",
        "task": "gsm8k",
        "test": {"name": "gsm8k", "split": "test"},
        "shots": {"name": "gsm8k", "split": "train", "num": 2},
        "seeds": [0],
        "measures": ["em", "tokens"],
        "max_errors": 0,
        "conditions": [
            {"label": {"Prompt": name}, "model": "dream", "template": "gsm8k", "demos": demos}
            for name, demos in (("0-shot", 0), ("2-shot", 2))
        ],
    }
    return run_experiment(
        parse_experiment(content, name="sums", scale="full"),
        {"dream": spec},
        data=tmp_path / "data",
        output=tmp_path / "out",
        echo=lambda _: None,
    )


def test_rows_too_long_for_a_denoiser_are_counted_and_end_no_run(
    dream: Path, tmp_path: Path
) -> None:
    spec = ModelSpec(lm="diffusion", denoiser=str(dream), options={"max_tokens": 4, "steps": 1})
    table = run_sums(tmp_path, spec)
    zero, two = table.rows
    assert (zero.num_rows, zero.num_failed, zero.num_too_long) == (1, 0, 2)
    assert (two.num_rows, two.num_failed, two.num_too_long) == (0, 0, 3)
    assert zero.ours["tokens"].mean is not None and two.ours["em"].mean is None
    text = table.markdown()
    assert "left out and not counted as failed: 5 (0-shot: 2; 2-shot: 3)." in text
    assert "asked for again by the next run: 0." in text
    header, *lines = table.csv().splitlines()
    assert header.endswith(",rows,failed,too_long,measured_on")
    assert [line.split(",")[-4:-1] for line in lines] == [["1", "0", "2"], ["0", "0", "3"]]


def test_a_longer_context_can_be_given_and_keeps_what_was_measured(
    dream: Path, tmp_path: Path
) -> None:
    spec = {"lm": "diffusion", "denoiser": str(dream), "options": {"max_tokens": 4, "steps": 1}}
    first = run_sums(tmp_path, ModelSpec(**spec))
    longer = run_sums(tmp_path, ModelSpec(**spec, context_length=4096))
    assert [row.num_rows for row in longer.rows] == [3, 3]
    assert sum(row.num_too_long for row in longer.rows) == 0
    lines = (tmp_path / "out/rows.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == first.rows[0].num_rows + 5


def test_models_of_one_checkpoint_share_its_weights_whatever_their_context(dream: Path) -> None:
    spec = ModelSpec(lm="diffusion", denoiser=str(dream))
    longer = ModelSpec(lm="diffusion", denoiser=str(dream), context_length=500)
    models = Models({"own": spec, "longer": longer})
    own, other = (models.denoiser(name) for name in ("own", "longer"))
    assert (own.context_length, other.context_length) == (96, 500)
    assert vars(own)["model"] is vars(other)["model"]
    with pytest.raises(ValueError, match=r"context_length\n.*greater than or equal to 1"):
        ModelSpec(lm="diffusion", context_length=0)


def test_perplexity_is_over_the_rows_that_fit(dream: Path) -> None:
    denoiser = load_denoiser(str(dream))
    options = {"over": "sequence", "num_samples": 2, "seed": 0}
    alone = measure_perplexity(denoiser, ["Rate it."], ["3"], **options)
    assert (alone.num_rows, alone.num_too_long) == (1, 0)
    assert alone.value is not None and alone.standard_error is not None
    prompts, responses = ["x" * 200, "Rate it.", "x" * 100], ["3", "3", "4"]
    some = measure_perplexity(denoiser, prompts, responses, **options)
    assert (some.value, some.num_rows, some.num_too_long) == (alone.value, 1, 2)
    none = measure_perplexity(denoiser, prompts[:1], responses[:1], **options)
    assert (none.value, none.standard_error, none.num_rows, none.num_too_long) == (None, None, 0, 1)


# Prompts that were not found


@pytest.fixture
def summaries(tmp_path: Path) -> Path:
    return write_summeval(tmp_path / "data")


class LeftAsItWas(FilledIn):
    """A search none of whose proposals was worth a trial."""

    def __call__(self, program: dspy.Module, *_: Any) -> dspy.Module:
        self.num_searches += 1
        return program.deepcopy()


def condition(name: str, template: str, **step: Any) -> dict[str, Any]:
    steps = [{"infill": "a", **step}]
    return {"label": {"Prompt": name}, "model": "a", "template": template, "steps": steps}


CONDITIONS = [
    *PLAIN,
    condition("marked", "c_gen_masked"),
    condition("in front", "c_gen", prefix=8),
    condition("windows", "c_gen"),
]


def test_a_masked_prompt_that_was_not_filled_is_said_and_not_measured(
    summaries: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Models, "denoiser", lambda self, name: WordDenoiser(name=name))
    content = {**SUMMARIES, "conditions": CONDITIONS}
    said: list[str] = []
    with loopback(lambda *_: "[RESULT] 3") as server:
        for _ in range(2):
            table = run(
                content, summaries, server.url, tmp_path / "out",
                infill=LeftAsItWas(), echo=said.append,
            )  # fmt: skip
    assert [row.num_rows for row in table.rows] == [12, 0, 0, 12]
    assert [row.ours["pearson"].num_runs for row in table.rows[1:3]] == [0, 0]
    assert (
        "Searches for a prompt: 3. The prompt was left as it was in 1 (windows: 1); nothing was "
        "filled into a masked prompt, which then is not measured, in 2 (marked: 1; in front: 1)."
    ) in table.markdown()
    assert "  a: nothing left to do" in said


def test_the_shipped_optimizer_without_a_usable_proposal_gives_no_figure(
    summaries: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blank = WordDenoiser(words=("!",))  # only punctuation: dropped before any trial
    monkeypatch.setattr(Models, "denoiser", lambda self, name: blank)
    search = {"proposals": 2, "steps": 2, "max_metric_calls": 6}
    content = {**SUMMARIES, "search": search, "conditions": CONDITIONS[1:3]}
    with loopback(lambda *_: "[RESULT] 3") as server:
        table = run(content, summaries, server.url, tmp_path / "out", infill=infill)
    assert [row.num_rows for row in table.rows] == [0, 0]
    assert "is not measured, in 2 (marked: 1; in front: 1)." in table.markdown()


def test_a_prompt_that_was_filled_is_measured(
    summaries: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fluent = WordDenoiser(words=[f"word{k}" for k in range(400)])
    monkeypatch.setattr(Models, "denoiser", lambda self, name: fluent)
    search = {"proposals": 2, "steps": 2, "max_metric_calls": 6}
    content = {**SUMMARIES, "search": search, "conditions": CONDITIONS[1:3]}
    with loopback(lambda *_: "[RESULT] 3") as server:
        table = run(content, summaries, server.url, tmp_path / "out", infill=infill)
    assert [row.num_rows for row in table.rows] == [12, 12]
    assert "The prompt was left as it was in 0; nothing was filled" in table.markdown()
    found = (tmp_path / "out/prompts.jsonl").read_text(encoding="utf-8").splitlines()
    assert all("[[infill" not in json.loads(line)["value"]["judge"] for line in found)
