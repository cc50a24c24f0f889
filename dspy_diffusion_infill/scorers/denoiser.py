"""Likelihood of responses under a masked diffusion LM."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from dspy_diffusion_infill.chat_spans import render_response
from dspy_diffusion_infill.denoisers.protocol import Denoiser, ScoreRequest
from dspy_diffusion_infill.scorers.protocol import ScoredPair


@dataclass(frozen=True)
class DenoiserScorer:
    """Likelihood of responses under a masked diffusion LM.

    With ``num_samples=None`` the whole response is masked and every token is predicted at once:
    the log-probability of drawing it in a single reverse step. One pass a pair, and no bound on
    what the model gives over several steps.

    With ``num_samples=n`` it is a Monte Carlo estimate of a lower bound (ELBO) of the
    log-likelihood: for each sample, l of the response's L tokens are masked, l uniform in 1..L,
    and their log-probabilities are summed and weighted by L / l. Which tokens are masked depends
    on the response and ``seed`` only, so that two prompts are compared on the same masks.

    Attributes:
        denoiser: the model.
        num_samples: masks drawn for each pair, >= 1; None masks everything once.
        seed: decides the masks.
    """

    denoiser: Denoiser
    num_samples: int | None = None
    seed: int = 0
    name: str = field(init=False)

    def __post_init__(self) -> None:
        if self.num_samples is not None and self.num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {self.num_samples}")
        way = (
            "one-step" if self.num_samples is None else f"elbo-{self.num_samples}-seed-{self.seed}"
        )
        object.__setattr__(self, "name", f"{self.denoiser.name}#{way}")

    def log_likelihoods(self, pairs: Sequence[ScoredPair]) -> list[float]:
        """As ``ResponseScorer.log_likelihoods``; 0 where neither response nor end has a token.

        Raises:
            ContextTooLongError: a pair does not fit the denoiser's context.
        """
        requests: list[ScoreRequest] = []
        weights: list[list[float]] = []
        for pair in pairs:
            ids, places = response_tokens(self.denoiser, pair)
            weights.append([])
            for masked in self._masks(ids, places):
                requests.append(_masked_request(ids, masked, self.denoiser.mask_id))
                weights[-1].append(len(places) / len(masked))
        scores = iter(self.denoiser.score(requests) if requests else [])
        totals = [[weight * sum(next(scores)) for weight in own] for own in weights]
        return [sum(total) / len(total) if total else 0.0 for total in totals]

    def room(self, pair: ScoredPair) -> int:
        """As ``BoundedScorer.room``."""
        ids, _ = response_tokens(self.denoiser, pair)
        return self.denoiser.context_length - len(ids)

    def _masks(self, ids: Sequence[int], places: Sequence[int]) -> list[Sequence[int]]:
        if not places:
            return []
        if self.num_samples is None:
            return [places]
        rng = random.Random(f"{self.seed} {[ids[k] for k in places]}")
        return [
            sorted(rng.sample(places, rng.randint(1, len(places)))) for _ in range(self.num_samples)
        ]


def response_tokens(denoiser: Denoiser, pair: ScoredPair) -> tuple[tuple[int, ...], list[int]]:
    """The tokens of messages and response, and which of them are the response's.

    The token that ends the assistant's turn is one of them: a response that goes on is another
    one.
    """
    chat = render_response(denoiser, pair.messages, pair.response.strip())
    start, end = chat.spans[-1].start, chat.spans[-1].end
    encoding = denoiser.encode(chat.text)
    inside = [k for k, (_, stop) in enumerate(encoding.offsets) if stop > start]
    last = [k for k in inside if encoding.offsets[k][0] >= end][:1]
    return encoding.input_ids, [k for k in inside if encoding.offsets[k][0] < end] + last


def _masked_request(ids: Sequence[int], masked: Sequence[int], mask_id: int) -> ScoreRequest:
    hidden = list(ids)
    for k in masked:
        hidden[k] = mask_id
    return ScoreRequest(hidden, [ids[k] for k in masked])
