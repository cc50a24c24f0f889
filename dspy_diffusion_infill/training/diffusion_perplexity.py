"""Diffusion perplexity (paper App. B, after Sahoo et al. 2024).

Noise schedule sigma(t) = sigma_max * t; a token survives until t with probability
alpha(t) = exp(-sigma(t)). Eq. 4, with the sign that makes it a positive number of nats:

    NELBO = E_t [ -alpha'(t) / (1 - alpha(t)) * sum over masked i of -log P(x_i | x_t) ]

with t ~ U(0, 1),

and Eq. 3: perplexity = exp(NELBO / L), over the L tokens of the sequence. With
``over="sequence"`` these are the tokens of prompt and response, as in the paper's Table 3. With
``over="response"`` the prompt is never masked: this is the response's perplexity given the prompt.
The chat template's own tokens are always seen.

The same integral is estimated with far less noise than by uniform t. First, t is drawn so that the
masked fraction m = 1 - alpha(t) is uniform, which leaves the weight 1 / m. Second, masks without
any masked token, whose term is 0, are not drawn: a mask is drawn given that it masks something, and
weighted with the probability of that, which keeps the weight below L (plain draws have an infinite
variance: 1 / m where m is near 0).
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal, get_args

from dspy_diffusion_infill.chat_spans import render_chat, tokens_inside
from dspy_diffusion_infill.denoisers import Denoiser, ScoreRequest
from dspy_diffusion_infill.errors import ContextTooLongError
from dspy_diffusion_infill.training.rows import Row, pair

Over = Literal["sequence", "response"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffusionPerplexity:
    """A Monte Carlo estimate of diffusion perplexity; lower is better.

    Attributes:
        perplexity: exp of ``nelbo``.
        standard_error: of ``perplexity``, from the draws of t and masks; 0 for an exact figure.
        nelbo: nats a token, over all responses, or sequences.
        nelbo_standard_error: of ``nelbo``.
        nelbo_of: nats a token of each.
        num_tokens: tokens of all.
        num_samples: draws of t and masks for each.
    """

    perplexity: float
    standard_error: float
    nelbo: float
    nelbo_standard_error: float
    nelbo_of: tuple[float, ...]
    num_tokens: int
    num_samples: int


@dataclass(frozen=True, slots=True)
class _Noised:
    """One draw for one response, or sequence: its weight, and which of its tokens are masked."""

    response: int
    weight: float
    masked: tuple[int, ...]


def perplexity(
    denoiser: Denoiser,
    prompts: Sequence[str],
    responses: Sequence[str],
    *,
    over: Over = "response",
    sigma_max: float = 10,
    num_samples: int = 32,
    seed: int = 0,
) -> DiffusionPerplexity:
    """Estimates the diffusion perplexity of ``responses``, or of ``prompts`` with them.

    The draws of t are stratified: two in each of ``num_samples / 2`` strata, from whose difference
    comes a standard error without bias.

    Args:
        denoiser: scores masked tokens; prompt and response go through its chat template.
        prompts: one user turn each.
        responses: the assistant's turn of each prompt; not blank.
        over: ``response``, given the prompt, or ``sequence``, prompt and response.
        sigma_max: the noise at t = 1; exp(-sigma_max) of the tokens survive it.
        num_samples: draws for each response; even.
        seed: decides every draw.

    Raises:
        ValueError: lists of different length, a blank response, an odd ``num_samples``, or an
            unknown ``over``.
        ContextTooLongError: a prompt and its response do not fit the denoiser.
    """
    if len(prompts) != len(responses) or not prompts:
        raise ValueError(
            "prompts and responses must be of one length, at least 1, "
            f"got {len(prompts)} and {len(responses)}"
        )
    if not all(response.strip() for response in responses):
        raise ValueError("a response is blank: perplexity needs at least one token of it")
    rows = [pair(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]
    return row_perplexity(
        denoiser, rows, over=over, sigma_max=sigma_max, num_samples=num_samples, seed=seed
    )


def row_perplexity(
    denoiser: Denoiser,
    rows: Sequence[Row],
    *,
    over: Over = "response",
    sigma_max: float = 10,
    num_samples: int = 32,
    seed: int = 0,
) -> DiffusionPerplexity:
    """The same of rows: each response given all the turns before it, or all turns.

    Args:
        denoiser: as in ``perplexity``.
        rows: at least one, each with a response.
        over: as in ``perplexity``.
        sigma_max: as in ``perplexity``.
        num_samples: as in ``perplexity``.
        seed: as in ``perplexity``.

    Raises:
        ValueError: no row, an odd ``num_samples``, or an unknown ``over``.
        ContextTooLongError: a row does not fit the denoiser.
    """
    if not rows:
        raise ValueError("rows must hold at least one, got none")
    if num_samples < 2 or num_samples % 2:
        raise ValueError(f"num_samples must be an even number from 2, got {num_samples}")
    if over not in get_args(Over):
        raise ValueError(f"over must be one of {', '.join(get_args(Over))}, got {over!r}")
    if sigma_max <= 0:
        raise ValueError(f"sigma_max must be above 0, got sigma_max={sigma_max}")

    # 1. The tokens of each row, and which of them it is over.
    texts = [_tokens(denoiser, row, over) for row in rows]

    # 2. Draws of t and of masks; 3. the model scores what is masked.
    rng = random.Random(f"perplexity/{seed}")
    draws = [
        draw
        for number, (_, places) in enumerate(texts)
        for draw in _draw(number, len(places), sigma_max, num_samples, rng)
    ]
    nlls = _nlls(denoiser, texts, draws)

    # 4. Weighted means, and their standard errors.
    return _estimate(draws, nlls, [len(places) for _, places in texts], num_samples)


def _tokens(denoiser: Denoiser, row: Row, over: Over) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(all tokens, positions of those of the response, or of every turn's content)."""
    chat = render_chat(denoiser, row.turns)
    encoding = denoiser.encode(chat.text)
    if len(encoding.input_ids) > denoiser.context_length:
        raise ContextTooLongError(
            f"a prompt and its response have {len(encoding.input_ids)} tokens, more than the "
            f"context_length={denoiser.context_length} of {denoiser.name}: shorten the prompt"
        )
    inside = [tokens_inside(encoding.offsets, span.start, span.end) for span in chat.spans]
    if not inside[-1]:
        raise ValueError(f"no token lies wholly inside the response {row.response!r}")
    chosen = inside if over == "sequence" else inside[-1:]
    return encoding.input_ids, tuple(chain.from_iterable(chosen))


def _draw(
    number: int, length: int, sigma_max: float, num_samples: int, rng: random.Random
) -> list[_Noised]:
    """``num_samples`` draws for one response, two neighbours from each stratum of t."""
    draws, highest = [], -math.expm1(-sigma_max)
    for k in range(num_samples):
        m = highest * (k // 2 + 1.0 - rng.random()) / (num_samples / 2)  # 1 - alpha(t)
        m = min(m, 1 - 1e-15)  # where sigma_max leaves no token at all
        log_alpha = math.log1p(-m)
        some_masked = -math.expm1(length * log_alpha)  # probability that not all tokens survive
        # The first masked token follows a truncated geometric law, those behind it are free.
        first = int(math.log1p(-rng.random() * some_masked) / log_alpha)
        first = min(first, length - 1)
        behind = (i for i in range(first + 1, length) if rng.random() < m)
        draws.append(_Noised(number, highest * some_masked / m, (first, *behind)))
    return draws


def _nlls(
    denoiser: Denoiser,
    texts: Sequence[tuple[tuple[int, ...], tuple[int, ...]]],
    draws: Sequence[_Noised],
) -> list[float]:
    """Negative log-likelihood of the masked tokens of each draw; equal masks are scored once."""
    asked = sorted({(draw.response, draw.masked) for draw in draws})
    requests = []
    for response, masked in asked:
        ids, places = texts[response]
        noised = list(ids)
        for i in masked:
            noised[places[i]] = denoiser.mask_id
        requests.append(ScoreRequest(tuple(noised), tuple(ids[places[i]] for i in masked)))
    scores = dict(zip(asked, denoiser.score(requests), strict=True))
    return [-math.fsum(scores[draw.response, draw.masked]) for draw in draws]


def _estimate(
    draws: Sequence[_Noised], nlls: Sequence[float], lengths: Sequence[int], num_samples: int
) -> DiffusionPerplexity:
    totals, variances = [0.0] * len(lengths), [0.0] * len(lengths)
    values = [draw.weight * nll for draw, nll in zip(draws, nlls, strict=True)]
    for k in range(0, len(values), 2):
        first, second, response = values[k], values[k + 1], draws[k].response
        totals[response] += (first + second) / num_samples
        variances[response] += (first - second) ** 2 / num_samples**2  # of one stratum's two draws
    num_tokens = sum(lengths)
    nelbo = math.fsum(totals) / num_tokens
    error = math.sqrt(math.fsum(variances)) / num_tokens
    value = math.exp(nelbo) if nelbo < 700 else math.inf
    return DiffusionPerplexity(
        perplexity=value,
        standard_error=value * error if error else 0.0,
        nelbo=nelbo,
        nelbo_standard_error=error,
        nelbo_of=tuple(t / n for t, n in zip(totals, lengths, strict=True)),
        num_tokens=num_tokens,
        num_samples=num_samples,
    )
