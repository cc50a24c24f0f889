"""Infilling as one writes it first, one request at a time, each step a pass over the whole text."""

import random
from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dspy_diffusion_infill.denoisers import Infilled, InfillRequest, Sampling
from dspy_diffusion_infill.denoisers.infill_state import InfillState, ResolvedSampling
from dspy_diffusion_infill.denoisers.transformer import TransformerDenoiser


def all_logits(model: PreTrainedModel, ids: Tensor, *, shift: bool) -> Tensor:
    """At every position of one text; row i scores token i."""
    logits = model(input_ids=ids[None].to(model.device), use_cache=False).logits[0]
    return torch.cat([logits[:1], logits[:-1]]) if shift else logits


def state_of(
    denoiser: TransformerDenoiser, request: InfillRequest, sampling: Sampling
) -> InfillState:
    """A request's state as ``denoiser.infill`` makes it."""
    checkpoint = denoiser.checkpoint
    return InfillState(
        torch.as_tensor(request.input_ids),
        mask_id=checkpoint.mask_id,
        seed=request.seed,
        sampling=ResolvedSampling.of(
            sampling,
            temperature=checkpoint.temperature,
            algorithm=checkpoint.algorithm,
            block_length=checkpoint.block_length,
            forbidden=denoiser._special,
        ),
        device=checkpoint.model.device,
    )


@torch.inference_mode()
def step(denoiser: TransformerDenoiser, state: InfillState) -> None:
    """One step, with the vocabulary head at all positions."""
    checkpoint = denoiser.checkpoint
    logits = all_logits(checkpoint.model, state.ids, shift=checkpoint.shift)
    state.advance(logits[state.candidates().to(logits.device)].float())


def infill(denoiser: TransformerDenoiser, request: InfillRequest, sampling: Sampling) -> Infilled:
    """What ``denoiser.infill([request], sampling)`` must give without a cache."""
    state = state_of(denoiser, request, sampling)
    while not state.done:
        step(denoiser, state)
    return state.result()


@torch.inference_mode()
def published_llada_step(
    denoiser: TransformerDenoiser, ids: Tensor, *, count: int, temperature: float
) -> Tensor:
    """A step of LLaDA's ``generate.py``, for masks anywhere; returns the text after it.

    Noise in float64 and softmax are at all positions, as published; classifier-free guidance, which
    would double the pass, is off.
    """
    checkpoint = denoiser.checkpoint
    logits = all_logits(checkpoint.model, ids, shift=checkpoint.shift)
    is_masked = (ids == checkpoint.mask_id).to(logits.device)
    # 1. Gumbel noise: exp(logits) / (-log u)^temperature.
    exact = logits.to(torch.float64)
    noise = (-torch.log(torch.rand_like(exact))) ** temperature
    drawn = (exact.exp() / noise).argmax(-1)
    # 2. The most confident masked positions are kept.
    probability = logits.softmax(-1).gather(-1, drawn[:, None])[:, 0]
    confidence = torch.where(is_masked, probability.float(), -torch.inf)
    kept = confidence.topk(count).indices
    after = ids.to(logits.device).clone()
    after[kept] = drawn[kept]
    return after.to(ids.device)


def random_batches(num: int, *, mask_id: int, seed: int) -> Iterator[list[InfillRequest]]:
    """``num`` ragged requests with masks anywhere, in batches of 1 to 32."""
    rng = random.Random(seed)
    while num > 0:
        batch = []
        for _ in range(min(num, rng.randint(1, 32))):
            ids = [rng.randrange(40, 256) for _ in range(rng.randint(8, 60))]
            for place in rng.sample(range(1, len(ids)), rng.randint(1, 7)):
                ids[place] = mask_id
            batch.append(InfillRequest(ids, rng.randrange(2**31)))
        num -= len(batch)
        yield batch


def num_differing(denoiser: TransformerDenoiser, num: int, *, seed: int) -> int:
    """Of random requests, those that get other tokens than from whole passes, at temperature 0."""
    greedy, differing = Sampling(temperature=0), 0
    for batch in random_batches(num, mask_id=denoiser.mask_id, seed=seed):
        for request, result in zip(batch, denoiser.infill(batch, greedy), strict=True):
            differing += result.input_ids != infill(denoiser, request, greedy).input_ids
    return differing
