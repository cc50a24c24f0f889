"""The speed benchmark compares the same model on the same batches."""

import argparse

import pytest
from benchmarks.training_speed import KINDS, recipe_of, run, summary
from tiny_models import MASK, save_causal


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft's
def test_all_kinds_teach_the_same_rows_and_begin_with_the_same_loss(tmp_path):
    base = save_causal(tmp_path)
    overrides = [f"model.base={base}", f"model.adapt.mask_token={MASK}", "model.compile=false"]
    options = argparse.Namespace(batch_size=2, steps=2, overrides=overrides)
    assert recipe_of(options).stages[1].masking.window == 0.75  # what the recipe teaches
    found = {kind: run(kind, options) for kind in KINDS}
    assert len({figures["tokens"] for figures in found.values()}) == 1
    # A LoRA adapter begins with no effect; bfloat16 has 8 bits, and other kernels sum otherwise.
    assert found["same batches"]["first_loss"] == pytest.approx(
        found["plain"]["first_loss"], rel=5e-3
    )
    runs = [{"kind": kind, **figures} for kind, figures in found.items()]
    text, ratios = summary(runs)
    assert ratios["plain"] == {"tokens_per_second": 1.0, "peak_gb": 1.0}
    for line, kind in zip(text.splitlines(), KINDS, strict=True):
        assert line.startswith(kind)
        assert f"{found[kind]['tokens_per_second']:.1f} tokens/s" in line
