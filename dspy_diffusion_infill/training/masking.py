"""The forward process of masked-diffusion SFT: which tokens of a row are masked.

- Full-sequence masking (FS): floor(t * |X|) tokens of the whole sequence, t ~ U(0, 1); paper
  section 3.1.
- Response-only masking (RO): each response token with probability t, t ~ U(0, 1]; paper appendix G,
  LLaDA's SFT.
- Window masking: contiguous spans, the shape that an optimizer of prompts asks for; inside a span
  floor(t * |span|) + 1 tokens are masked, since infilling passes through every partly filled state:
  any of its tokens, or its last ones where spans are filled from left to right.

All three return a boolean mask that selects no token outside ``maskable`` and at least one inside.

The loss ``elbo`` has draws of its own, since those above are not the ones whose expectation is the
bound: floor and the forced token mask more, or fewer, than the weight 1/t supposes.

- FS: k tokens, k uniform in 1..n, and t = k / n. The weight 1/(t * n) is then 1/k, and the mean is
  exactly the bound of an order-agnostic model (arXiv 2110.02037).
- RO: each token with probability p_mask = (1 - eps) * t + eps, as in LLaDA's guidelines
  (arXiv 2502.09992), and nothing forced: a mask of no token is a draw like others, of loss 0.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Generator, Tensor

from dspy_diffusion_infill.training.options import LossName, MaskingOptions, WindowOrder
from dspy_diffusion_infill.training.rows import TokenizedRow

TokenSpan = tuple[int, int]
MIN_P_MASK = 1e-3  # eps of LLaDA's guidelines: it bounds the weight 1 / p_mask


@dataclass(frozen=True, slots=True)
class MaskDraw:
    """One draw of the forward process.

    Attributes:
        masked: True where the token is masked.
        t: the masking ratio that was drawn, in (0, 1]; what the loss ``elbo`` divides by.
        num_maskable: how many tokens could have been masked.
    """

    masked: Bool[Tensor, " length"]
    t: float
    num_maskable: int


def full_sequence_mask(
    maskable: Bool[Tensor, " length"], t: float, generator: Generator
) -> MaskDraw:
    """Masks floor(t * number of maskable tokens) random tokens, and at least one."""
    num_maskable = int(maskable.sum())
    masked = _random_subset(maskable, max(1, math.floor(t * num_maskable)), generator)
    return MaskDraw(masked, t, num_maskable)


def response_only_mask(
    response: Bool[Tensor, " length"], t: float, generator: Generator
) -> MaskDraw:
    """Masks each response token with probability t; where that masks nothing, one of them."""
    masked = response & (torch.rand(len(response), generator=generator) < t)
    if not masked.any():
        masked = full_sequence_mask(response, 0.0, generator).masked
    return MaskDraw(masked, t, int(response.sum()))


def full_sequence_mask_for_elbo(
    maskable: Bool[Tensor, " length"], t: float, generator: Generator
) -> MaskDraw:
    """Masks k random tokens of n, where t uniform in (0, 1] makes k uniform in 1..n."""
    num_maskable = int(maskable.sum())
    num_masked = min(num_maskable, math.ceil(t * num_maskable))
    masked = _random_subset(maskable, num_masked, generator)
    return MaskDraw(masked, num_masked / num_maskable, num_maskable)


def response_only_mask_for_elbo(
    response: Bool[Tensor, " length"], t: float, generator: Generator
) -> MaskDraw:
    """Masks each response token with probability p_mask, and maybe none of them."""
    p_mask = (1 - MIN_P_MASK) * t + MIN_P_MASK
    masked = response & (torch.rand(len(response), generator=generator) < p_mask)
    return MaskDraw(masked, p_mask, int(response.sum()))


def window_mask(
    maskable: Bool[Tensor, " length"],
    t: float,
    generator: Generator,
    *,
    lengths: tuple[int, int] = (4, 16),
    preferred: Sequence[TokenSpan] = (),
    tokens_per_window: int = 64,
    order: WindowOrder = "random",
) -> MaskDraw:
    """Masks parts of contiguous windows: one in each preferred span, then some anywhere.

    Args:
        maskable: which tokens may be masked.
        t: share of each window that is masked, in (0, 1]; at least one token of each window is.
        generator: the source of every random choice.
        lengths: shortest and longest window, tokens.
        preferred: token spans (the instructions) that get a window each before random places do.
        tokens_per_window: one further window for so many maskable tokens.
        order: ``random`` masks any tokens of a window, ``left_to_right`` its last ones.
    """
    masked = torch.zeros_like(maskable)
    num_anywhere = round(int(maskable.sum()) / tokens_per_window)
    for low, high in [*preferred, *[(0, len(maskable))] * num_anywhere]:
        places = maskable[low:high].nonzero().squeeze(1) + low
        if len(places) == 0:
            continue
        length = min(_randint(lengths[0], lengths[1], generator), len(places))
        first = _randint(0, len(places) - length, generator)
        window = places[first : first + length]
        num_masked = min(length, math.floor(t * length) + 1)
        if order == "left_to_right":
            masked[window[length - num_masked :]] = True
        else:
            masked[window[torch.randperm(length, generator=generator)[:num_masked]]] = True
    if not masked.any():
        masked = full_sequence_mask(maskable, 0.0, generator).masked
    return MaskDraw(masked, t, int(maskable.sum()))


def draw_mask(
    options: MaskingOptions,
    row: TokenizedRow,
    generator: Generator,
    index: int,
    *,
    loss: LossName = "masked_mean",
) -> MaskDraw:
    """Masks a row in one of the ways of the options, chosen by their shares.

    Args:
        options: shares and numbers of the three ways.
        row: the tokens; with response-only masking, at least one of a response.
        generator: the source of every random choice.
        index: number of the sequence, for low-discrepancy t.
        loss: that the mask is for; ``elbo`` has draws of its own, and no window masking.
    """
    t = draw_t(generator, index=index, low_discrepancy=options.low_discrepancy)
    way = float(torch.rand((), generator=generator))
    maskable = torch.tensor(row.maskable)
    if way < options.window:
        return window_mask(
            maskable,
            t,
            generator,
            lengths=options.window_lengths,
            preferred=row.preferred,
            tokens_per_window=options.tokens_per_window,
            order=options.window_order,
        )
    if way < options.window + options.response_only:
        mask = response_only_mask_for_elbo if loss == "elbo" else response_only_mask
        return mask(torch.tensor(row.is_response), t, generator)
    mask = full_sequence_mask_for_elbo if loss == "elbo" else full_sequence_mask
    return mask(maskable, t, generator)


def draw_t(generator: Generator, *, index: int = 0, low_discrepancy: int = 0) -> float:
    """Draws t in (0, 1].

    With ``low_discrepancy`` = n > 0, n consecutive indices get t from the n strata of (0, 1].
    """
    t = 1.0 - float(torch.rand((), generator=generator, dtype=torch.float64))
    return ((index % low_discrepancy) + t) / low_discrepancy if low_discrepancy else t


def _randint(low: int, high: int, generator: Generator) -> int:
    return int(torch.randint(low, high + 1, (1,), generator=generator))


def _random_subset(
    maskable: Bool[Tensor, " length"], size: int, generator: Generator
) -> Bool[Tensor, " length"]:
    """``size`` of the maskable tokens, each subset alike."""
    candidates = maskable.nonzero().squeeze(1)
    mask = torch.zeros_like(maskable)
    mask[candidates[torch.randperm(len(candidates), generator=generator)[:size]]] = True
    return mask
