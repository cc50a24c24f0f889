import itertools
import math
import random
import weakref

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.loss_truth import bound_by_order, bound_by_probability, loss_and_gradient
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dspy_diffusion_infill.training.loss import diffusion_loss
from dspy_diffusion_infill.training.masking import MIN_P_MASK, draw_mask
from dspy_diffusion_infill.training.options import MaskingOptions
from dspy_diffusion_infill.training.rows import TokenizedRow


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


LENGTH, X0 = 3, (1, 0, 1)  # of a sequence over two letters, behind two tokens of a prompt
ROW = TokenizedRow([5, 5, *X0], [False] * 2 + [True] * 3, [False] * 2 + [True] * 3, [])


def conditionals(noise: float) -> dict[tuple[int, ...], torch.Tensor]:
    """Logits at the masked places of ``X0``, for each mask, given what is not masked.

    They are those of a joint distribution, so that the chain rule holds in every order; ``noise``
    makes them inconsistent, as a real model's are. The mask of no token asks for none.
    """
    rng = random.Random(3)
    words = list(itertools.product(range(2), repeat=LENGTH))
    joint = dict(zip(words, (rng.random() ** 2 for _ in words), strict=True))
    found = {}
    for size in range(LENGTH + 1):
        for masked in itertools.combinations(range(LENGTH), size):
            seen = [k for k in range(LENGTH) if k not in masked]
            fitting = {w: p for w, p in joint.items() if all(w[k] == X0[k] for k in seen)}
            rows = [
                [sum(p for w, p in fitting.items() if w[k] == letter) for letter in range(2)]
                for k in masked
            ]
            logits = torch.tensor(rows).reshape(-1, 2).log()
            found[masked] = logits + noise * torch.tensor(
                [[rng.random(), rng.random()] for _ in masked]
            ).reshape(-1, 2)
    return found


def nll_of(logits: dict[tuple[int, ...], torch.Tensor]):
    """The summed negative log-likelihood of the masked places, from a mask."""

    def of(masked: tuple[int, ...]) -> float:
        targets = torch.tensor([X0[k] for k in masked])
        return float(F.cross_entropy(logits[masked], targets, reduction="sum"))

    return of


def mean_of_draws(way: str, noise: float, num_draws: int) -> tuple[float, float]:
    """(mean, standard error) of the loss over the draws that training makes."""
    logits, options = conditionals(noise), MaskingOptions(**{way: 1.0})
    generator, x0 = torch.Generator().manual_seed(0), torch.tensor([ROW.input_ids])
    losses = []
    for index in range(num_draws):
        draw = draw_mask(options, ROW, generator, index, loss="elbo")
        masked = tuple((draw.masked.nonzero()[:, 0] - 2).tolist())
        t, count = torch.tensor([draw.t]), torch.tensor([draw.num_maskable])
        losses.append(
            float(diffusion_loss(logits[masked], x0, draw.masked[None], t, count, loss="elbo"))
        )
    found = torch.tensor(losses).double()
    return float(found.mean()), float(found.std()) / math.sqrt(num_draws)


@pytest.mark.parametrize("noise", [0.0, 2.0])
@pytest.mark.parametrize("way", ["full_sequence", "response_only"])
def test_elbo_is_the_bound_by_full_enumeration_within_its_standard_error(way, noise):
    nll, (mean, error) = nll_of(conditionals(noise)), mean_of_draws(way, noise, 4000)
    expected = {
        "full_sequence": bound_by_order(nll, LENGTH),
        "response_only": bound_by_probability(nll, LENGTH, MIN_P_MASK),
    }[way]
    assert abs(mean - expected) < 4 * error
    assert error < {"full_sequence": 0.03, "response_only": 0.08}[way] * expected


def test_the_bounds_are_the_likelihood_where_the_model_is_consistent():
    """By probability, a thousandth of the integral is left out: it moves the figure no further."""
    nll = nll_of(conditionals(0.0))
    exact = 0.0  # by the chain rule, from left to right
    for k, masked in enumerate([(0, 1, 2), (1, 2), (2,)]):
        exact -= float(conditionals(0.0)[masked][0].log_softmax(-1)[X0[k]])
    assert bound_by_order(nll, LENGTH) == pytest.approx(exact / LENGTH, rel=1e-5)
    assert bound_by_probability(nll, LENGTH, MIN_P_MASK) == pytest.approx(exact / LENGTH, rel=2e-3)


@pytest.mark.parametrize("loss", ["masked_mean", "elbo"])
def test_a_sequence_without_masked_tokens_counts_as_a_loss_of_0(loss):
    logits, x0, masked, t, num_maskable = batch(2, 4, 9, 7)
    masked[:2] = False
    half = logits[masked].clone().requires_grad_()
    found = diffusion_loss(half, x0, masked, t, num_maskable, loss=loss)
    found.backward()
    rest = diffusion_loss(half, x0[2:], masked[2:], t[2:], num_maskable[2:], loss=loss)
    assert float(found.detach()) == pytest.approx(float(rest.detach()) / 2, rel=1e-6)
    assert torch.isfinite(half.grad).all()
    masked[:] = False
    assert float(diffusion_loss(logits[masked], x0, masked, t, num_maskable, loss=loss)) == 0
