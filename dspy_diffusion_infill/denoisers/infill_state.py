"""The state of one request while its masked tokens are filled in."""

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from dspy_diffusion_infill.denoisers.protocol import Algorithm, Infilled, Sampling
from dspy_diffusion_infill.denoisers.sampling import Step, draw, schedule


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedSampling:
    """``Sampling`` with the denoiser's own values where it left them open."""

    steps: int
    temperature: float
    algorithm: Algorithm
    block_length: int | None
    top_p: float | None
    top_k: int | None
    threshold: float | None
    forbidden: Int[Tensor, " tokens"]

    @classmethod
    def of(
        cls,
        sampling: Sampling,
        *,
        temperature: float,
        algorithm: Algorithm,
        block_length: int | None,
        forbidden: Int[Tensor, " tokens"],
    ) -> "ResolvedSampling":
        """Fills what ``sampling`` left open with what suits the denoiser."""
        return cls(
            steps=sampling.steps,
            temperature=temperature if sampling.temperature is None else sampling.temperature,
            algorithm=sampling.algorithm or algorithm,
            block_length=sampling.block_length or block_length,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            threshold=sampling.threshold,
            forbidden=forbidden,
        )


class Filling(Protocol):
    """A text whose masked tokens are filled step by step.

    Attributes:
        ids: the tokens so far.
        places: the positions that were masked at first.
        filled: the positions that the last step filled.
        num_refreshes: how often the whole text was computed since its context had drifted.
    """

    ids: Int[Tensor, " length"]
    places: Int[Tensor, " places"]
    filled: Int[Tensor, " filled"]
    num_refreshes: int

    @property
    def done(self) -> bool:
        """Whether every token is filled."""
        ...

    def candidates(self) -> Int[Tensor, " candidates"]:
        """The positions whose logits the next step needs."""
        ...

    def advance(self, logits: Float[Tensor, "candidates vocabulary"]) -> None:
        """Takes one step with the logits at ``candidates()``."""
        ...


class InfillState:
    """The state of one request. Every random choice comes from its own seed.

    Attributes:
        ids: the tokens so far.
        places: the positions that were masked at first.
        num_passes: forward passes that this request took part in.
        filled: the positions that the last step filled.
        num_refreshes: how often the whole text was computed since its context had drifted.
    """

    def __init__(
        self,
        ids: Int[Tensor, " length"],
        *,
        mask_id: int,
        seed: int,
        sampling: ResolvedSampling,
        device: torch.device,
    ) -> None:
        self.ids = ids.clone()
        self.places: Int[Tensor, " places"] = (ids == mask_id).nonzero()[:, 0]
        self.num_passes = self.num_refreshes = 0
        self.filled: Int[Tensor, " filled"] = self.places[:0]
        self._sampling = sampling
        self._generator = Generator(device).manual_seed(seed % 2**63)
        self._masked: Bool[Tensor, " places"] = torch.ones(len(self.places), dtype=torch.bool)
        self._probability: Float[Tensor, " places"] = torch.ones(len(self.places))
        self._steps: list[Step] = schedule(
            len(self.places),
            steps=sampling.steps,
            algorithm=sampling.algorithm,
            block_length=sampling.block_length,
            generator=self._generator,
        )[::-1]

    @property
    def done(self) -> bool:
        """Whether every token is filled."""
        return not self._steps

    def candidates(self) -> Int[Tensor, " candidates"]:
        """The positions among which the next step chooses: the masked ones of the current block."""
        return self.places[self._candidates()]

    def _candidates(self) -> Int[Tensor, " candidates"]:
        step = self._steps[-1]
        return self._masked[step.first : step.last].nonzero()[:, 0] + step.first

    def advance(self, logits: Float[Tensor, "candidates vocabulary"]) -> None:
        """Takes one step with the model's logits at ``candidates()``."""
        # 1. Draw a token for every candidate.
        sampling, index = self._sampling, self._candidates()
        drawn = draw(
            logits,
            algorithm=sampling.algorithm,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            forbidden=sampling.forbidden,
            generator=self._generator,
        )
        # 2. Keep those that come first, the left one of equals; the others stay masked. All that
        #    are surer than the threshold come before the others.
        order, count = drawn.order, self._steps[-1].count
        if sampling.threshold is not None:
            is_sure = drawn.probability > sampling.threshold
            order, count = order.masked_fill(is_sure, torch.inf), max(count, int(is_sure.sum()))
        kept = order.sort(descending=True, stable=True).indices[:count]
        self._take(count)
        places = index[kept.cpu()]
        self.filled = self.places[places]
        self.ids[self.filled] = drawn.tokens[kept].cpu()
        self._probability[places] = drawn.probability[kept].float().cpu()
        self._masked[places] = False
        self.num_passes += 1

    def _take(self, count: int) -> None:
        """Takes so many tokens off the steps of the present block."""
        while count:
            step = self._steps.pop()
            if step.count > count:
                self._steps.append(replace(step, count=step.count - count))
            count -= min(count, step.count)

    def result(self) -> Infilled:
        """The filled request."""
        confidence = float(self._probability.mean()) if len(self.places) else 1.0
        return Infilled(tuple(self.ids.tolist()), confidence, self.num_passes, self.num_refreshes)
