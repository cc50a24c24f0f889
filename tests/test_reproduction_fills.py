"""What checkpoints fill in: a tiny LLaDA fills every mask with end-of-text (paper, Figure 2)."""

import json
from pathlib import Path

import dspy
import pytest
import torch
from doubles import rule_lm
from safetensors.torch import load_file, save_file
from tiny_denoisers import save_published
from tiny_models import byte_tokenizer

from dspy_diffusion_infill.denoisers import load_denoiser
from dspy_diffusion_infill.reproduction.experiment import ModelSpec, SearchSpec
from dspy_diffusion_infill.reproduction.infill_step import InfillStep, infill
from dspy_diffusion_infill.reproduction.reproduce import reproduce
from dspy_diffusion_infill.reproduction.tasks import Gsm8kTask

END = "<|endoftext|>"
TASK = Gsm8kTask()
SHOTS = [
    dspy.Example(question=f"{n} and {n}?", answer=f"#### {2 * n}", number=str(2 * n)).with_inputs(
        "question"
    )
    for n in range(2, 5)
]


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its blocks are zero and its embeddings ones, so the head's only row that is not zero wins."""
    folder = save_published(tmp_path_factory.mktemp("public"), "llada", max_sequence_length=512)
    path = folder / "model.safetensors"
    state = {name: torch.zeros_like(values) for name, values in load_file(path).items()}
    for name in ("wte", "ln_f"):
        state[f"model.transformer.{name}.weight"] += 1
    end = byte_tokenizer().convert_tokens_to_ids(END)
    state["model.transformer.ff_out.weight"][end] += 1
    save_file(state, path, metadata={"format": "pt"})
    return folder


def write_gsm8k(folder: Path) -> Path:
    (folder / "gsm8k").mkdir(parents=True)
    rows = [{"question": f"{n} and {n}?", "answer": f"#### {2 * n}"} for n in range(380)]
    text = "\n".join(map(json.dumps, rows))
    (folder / "gsm8k/train.jsonl").write_text(text, encoding="utf-8")
    return folder


def test_figure_2_counts_what_is_filled_in_and_shows_it(public: Path, tmp_path: Path) -> None:
    data, output = write_gsm8k(tmp_path / "data"), tmp_path / "out"
    (table,) = reproduce(
        "figure2", scale="smoke", data=data, output=output, checkpoints=[f"llada={public}"]
    )
    (row,) = table.rows
    assert {name: one.mean for name, one in row.ours.items()} == {
        "end_of_text": 100,
        "only_end_of_text": 100,
    }
    assert row.num_rows == 2 and str(public) in row.model
    written = (output / "figure2.md").read_text(encoding="utf-8")
    assert "| LLaDA (Public) | 100.0 | 100.0 | 100.0 | 100.0 |" in written
    prompts = (output / "figure2_prompts.md").read_text(encoding="utf-8")
    assert prompts.count(END * 128 + "Q: {question}\nA:") == 2


def test_figure_2_asks_no_lm(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"figure2 asks no LM: use --model"):
        reproduce("figure2", lm="openai/x", output=tmp_path)


@pytest.mark.parametrize(
    ("forbid_special", "filters", "expected"),
    [
        (False, False, END * 6 + "Q: {question}\nA:"),
        (False, True, "Q: {question}\nA:"),
        (True, True, None),
    ],
    ids=["the procedure alone", "filters", "as elsewhere"],
)
def test_a_prefix_of_end_of_text_is_measured_where_nothing_is_forbidden(
    public: Path, tmp_path: Path, forbid_special: bool, filters: bool, expected: str | None
) -> None:
    step = InfillStep(
        task=TASK,
        denoiser=load_denoiser(str(public)),
        prefix=6,
        search=SearchSpec(steps=6, proposals=1, forbid_special=forbid_special, filters=filters),
        threads=1,
        seed=0,
        folder=tmp_path,
    )
    program = TASK.program("gsm8k", ModelSpec(lm="a"))
    lm, engine = rule_lm(lambda prompt: "6")
    with dspy.context(lm=lm, adapter=TASK.adapter(program)):
        better = infill(program, SHOTS, step)
    (predictor,) = better.predictors()
    found = predictor.signature.instructions
    assert found == expected if expected else END not in found
    if not filters:
        assert any(prompt.lstrip().startswith(END * 6 + "Q: 2 and 2?") for prompt in engine.prompts)


@pytest.mark.hub
@pytest.mark.gpu
def test_the_published_llada_fills_most_of_a_masked_prefix_with_end_of_text(tmp_path: Path) -> None:
    (table,) = reproduce("figure2", output=tmp_path)
    shares = {row.condition.label["Checkpoint"]: row.ours["end_of_text"].mean for row in table.rows}
    assert shares["LLaDA (Public)"] > 50 > shares["LLaDA (FS+RO)"]
