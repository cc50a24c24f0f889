import json

import pytest
from tiny_models import MASK, save_causal

from dspy_diffusion_infill.denoisers import load_denoiser
from dspy_diffusion_infill.denoisers.adapter import Settings
from dspy_diffusion_infill.training.diffusion_perplexity import row_perplexity
from dspy_diffusion_infill.training.evaluation import evaluate
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
    figures = evaluate(denoiser, options, seed=1)
    expected = row_perplexity(denoiser, [row], num_samples=4, seed=1)
    assert figures["nelbo"] == expected.nelbo
    assert figures["perplexity_standard_error"] == expected.standard_error
    last = row_perplexity(denoiser, [Row(row.turns[2:])], num_samples=4, seed=1)
    assert figures["nelbo"] != last.nelbo


def test_what_is_not_asked_for_is_not_measured(denoiser):
    denoiser.model.train()
    assert evaluate(denoiser, EvaluationOptions(), seed=0) == {}
    assert denoiser.model.training
    denoiser.model.eval()
