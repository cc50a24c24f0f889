"""The speed benchmark compares the same model on the same batches."""

import argparse

import pytest
from benchmarks import training_speed
from benchmarks.training_speed import KINDS, recipe_of, run, summary
from tiny_models import MASK, save_causal


def watch_the_head(monkeypatch) -> list[int]:
    """How many positions the vocabulary head scores in each pass, of all models loaded from now."""
    scored, load, load_plain = [], training_speed.load_trainable, training_speed.plain_base

    def watch(model):
        head = model.get_output_embeddings()
        head.register_forward_hook(lambda _head, _in, logits: scored.append(logits[..., 0].numel()))

    def load_watched(recipe, folder):
        trainable = load(recipe, folder)
        watch(trainable.checkpoint.model)
        return trainable

    def load_plain_watched(base, dtype):
        model, tokenizer = load_plain(base, dtype)
        watch(model)
        return model, tokenizer

    monkeypatch.setattr(training_speed, "load_trainable", load_watched)
    monkeypatch.setattr(training_speed, "plain_base", load_plain_watched)
    return scored


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft's
def test_ours_scores_masked_positions_and_plain_scores_all(tmp_path, monkeypatch):
    base = save_causal(tmp_path)
    overrides = [f"model.base={base}", f"model.adapt.mask_token={MASK}", "model.compile=false"]
    options = argparse.Namespace(batch_size=3, steps=1, overrides=overrides)
    scored, draw, batches = watch_the_head(monkeypatch), training_speed.sequences, []

    def sequences(*args, **kwargs):
        batches.append(draw(*args, **kwargs))
        return batches[-1]

    monkeypatch.setattr(training_speed, "sequences", sequences)
    for kind in ("same batches", "plain"):
        run(kind, options)
    ours, plain = batches
    assert [s.input_ids.tolist() for s in ours] == [s.input_ids.tolist() for s in plain]
    num_masked = sum(int(s.draw.masked.sum()) for s in ours)
    num_padded = len(plain) * max(len(s.input_ids) for s in plain)
    assert scored == [num_masked] * 2 + [num_padded] * 2  # two passes over one batch
    assert num_masked < num_padded / 2


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft's
@pytest.mark.parametrize(("bf16", "rel"), [("true", 5e-3), ("false", 1e-4)])
def test_all_kinds_train_on_the_same_rows_and_begin_with_the_same_loss(tmp_path, bf16, rel):
    base = save_causal(tmp_path)
    overrides = [f"model.base={base}", f"model.adapt.mask_token={MASK}", "model.compile=false"]
    overrides += [f"model.bf16={bf16}"]
    options = argparse.Namespace(batch_size=2, steps=2, overrides=overrides)
    assert recipe_of(options).stages[1].masking.window == 0.75  # as in the recipe
    found = {kind: run(kind, options) for kind in KINDS}
    assert len({figures["tokens"] for figures in found.values()}) == 1
    # A LoRA adapter begins with no effect; bfloat16 has 8 bits, and other kernels sum otherwise.
    assert found["same batches"]["first_loss"] == pytest.approx(
        found["plain"]["first_loss"], rel=rel
    )
    runs = [{"kind": kind, **figures} for kind, figures in found.items()]
    text, ratios = summary(runs)
    assert ratios["plain"] == {"tokens_per_second": 1.0, "peak_gb": 1.0}
    for line, kind in zip(text.splitlines(), KINDS, strict=True):
        assert line.startswith(kind)
        assert f"{found[kind]['tokens_per_second']:.1f} tokens/s" in line
