"""Likelihood guidance: how likely the gold responses are under new instructions.

A metric on 16 examples is flat over most edits. The likelihood of the gold responses is not; it
screens proposals before a metric call is spent, and decides ties. Acceptance stays with the metric.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dspy_diffusion_infill.contexts import Slot, WorkedExample, render_messages
from dspy_diffusion_infill.infiller.scoring import ResponseScorer, ScoredPair


@dataclass(frozen=True, slots=True)
class Gain:
    """How the log-likelihood of the gold responses changed.

    Attributes:
        mean: nats an example; higher is better.
        standard_error: of the mean, over the examples.
    """

    mean: float
    standard_error: float

    @property
    def is_clear(self) -> bool:
        """Whether the mean is above its standard error: a gain on one or two examples is not."""
        return self.mean > self.standard_error


@dataclass(frozen=True, slots=True)
class Guide:
    """Scores instructions of one predictor with a response scorer.

    Attributes:
        scorer: says how likely a response is.
        max_examples: of a longer trainset the first so many are scored.
    """

    scorer: ResponseScorer
    max_examples: int = 32

    def log_likelihoods(self, slot: Slot, texts: Sequence[str]) -> list[tuple[float, ...]]:
        """Log-likelihood (nats) of each example's gold response under each of the instructions.

        All are asked for at once, so that a scorer can share what the prompts share.
        """
        examples = slot.examples[: self.max_examples]
        pairs = [_pair(slot, text, example) for text in texts for example in examples]
        scores, size = self.scorer.log_likelihoods(pairs), len(examples)
        return [tuple(scores[k * size : (k + 1) * size]) for k in range(len(texts))]


def _pair(slot: Slot, instructions: str, example: WorkedExample) -> ScoredPair:
    *prompt, response = render_messages(slot, instructions, [example])
    return ScoredPair(tuple(prompt), response["content"])


def gain_over(new: Sequence[float], old: Sequence[float]) -> Gain:
    """The mean difference of paired log-likelihoods and its standard error (0 for one example)."""
    differences = [a - b for a, b in zip(new, old, strict=True)]
    mean = sum(differences) / len(differences)
    if len(differences) < 2:
        return Gain(mean, 0.0)
    variance = sum((d - mean) ** 2 for d in differences) / (len(differences) - 1)
    return Gain(mean, math.sqrt(variance / len(differences)))
