import weakref

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.loss_truth import loss_and_gradient
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

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


# The loss is computed in float32, whose spacing at logits of 8 to 16 is 1e-6: that is the error of
# a difference between two of them, however small the difference. A gradient is rounded to the
# logits' own precision: 8 bits in bfloat16.
SPACING = {torch.float64: 1e-5, torch.float32: 1e-5, torch.bfloat16: 2**-8}


@settings(deadline=None)
@given(
    st.integers(0, 10_000),
    st.integers(1, 4),
    st.integers(1, 9),
    st.sampled_from(["masked_mean", "elbo"]),
    st.sampled_from(list(SPACING)),
)
def test_loss_and_gradient_equal_plain_python(seed, num_sequences, length, loss, dtype):
    logits, x0, masked, t, num_maskable = batch(seed, num_sequences, length, 7)
    logits = logits.to(dtype)
    expected, gradient = loss_and_gradient(
        logits.tolist(), x0.tolist(), masked.tolist(), t.tolist(), num_maskable.tolist(), loss
    )
    logits.requires_grad_()
    found = diffusion_loss(logits[masked], x0, masked, t, num_maskable, loss=loss)
    found.backward()
    assert found.dtype == torch.float32
    assert float(found.detach()) == pytest.approx(expected, rel=2e-6, abs=2e-6)
    torch.testing.assert_close(
        logits.grad.double(), torch.tensor(gradient).double(), rtol=SPACING[dtype], atol=1e-6
    )


@pytest.mark.parametrize("dtype", SPACING)
@pytest.mark.parametrize("num_rows", [1, 63, 64, 65, 200])
def test_any_number_of_rows_gives_what_all_rows_at_once_give(num_rows, dtype):
    logits, x0, masked, t, _ = batch(num_rows, 2, 2 * num_rows, 11)
    flat = logits[masked][:num_rows].to(dtype)
    targets = x0[masked][:num_rows][None]
    ones = torch.ones(1, len(flat), dtype=torch.bool)
    plain, ours = flat.clone().requires_grad_(), flat.clone().requires_grad_()
    expected = F.cross_entropy(plain.float(), targets[0])
    found = diffusion_loss(ours, targets, ones, t[:1])
    expected.backward()
    found.backward()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours.grad, plain.grad, rtol=SPACING[dtype], atol=1e-7)


class PeakBytes(TorchDispatchMode):
    """The most bytes that tensors made inside held at once."""

    def __init__(self):
        super().__init__()
        self.held, self.peak = {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in self.held:
                    self.held[storage.data_ptr()] = storage.nbytes()
                    weakref.finalize(storage, self.held.pop, storage.data_ptr(), None)
        self.peak = max(self.peak, sum(self.held.values()))
        return out


def bytes_a_logit(loss) -> float:
    """From the head's bfloat16 logits on, forward and backward."""
    hidden = torch.randn(2048, 1000).bfloat16().requires_grad_()
    targets = torch.randint(1000, (1, 2048))
    with PeakBytes() as memory:
        loss(hidden * 1, targets).backward()
    return memory.peak / hidden.numel()


def test_memory_is_that_of_the_logits_and_their_gradient():
    """4 bytes a logit and some rows, against 12: what the docstring says."""
    ones, t = torch.ones(1, 2048, dtype=torch.bool), torch.ones(1)
    plain = bytes_a_logit(lambda logits, x0: F.cross_entropy(logits.float(), x0[0]))
    ours = bytes_a_logit(lambda logits, x0: diffusion_loss(logits, x0, ones, t))
    assert plain == pytest.approx(12, abs=0.1)
    assert 4 <= ours < 4.6


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
