"""Likelihood guidance: how likely the gold responses are under new instructions.

A metric on 16 examples is flat over most edits. The likelihood of the gold responses is not; it
screens proposals before a metric call is spent, and decides ties. Acceptance stays with the metric.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from dspy_diffusion_infill.contexts import Slot, ever_smaller, render_messages
from dspy_diffusion_infill.errors import ContextTooLongError
from dspy_diffusion_infill.infiller.scoring import BoundedScorer, ResponseScorer, ScoredPair

logger = logging.getLogger(__name__)

_ROOM_TO_GROW = 64  # tokens that are left free for instructions that get longer


@dataclass(frozen=True, slots=True)
class Gain:
    """How the log-likelihood of the gold responses changed.

    Attributes:
        mean: nats an example; higher is better.
        standard_error: of the mean, over the examples; infinite for a single one, which shows
            nothing about others.
    """

    mean: float
    standard_error: float

    @property
    def is_clear(self) -> bool:
        """Whether the mean is above its standard error.

        A gain that one example alone has is not, be it the only one or one of many.
        """
        return self.mean > self.standard_error


@dataclass(slots=True)
class Guide:
    """Scores instructions of one program's predictors with a response scorer.

    A predictor's examples are made to fit the scorer's context once, around the instructions that
    the program came with. All instructions are scored on these, so that their likelihoods can be
    compared example by example.

    Attributes:
        scorer: says how likely a response is.
        max_examples: of a longer trainset the first so many are scored.
    """

    scorer: ResponseScorer
    max_examples: int = 32
    _fitted: dict[str, list[Slot]] = field(default_factory=dict, init=False, repr=False)

    def log_likelihoods(self, slot: Slot, texts: Sequence[str]) -> list[tuple[float, ...]]:
        """Log-likelihood (nats) of each example's gold response under each of the instructions.

        Minus infinity under instructions that became too long for the scorer. All are asked for at
        once, so that a scorer can share what the prompts share.

        Raises:
            ContextTooLongError: not one example fits the scorer's context.
        """
        if slot.name not in self._fitted:
            self._fitted[slot.name] = self._fit(slot)
        pairs = [[_pair(one, text) for one in self._fitted[slot.name]] for text in texts]
        fits = [all(self._room(pair) >= 0 for pair in own) for own in pairs]
        asked = [pair for own, fit in zip(pairs, fits, strict=True) if fit for pair in own]
        scores = iter(self.scorer.log_likelihoods(asked) if asked else [])
        return [
            tuple(next(scores) if fit else -math.inf for _ in own)
            for own, fit in zip(pairs, fits, strict=True)
        ]

    def _fit(self, slot: Slot) -> list[Slot]:
        """The slot with each of its examples alone, as much of it as fits the scorer's context."""
        whole = [replace(slot, examples=(one,)) for one in slot.examples[: self.max_examples]]
        smaller = [self._smaller(one) for one in whole]
        fitted = [one for one in smaller if one is not None]
        if not fitted:
            raise ContextTooLongError(
                f"the instructions of {slot.name!r} with one shortened example do not fit the "
                f"context of the scorer {self.scorer.name}: shorten the instructions, or use "
                "another scorer or guidance=None"
            )
        lost = len(whole) - len(fitted)
        cut = sum(one is not before for one, before in zip(smaller, whole, strict=True)) - lost
        if cut or lost:
            logger.warning(
                f"the context of {self.scorer.name} is short for the {len(whole)} examples of "
                f"{slot.name!r}: guidance scores {cut} of them without demos or with cut values, "
                f"and leaves {lost} out"
            )
        return fitted

    def _smaller(self, single: Slot) -> Slot | None:
        """So much that instructions have room to grow, else the least; None where it does not fit.

        Who fits is decided around the program's own instructions, and so the same for all others.
        """
        smaller, room = single, 0.0
        for smaller, _ in ever_smaller(single):
            room = self._room(_pair(smaller, single.signature.instructions))
            if room >= _ROOM_TO_GROW:
                break
        return smaller if room >= 0 else None

    def _room(self, pair: ScoredPair) -> float:
        return self.scorer.room(pair) if isinstance(self.scorer, BoundedScorer) else math.inf


def _pair(slot: Slot, instructions: str) -> ScoredPair:
    """What the program sends for the slot's only example, and the gold response."""
    *prompt, response = render_messages(slot, instructions, slot.examples)
    return ScoredPair(tuple(prompt), response["content"])


def gain_over(new: Sequence[float], old: Sequence[float]) -> Gain:
    """The mean difference of paired log-likelihoods, and its standard error."""
    differences = [a - b for a, b in zip(new, old, strict=True)]
    mean = sum(differences) / len(differences)
    if len(differences) < 2:
        return Gain(mean, math.inf)
    variance = sum((d - mean) ** 2 for d in differences) / (len(differences) - 1)
    return Gain(mean, math.sqrt(variance / len(differences)))
