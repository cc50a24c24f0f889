"""Controls for the denoiser: the same windows, filled at random or by a causal LM."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol

import torch

from dspy_diffusion_infill.chat_spans import Message
from dspy_diffusion_infill.denoisers import Infilled, InfillRequest, Sampling, ScoreRequest
from dspy_diffusion_infill.denoisers.protocol import Denoiser, Encoding


class Filler(Protocol):
    """Says what stands in place of masks."""

    name: str

    def fill(self, left: Sequence[int], num: int, seed: int, sampling: Sampling) -> list[int]:
        """``num`` tokens after the tokens ``left``."""
        ...


@dataclass
class OtherFills:
    """A denoiser in everything, its surprise at a text too, but what it fills masks with."""

    denoiser: Denoiser
    filler: Filler
    num_passes: int = 0

    def __post_init__(self) -> None:
        self.name = f"{self.filler.name} for {self.denoiser.name}"
        self.context_length, self.mask_id = self.denoiser.context_length, self.denoiser.mask_id

    def encode(self, text: str) -> Encoding:
        return self.denoiser.encode(text)

    def decode(self, input_ids: Sequence[int]) -> str:
        return self.denoiser.decode(input_ids)

    def render(self, messages: Sequence[Message]) -> str:
        return self.denoiser.render(messages)

    def score(self, requests: Sequence[ScoreRequest]) -> list[tuple[float, ...]]:
        return self.denoiser.score(requests)

    def infill(self, requests: Sequence[InfillRequest], sampling: Sampling) -> list[Infilled]:
        return [self._filled(request, sampling) for request in requests]

    def _filled(self, request: InfillRequest, sampling: Sampling) -> Infilled:
        rng, ids = random.Random(request.seed), list[int]()
        for is_mask, part in groupby(map(int, request.input_ids), lambda k: k == self.mask_id):
            own = list(part)
            if is_mask:
                own = self.filler.fill(ids, len(own), rng.randrange(2**31), sampling)
            ids += own
        self.num_passes += 1
        return Infilled(tuple(ids), 1.0, 1)


class RandomWords:
    """Words drawn each alike from the words of given texts."""

    name = "random words"

    def __init__(self, denoiser: Denoiser, texts: Sequence[str]) -> None:
        words = sorted({word for text in texts for word in text.split()})
        self._words = [denoiser.encode(f" {word}").input_ids for word in words]

    def fill(self, left: Sequence[int], num: int, seed: int, sampling: Sampling) -> list[int]:
        rng, ids = random.Random(seed), list[int]()
        while len(ids) < num:
            ids += rng.choice(self._words)
        return ids[:num]


class CausalFills:
    """What the causal LM that a denoiser was made from writes after the text left of the masks."""

    name = "causal base"

    def __init__(self, denoiser: Any, model: Any) -> None:
        self._model = model
        tokenizer = denoiser.tokenizer
        special = {denoiser.mask_id, *tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
        self._special = sorted(special)
        self._temperature = denoiser.checkpoint.temperature

    def fill(self, left: Sequence[int], num: int, seed: int, sampling: Sampling) -> list[int]:
        """One sample at the denoiser's temperature, special tokens and end of text left out."""
        prompt, heat = torch.tensor([list(left)]), sampling.temperature
        with torch.random.fork_rng(devices=[]), torch.inference_mode():
            torch.manual_seed(seed)
            written = self._model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                do_sample=True,
                top_k=0,
                temperature=self._temperature if heat is None else heat,
                min_new_tokens=num,
                max_new_tokens=num,
                suppress_tokens=self._special,
                pad_token_id=self._special[0],
            )
        return written[0, len(left) :].tolist()
