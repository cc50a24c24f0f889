"""The forward process of masked-diffusion SFT: which tokens of a (prompt, response) pair are masked.

- Full-sequence masking (FS): floor(t * |X|) tokens of the whole sequence, t ~ U(0, 1); paper section 3.1.
- Response-only masking (RO): each response token with probability t, t ~ U(0, 1]; paper appendix G, LLaDA's SFT.
- Window masking: contiguous spans, the shape that an optimizer of prompts asks for; inside a span floor(t * |span|) + 1
  tokens are masked, since infilling passes through every partly filled state.

All three return a boolean mask that selects no token outside ``maskable`` and at least one inside it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Generator, Tensor

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class MaskDraw:
    """One draw of the forward process.

    Attributes:
        masked: True where the token is masked.
        t: the masking ratio that was drawn, in (0, 1].
    """

    masked: Bool[Tensor, " length"]
    t: float


def full_sequence_mask(maskable: Bool[Tensor, " length"], t: float, generator: Generator) -> MaskDraw:
    """Masks floor(t * number of maskable tokens) random tokens of prompt and response, and at least one."""
    candidates = maskable.nonzero().squeeze(1)
    num_masked = max(1, math.floor(t * len(candidates)))
    chosen = candidates[torch.randperm(len(candidates), generator=generator)[:num_masked]]
    return MaskDraw(_mask_of(chosen, len(maskable)), t)


def response_only_mask(response: Bool[Tensor, " length"], t: float, generator: Generator) -> MaskDraw:
    """Masks each response token with probability t; a draw that masks nothing masks one token of the response."""
    masked = response & (torch.rand(len(response), generator=generator) < t)
    if not masked.any():
        return full_sequence_mask(response, 0.0, generator)
    return MaskDraw(masked, t)


def window_mask(
    maskable: Bool[Tensor, " length"],
    t: float,
    generator: Generator,
    *,
    lengths: tuple[int, int] = (4, 16),
    preferred: Sequence[Span] = (),
    tokens_per_window: int = 64,
) -> MaskDraw:
    """Masks parts of contiguous windows: one in each preferred span, then one for every ``tokens_per_window`` tokens.

    Args:
        maskable: which tokens may be masked.
        t: share of each window that is masked, in (0, 1]; at least one token of each window is.
        generator: the source of every random choice.
        lengths: shortest and longest window, tokens.
        preferred: token spans (the instructions) that get a window of their own before random places do.
        tokens_per_window: one further window for so many tokens of the sequence.
    """
    masked = torch.zeros_like(maskable)
    anywhere = [(0, len(maskable))] * max(0, round(int(maskable.sum()) / tokens_per_window))
    for low, high in [*preferred, *anywhere]:
        places = maskable[low:high].nonzero().squeeze(1) + low
        if len(places) == 0:
            continue
        length = min(int(torch.randint(lengths[0], lengths[1] + 1, (1,), generator=generator)), len(places))
        first = int(torch.randint(len(places) - length + 1, (1,), generator=generator))
        window = places[first : first + length]
        num_masked = min(length, math.floor(t * length) + 1)
        masked[window[torch.randperm(length, generator=generator)[:num_masked]]] = True
    if not masked.any():
        return full_sequence_mask(maskable, 0.0, generator)
    return MaskDraw(masked, t)


def draw_t(generator: Generator, *, index: int = 0, low_discrepancy: int = 0) -> float:
    """Draws t in (0, 1]; with ``low_discrepancy`` = n > 0, n consecutive indices get t from n different strata."""
    u = float(torch.rand((), generator=generator, dtype=torch.float64))
    t = 1.0 - u
    return ((index % low_discrepancy) + t) / low_discrepancy if low_discrepancy else t


def _mask_of(positions: Tensor, length: int) -> Bool[Tensor, " length"]:
    mask = torch.zeros(length, dtype=torch.bool)
    mask[positions] = True
    return mask
