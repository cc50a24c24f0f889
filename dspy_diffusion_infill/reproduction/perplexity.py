"""Diffusion perplexity of the gold responses under the measured prompt.

The figure itself comes from the layer above (``Perplexity``); here it is asked for, once, and
journaled.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

import dspy

from dspy_diffusion_infill.denoisers import Denoiser
from dspy_diffusion_infill.identity import key_of
from dspy_diffusion_infill.journal import Journal
from dspy_diffusion_infill.reproduction.experiment import Experiment
from dspy_diffusion_infill.reproduction.prompt_search import signature_of

PERPLEXITY = "perplexity"


@dataclass(frozen=True, slots=True)
class GoldPerplexity:
    """Diffusion perplexity over some rows; lower is better.

    Attributes:
        value: the estimate; None where no row fits the denoiser.
        standard_error: of the estimate, from its draws of masks; None where there is none.
        num_rows: rows that entered.
        num_too_long: rows that were left out, since they do not fit the denoiser's context.
    """

    value: float | None
    standard_error: float | None
    num_rows: int
    num_too_long: int


class Perplexity(Protocol):
    """Diffusion perplexity of responses, given their prompts."""

    def __call__(
        self,
        denoiser: Denoiser,
        prompts: Sequence[str],
        responses: Sequence[str],
        *,
        num_samples: int,
        seed: int,
    ) -> GoldPerplexity:
        """Measures the rows that fit the denoiser and counts those that do not."""
        ...


@dataclass(frozen=True, slots=True)
class PerplexityMeter:
    """Measures perplexity once for each prompt, denoiser and seed.

    Attributes:
        measure: from the layer above.
        experiment: says over how many rows, with how many draws.
        journal: what is known already.
    """

    measure: Perplexity
    experiment: Experiment
    journal: Journal

    def of(
        self,
        denoiser: Denoiser,
        predictor: dspy.Predict,
        adapter: dspy.Adapter,
        examples: Sequence[dspy.Example],
        *,
        seed: int,
        about: str,
    ) -> GoldPerplexity:
        """Perplexity of the examples' gold verdicts as answers to what the adapter sends."""
        chosen = list(examples)[: self.experiment.perplexity_rows]
        prompts = [_prompt(adapter, predictor, example) for example in chosen]
        gold = [example.verdict for example in chosen]
        draws = self.experiment.perplexity_samples
        key = key_of(PERPLEXITY, denoiser.name, denoiser.context_length, prompts, gold, draws, seed)
        if (known := self.journal.get(key)) is not None:
            return GoldPerplexity(**known)
        found = self.measure(denoiser, prompts, gold, num_samples=draws, seed=seed)
        self.journal.put(key, asdict(found), about=about)
        return found


def _prompt(adapter: dspy.Adapter, predictor: dspy.Predict, example: dspy.Example) -> str:
    messages = adapter.format(signature_of(predictor), [], dict(example.inputs()))
    return "\n\n".join(message["content"] for message in messages)
