"""How masked tokens are filled: which of them at each step, and with what.

- ``low_confidence`` and ``random`` are LLaDA's (arXiv 2502.09992, Algorithms 4 and 5): tokens are
  drawn by the Gumbel-max method, and the same number of tokens is kept at each step, the most
  probable or random ones.
- ``entropy``, ``maskgit_plus``, ``topk_margin`` and ``origin`` are Dream's (arXiv 2508.15487):
  categorical draws, and a share of the masked tokens that grows along a linear time grid.

Everything here is a pure function on the masked tokens of one request; no function knows about
models or texts.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from dspy_diffusion_infill.denoisers.protocol import Algorithm

DREAM_TOP_K = 50
"""Dream's sampler takes this default of transformers' ``GenerationConfig``."""
LLADA_ALGORITHMS = ("low_confidence", "random")
DREAM_EPS = 1e-3
"""Where Dream's time grid ends."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the reverse process.

    Attributes:
        first: the first masked token, counted from 0 among those of the request, that may be
            unmasked.
        last: one past the last that may be.
        count: how many are unmasked, at least 1.
    """

    first: int
    last: int
    count: int


@dataclass(frozen=True, slots=True)
class Draw:
    """Candidates for masked tokens.

    Attributes:
        tokens: a token for each place.
        order: places with the higher value are unmasked first.
        probability: what the model gives each token among all, forbidden ones included,
            untempered, in (0, 1].
    """

    tokens: Int[Tensor, " places"]
    order: Float[Tensor, " places"]
    probability: Float[Tensor, " places"]


def schedule(
    num_masked: int,
    *,
    steps: int,
    algorithm: Algorithm,
    block_length: int | None,
    generator: Generator,
) -> list[Step]:
    """The steps that unmask something, at most min(steps, num_masked).

    With ``block_length``, the masked tokens are filled block by block, left to right, and the steps
    are shared among the blocks. Blocks are made longer where there would be more of them than
    steps.
    """
    if num_masked == 0:
        return []
    num_blocks = 1 if block_length is None else min(-(-num_masked // block_length), steps)
    length = num_masked if num_blocks == 1 else max(block_length or 1, -(-num_masked // num_blocks))
    firsts = range(0, num_masked, length)
    plan = []
    for first, block_steps in zip(firsts, _even(steps, len(firsts)), strict=True):
        last = min(first + length, num_masked)
        if algorithm in LLADA_ALGORITHMS:
            counts = _even(last - first, block_steps)
        else:
            counts = _along_time(
                last - first, block_steps, generator if algorithm == "origin" else None
            )
        plan += [Step(first, last, count) for count in counts if count]
    return plan


def _even(total: int, parts: int) -> list[int]:
    """``total`` in ``parts`` whole numbers, the remainder going to the first ones."""
    return [total // parts + (k < total % parts) for k in range(parts)]


def _along_time(num_masked: int, steps: int, generator: Generator | None) -> list[int]:
    """Dream's counts: the share 1 - s/t of what is masked, in float32 as published; at last, all.

    With a generator each token is unmasked with that probability by itself (``origin``).
    """
    times = torch.linspace(1, DREAM_EPS, steps + 1)
    counts = []
    for k, (t, s) in enumerate(pairwise(times), start=1):
        if k == steps:
            count = num_masked
        elif generator is None:
            count = int(num_masked * (1 - s / t))
        else:
            u = torch.rand(num_masked, generator=generator, device=generator.device)
            count = int((u < 1 - s / t).sum())
        num_masked -= count
        counts.append(count)
    return counts


def draw(
    logits: Float[Tensor, "places vocabulary"],
    *,
    algorithm: Algorithm,
    temperature: float,
    top_p: float | None = None,
    top_k: int | None = None,
    forbidden: Int[Tensor, " tokens"] | None = None,
    generator: Generator,
) -> Draw:
    """Draws a token for each place, and says which places come first.

    A forbidden token is never drawn, but how sure the model is of what is drawn is measured with
    the forbidden ones among the others: where it would rather end the text, it is not.

    ``logits`` are float32.
    """
    if forbidden is None:
        forbidden = torch.arange(0, device=logits.device)
    allowed = logits.index_fill(-1, forbidden, -torch.inf)
    plain = logits.softmax(-1)
    if algorithm in LLADA_ALGORITHMS:
        kept = most_probable(nucleus(allowed, top_p, temperature), top_k)
        tokens = gumbel_argmax(kept, temperature, generator)
        order = probability = _at(plain, tokens)
    else:
        top_k = DREAM_TOP_K if top_k is None else top_k
        own, probs = (_tempered(row, temperature, top_p, top_k) for row in (logits, allowed))
        if temperature > 0:
            tokens = torch.multinomial(probs, 1, generator=generator)[:, 0]
        else:
            tokens = probs.argmax(-1)
        order, probability = _at(own, tokens), _at(plain, tokens)
        if algorithm == "topk_margin":
            top = own.index_fill(-1, forbidden, 0).topk(2, dim=-1).values
            order = top[:, 0] - top[:, 1]
        elif algorithm == "entropy":
            order = (probs * (own + 1e-10).log()).sum(-1)
    if algorithm in ("random", "origin"):
        order = torch.rand(len(tokens), generator=generator, device=logits.device)
    return Draw(tokens, order, probability)


def _tempered(
    logits: Float[Tensor, "places vocabulary"],
    temperature: float,
    top_p: float | None,
    top_k: int,
) -> Float[Tensor, "places vocabulary"]:
    """Probabilities as Dream draws with them."""
    tempered = logits / temperature if temperature > 0 else logits
    return most_probable(nucleus(tempered, top_p), top_k).softmax(-1)


def gumbel_argmax(
    logits: Float[Tensor, "places vocabulary"], temperature: float, generator: Generator
) -> Int[Tensor, " places"]:
    """A draw from softmax(logits / temperature); the most likely token at temperature 0.

    In float64, since noise of lower precision makes improbable tokens too rare (arXiv 2409.02908).
    The logarithm of the published exp(logits) / (-log u)^temperature, which has the same maximum
    and cannot overflow.
    """
    if temperature == 0:
        return logits.argmax(-1)
    u = torch.rand(logits.shape, dtype=torch.float64, generator=generator, device=logits.device)
    # logits - temperature * log(-log u), in place: each new tensor would be of megabytes.
    return u.log_().neg_().log_().mul_(-temperature).add_(logits).argmax(-1)


def nucleus(
    logits: Float[Tensor, "places vocabulary"], top_p: float | None, temperature: float = 1.0
) -> Float[Tensor, "places vocabulary"]:
    """Minus infinity outside the fewest tokens that have the probability ``top_p``."""
    if top_p is None or top_p >= 1:
        return logits
    ranked, index = logits.sort(dim=-1, descending=True)
    probs = (ranked / temperature if temperature > 0 else ranked).softmax(-1)
    outside = probs.cumsum(-1) - probs > top_p
    return logits.masked_fill(torch.zeros_like(outside).scatter(-1, index, outside), -torch.inf)


def most_probable(
    logits: Float[Tensor, "places vocabulary"], top_k: int | None
) -> Float[Tensor, "places vocabulary"]:
    """Minus infinity outside the ``top_k`` most probable tokens; None keeps all."""
    if top_k is None or top_k >= logits.shape[-1]:
        return logits
    return logits.masked_fill(logits < logits.topk(top_k, dim=-1).values[:, -1:], -torch.inf)


def _at(
    probs: Float[Tensor, "places vocabulary"], tokens: Int[Tensor, " places"]
) -> Float[Tensor, " places"]:
    return probs.gather(-1, tokens[:, None])[:, 0]
