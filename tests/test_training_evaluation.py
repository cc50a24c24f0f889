import json

import pytest
from tiny_models import MASK, save_causal

from dspy_diffusion_infill.denoisers import load_denoiser
from dspy_diffusion_infill.denoisers.checkpoints.masked_diffusion import Settings
from dspy_diffusion_infill.errors import DataError
from dspy_diffusion_infill.training.diffusion_perplexity import row_perplexity
from dspy_diffusion_infill.training.evaluation import read_evaluation
from dspy_diffusion_infill.training.options import EvaluationOptions
from dspy_diffusion_infill.training.rows import Row

TURNS = (("user", "Name a colour."), ("assistant", "red"), ("user", "Another."))


@pytest.fixture(scope="module")
def denoiser(tmp_path_factory):
    folder = save_causal(tmp_path_factory.mktemp("denoiser"))
    Settings(mask_token=MASK, context_length=256).write(folder)
    return load_denoiser(str(folder), device="cpu", dtype="float32")


def test_held_out_conversations_are_scored_with_all_their_turns(tmp_path, denoiser):
    row = Row((*TURNS, ("assistant", "blue")))
    messages = [{"role": role, "content": content} for role, content in row.turns]
    path = tmp_path / "held_out.jsonl"
    path.write_text(json.dumps({"messages": messages}) + "\n")
    options = EvaluationOptions(held_out=str(path), num_samples=4)
    figures = read_evaluation(options).fitting(denoiser).measure(denoiser, seed=1)
    expected = row_perplexity(denoiser, [row], num_samples=4, seed=1)
    assert figures["nelbo"] == expected.nelbo
    assert figures["perplexity_standard_error"] == expected.standard_error
    last = row_perplexity(denoiser, [Row(row.turns[2:])], num_samples=4, seed=1)
    assert figures["nelbo"] != last.nelbo


def test_what_is_not_asked_for_is_not_measured(denoiser):
    denoiser.model.train()
    assert read_evaluation(EvaluationOptions()).measure(denoiser, seed=0) == {}
    assert denoiser.model.training
    denoiser.model.eval()


def test_the_first_held_out_rows_that_fit_are_measured(tmp_path, denoiser):
    path = tmp_path / "held_out.jsonl"
    texts = ["a" * 300, "blue", "red", "green"]
    path.write_text("".join(json.dumps({"prompt": "Say.", "response": t}) + "\n" for t in texts))
    options = EvaluationOptions(held_out=str(path), held_out_rows=2, num_samples=2)
    found = read_evaluation(options).fitting(denoiser)
    assert [row.response for row in found.pairs] == ["blue", "red"]
    assert found.measure(denoiser, seed=0)["nelbo_num_rows"] == 2
    path.write_text(json.dumps({"prompt": "Say.", "response": texts[0]}) + "\n")
    with pytest.raises(DataError, match="none of 1 rows fits the context_length=256"):
        read_evaluation(options).fitting(denoiser)


def test_held_out_rows_come_from_a_split_of_the_hub_too(monkeypatch, denoiser):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list([{"prompt": "Say.", "response": "blue"}])
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: asked.append((a, k)) or rows)
    options = EvaluationOptions(held_out="a/b", held_out_split="train[5:]", num_samples=2)
    figures = read_evaluation(options).fitting(denoiser).measure(denoiser, seed=0)
    assert figures["nelbo"] > 0
    assert asked == [(("a/b",), {"split": "train[5:]"})]


def test_a_held_out_file_that_is_not_there_is_named_with_its_key(tmp_path):
    with pytest.raises(DataError, match=r"evaluation\.held_out: .*no\.jsonl does not exist"):
        read_evaluation(EvaluationOptions(held_out=str(tmp_path / "no.jsonl")))
