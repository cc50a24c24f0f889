import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.loss_truth import loss_and_gradient

from dspy_diffusion_infill.training.loss import diffusion_loss


def batch(seed: int, num_sequences: int, length: int, vocabulary: int):
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(num_sequences, length, vocabulary, generator=generator).double()
    x0 = torch.randint(vocabulary, (num_sequences, length), generator=generator)
    masked = torch.rand(num_sequences, length, generator=generator) < 0.4
    masked[:, 0] |= ~masked.any(1)
    t = 1.0 - torch.rand(num_sequences, generator=generator)
    num_maskable = masked.sum(1) + torch.randint(0, 3, (num_sequences,), generator=generator)
    return logits, x0, masked, t, num_maskable


@settings(deadline=None)
@given(
    st.integers(0, 10_000),
    st.integers(1, 4),
    st.integers(1, 9),
    st.sampled_from(["masked_mean", "elbo"]),
)
def test_loss_and_gradient_equal_plain_python(seed, num_sequences, length, loss):
    logits, x0, masked, t, num_maskable = batch(seed, num_sequences, length, 7)
    expected, gradient = loss_and_gradient(
        logits.tolist(), x0.tolist(), masked.tolist(), t.tolist(), num_maskable.tolist(), loss
    )
    logits.requires_grad_()
    found = diffusion_loss(logits[masked], x0, masked, t, num_maskable, loss=loss)
    found.backward()
    # The loss is computed in float32, whose spacing at logits of 8 to 16 is 1e-6: that is the error
    # of a difference between two of them, however small the difference.
    assert float(found.detach()) == pytest.approx(expected, rel=2e-6, abs=2e-6)
    torch.testing.assert_close(logits.grad, torch.tensor(gradient).double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", ["masked_mean", "elbo"])
def test_mean_of_the_halves_is_the_loss_of_the_whole_batch(loss):
    """What makes two processes, or two accumulated batches, equal to one larger batch."""
    logits, x0, masked, t, num_maskable = batch(1, 6, 12, 7)

    def of(rows: slice) -> float:
        chosen = masked[rows]
        return float(
            diffusion_loss(
                logits[rows][chosen], x0[rows], chosen, t[rows], num_maskable[rows], loss=loss
            )
        )

    assert (of(slice(0, 3)) + of(slice(3, 6))) / 2 == pytest.approx(of(slice(0, 6)), rel=1e-6)


def test_elbo_needs_the_number_of_maskable_tokens():
    logits, x0, masked, t, _ = batch(0, 1, 4, 3)
    with pytest.raises(ValueError, match="num_maskable"):
        diffusion_loss(logits[masked], x0, masked, t, loss="elbo")
