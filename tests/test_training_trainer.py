from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

from dspy_diffusion_infill.training.dataset import Collator, MaskedSequences
from dspy_diffusion_infill.training.masking import draw_mask
from dspy_diffusion_infill.training.options import MaskingOptions
from dspy_diffusion_infill.training.rows import TokenizedRow
from dspy_diffusion_infill.training.trainer import DiffusionTrainer, annealed_mask

VOCABULARY = 61


def tiny(seed: int = 0, *, is_causal: bool = False, attention: str = "sdpa") -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        is_causal=is_causal,
        tie_word_embeddings=True,
        attn_implementation=attention,
    )
    return LlamaForCausalLM(config)


def draw_row(rng, index) -> TokenizedRow:
    length = rng.randint(6, 20)
    ids = [rng.randrange(VOCABULARY) for _ in range(length)]
    return TokenizedRow(ids, [k > 0 for k in range(length)], [k > 3 for k in range(length)], [])


def masks(row, generator, index):
    return draw_mask(MaskingOptions(full_sequence=0.5, response_only=0.5), row, generator, index)


def batch(num_sequences: int = 5) -> dict[str, torch.Tensor]:
    data = MaskedSequences(draw_row, masks, num_sequences=num_sequences, seed=3)
    return Collator(mask_id=VOCABULARY - 1, pad_id=0)([data[k] for k in range(num_sequences)])


def trainer(model, folder: Path, **options) -> DiffusionTrainer:
    arguments = TrainingArguments(
        output_dir=str(folder), use_cpu=True, report_to="none", bf16=False
    )
    return DiffusionTrainer(model=model, args=arguments, **options)


def plain_loss(model, inputs, *, shift: bool, loss: str) -> torch.Tensor:
    """All logits of all positions, one sequence and one token after the other."""
    logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    total = torch.zeros(())
    for b in range(len(logits)):
        places = inputs["masked"][b].nonzero()[:, 0].tolist()
        for place in places:
            row = logits[b, place - 1 if shift else place]
            nll = torch.logsumexp(row, 0) - row[inputs["x0"][b, place]]
            mean = nll / len(places)
            bound = nll / (inputs["t"][b] * inputs["num_maskable"][b])
            total = total + (mean if loss == "masked_mean" else bound) / len(logits)
    return total


@pytest.mark.parametrize("loss", ["masked_mean", "elbo"])
@pytest.mark.parametrize("shift", [False, True])
def test_loss_and_gradients_equal_a_plain_implementation(tmp_path, shift, loss):
    inputs, model = batch(), tiny()
    expected = plain_loss(model, inputs, shift=shift, loss=loss)
    expected.backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    found = trainer(model, tmp_path, shift=shift, loss=loss).compute_loss(model, inputs)
    found.backward()
    # Float32 sums in another order.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


def test_the_head_is_computed_at_masked_positions_only(tmp_path):
    inputs, model, rows = batch(), tiny(), []
    model.lm_head.register_forward_hook(lambda _head, _args, output: rows.append(output.shape))
    trainer(model, tmp_path, shift=True).compute_loss(model, inputs)
    assert rows == [(int(inputs["masked"].sum()), VOCABULARY)]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])  # CPUs train with the first
def test_annealing_begins_causal_and_ends_bidirectional(tmp_path, attention):
    inputs, model = batch(), tiny(attention=attention)
    assert model.config._attn_implementation == attention
    annealed = trainer(model, tmp_path, shift=True, annealing_steps=10)
    causal = tiny(is_causal=True, attention=attention)
    for step, reference in ((0, causal), (10, model)):
        annealed.state.global_step = step
        found = annealed.compute_loss(model, inputs)
        expected = plain_loss(reference, inputs, shift=True, loss="masked_mean")
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_annealing_is_the_same_under_every_attention_also_in_bfloat16(tmp_path):
    inputs, found = batch(), {}
    for attention in ("eager", "sdpa"):
        model = tiny(attention=attention)
        annealed = trainer(model, tmp_path, shift=True, annealing_steps=10)
        annealed.state.global_step = 4
        found[attention, torch.float32] = annealed.compute_loss(model, inputs).item()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found[attention, torch.bfloat16] = annealed.compute_loss(model, inputs).item()
    plain = found.pop(("eager", torch.float32))
    assert plain != pytest.approx(plain_loss(model, inputs, shift=True, loss="masked_mean").item())
    assert found.pop(("sdpa", torch.float32)) == pytest.approx(plain, rel=1e-5)
    assert list(found.values()) == pytest.approx([plain] * 2, rel=1e-2)  # bfloat16 has 8 bits


def test_a_batch_without_any_masked_token_has_no_loss_and_no_gradient(tmp_path):
    """Response-only masking for ``elbo`` draws such masks."""
    inputs, model = batch(), tiny()
    inputs["masked"].zero_()
    loss = trainer(model, tmp_path, shift=True, loss="elbo").compute_loss(model, inputs)
    loss.backward()
    assert float(loss.detach()) == 0
    assert not any(p.grad.any() for p in model.parameters() if p.grad is not None)


def test_annealed_mask_shows_later_tokens_by_the_share_and_never_padding():
    padding = torch.ones(2, 60, dtype=torch.long)
    padding[1, 40:] = 0
    mask = annealed_mask(padding, share=0.3, generator=torch.Generator().manual_seed(0))
    assert mask.shape == (2, 1, 60, 60)
    assert mask[0, 0].tril().sum() == 60 * 61 / 2
    later = mask[0, 0].triu(1).sum() / (60 * 59 / 2)
    assert abs(float(later) - 0.3) < 0.06  # five standard deviations of 1770 draws
    hidden = mask[1, 0, :, 40:] & ~torch.eye(60, dtype=torch.bool)[:, 40:]
    assert not hidden.any()


def test_log_has_accuracy_and_speed_since_the_last_one(tmp_path):
    inputs, model = batch(), tiny()
    one = trainer(model, tmp_path, shift=False)
    _, outputs = one.compute_loss(model, inputs, return_outputs=True)
    right = (outputs["logits"].argmax(-1) == inputs["x0"][inputs["masked"]]).float().mean()
    inputs["is_cut"][:2] = True
    one.compute_loss(model, inputs)
    one.log({"loss": 1.0})
    one.log({"loss": 1.0})
    first, second = one.state.log_history
    assert (first["num_cut"], second["num_cut"]) == (2, 0)
    assert first["masked_accuracy"] == pytest.approx(float(right))
    assert first["tokens_per_second"] > 0
    assert second["tokens_per_second"] == second["masked_accuracy"] == 0


def test_time_spent_measuring_is_left_out_of_the_speed(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("dspy_diffusion_infill.training.trainer.time.monotonic", lambda: now[0])
    inputs, model = batch(), tiny()
    one = trainer(model, tmp_path, shift=False)
    one.compute_loss(model, inputs)
    now[0] += 2
    with one.clock_stopped():
        now[0] += 1000
    one.log({"loss": 1.0})
    assert (
        one.state.log_history[-1]["tokens_per_second"] == float(inputs["attention_mask"].sum()) / 2
    )
