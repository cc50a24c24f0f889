"""Likelihood guidance: how likely the gold responses are under new instructions.

A metric on 16 examples is flat over most edits. The likelihood of the gold responses is not; it
screens proposals before a metric call is spent, and decides ties. Acceptance stays with the metric.
"""

import logging
import math
from collections import defaultdict
from collections.abc import Container, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import dspy

from dspy_diffusion_infill.contexts import Slot, ever_smaller, render_messages
from dspy_diffusion_infill.denoisers.protocol import Denoiser
from dspy_diffusion_infill.errors import ContextTooLongError
from dspy_diffusion_infill.labels import labels_of
from dspy_diffusion_infill.scorers.default import default_scorer
from dspy_diffusion_infill.scorers.protocol import BoundedScorer, ResponseScorer, ScoredPair

logger = logging.getLogger(__name__)

Guidance = Literal["auto"] | ResponseScorer | None
Signal = Literal["likelihood", "contrast"]
WrongAnswers = Mapping[int, tuple[str, ...]]
"""Responses that were wrong, as the LM writes them, by the number of the trainset's row."""

_ROOM_TO_GROW = 64  # tokens that are left free for instructions that get longer


@dataclass(frozen=True, slots=True)
class Gain:
    """How the log-likelihood of the gold responses changed.

    Attributes:
        mean: nats an example; higher is better. Over labels, each alike, where the gold responses
            are labels.
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
    _labels: dict[str, list[Hashable]] = field(default_factory=dict, init=False, repr=False)

    def log_likelihoods(
        self, slot: Slot, texts: Sequence[str], wrong: WrongAnswers | None = None
    ) -> list[tuple[float, ...]]:
        """Log-likelihood (nats) of each example's gold response under each of the instructions.

        For a row with wrong answers, less the logarithm of their mean likelihood. Minus infinity
        under instructions that became too long for the scorer. All are asked for at once, so that
        a scorer can share what the prompts share.

        Raises:
            ContextTooLongError: not one example fits the scorer's context.
        """
        examples = self._examples(slot)
        rivals = [self._rivals(one, wrong or {}) for one in examples]
        pairs = [
            [
                _with_responses(_pair(one, text), own)
                for one, own in zip(examples, rivals, strict=True)
            ]
            for text in texts
        ]
        fits = [all(self._room(pair) >= 0 for row in own for pair in row) for own in pairs]
        kept = [own for own, fit in zip(pairs, fits, strict=True) if fit]
        asked = [pair for own in kept for row in own for pair in row]
        scores = iter(self.scorer.log_likelihoods(asked) if asked else [])
        return [
            tuple(contrast(*[next(scores) for _ in row]) if fit else -math.inf for row in own)
            for own, fit in zip(pairs, fits, strict=True)
        ]

    def gain(self, slot: Slot, new: Sequence[float], old: Sequence[float]) -> Gain:
        """What ``new`` log-likelihoods gain over ``old`` ones, as ``log_likelihoods`` gives them.

        Where the gold responses are labels, each label counts alike, and not as often as it happens
        to stand in a few examples: else instructions that make the model say the most frequent one
        every time are a gain.
        """
        if slot.name not in self._labels:
            outputs = [one.examples[0].outputs for one in self._examples(slot)]
            self._labels[slot.name] = labels_of(outputs)
        return gain_over(new, old, self._labels[slot.name])

    def _examples(self, slot: Slot) -> list[Slot]:
        """The slot with each of the examples alone that are scored."""
        if slot.name not in self._fitted:
            self._fitted[slot.name] = self._fit(replace(slot, others={}))
        if not slot.others:
            return self._fitted[slot.name]
        return [replace(one, others=slot.others) for one in self._fitted[slot.name]]

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
            room = self._room(_pair(smaller, single.own_text))
            if room >= _ROOM_TO_GROW:
                break
        return smaller if room >= 0 else None

    def _rivals(self, single: Slot, wrong: WrongAnswers) -> list[str]:
        """The wrong answers to the slot's only example that fit around the program's own text."""
        row = single.examples[0].row
        answers = () if row is None else wrong.get(row, ())
        single = replace(single, others={})
        pair = _pair(single, single.own_text) if answers else None
        return [one for one in answers if pair and self._room(replace(pair, response=one)) >= 0]

    def _room(self, pair: ScoredPair) -> float:
        return self.scorer.room(pair) if isinstance(self.scorer, BoundedScorer) else math.inf


def _pair(slot: Slot, instructions: str) -> ScoredPair:
    """What the program sends for the slot's only example, and the gold response."""
    *prompt, response = render_messages(slot, instructions, slot.examples)
    return ScoredPair(tuple(prompt), response["content"])


def _with_responses(pair: ScoredPair, others: Sequence[str]) -> list[ScoredPair]:
    return [pair, *(replace(pair, response=one) for one in others)]


def contrast(gold: float, *wrong: float) -> float:
    """A log-likelihood, less the logarithm of the mean likelihood of wrong answers, if any."""
    if not wrong:
        return gold
    most = max(wrong)
    return gold - most - math.log(sum(math.exp(one - most) for one in wrong) / len(wrong))


def guide_for(
    program: dspy.Module, predictor: str, guidance: Guidance, denoiser: Denoiser
) -> Guide | None:
    """The guide that ``guidance`` asks for; ``"auto"`` goes by the LM of a predictor."""
    scorer = scorer_for(dict(program.named_predictors())[predictor].lm, guidance, denoiser)
    return None if scorer is None else Guide(scorer)


def scorer_for(
    lm: dspy.BaseLM | None, guidance: Guidance, denoiser: Denoiser
) -> ResponseScorer | None:
    """The scorer that ``guidance`` asks for; ``"auto"`` goes by the LM, or DSPy's where None."""
    if not isinstance(guidance, str):
        return guidance
    return default_scorer(lm or dspy.settings.lm, denoiser)


def labels_of_rows(rows: Sequence[dspy.Example], outputs: Container[str]) -> list[Hashable]:
    """Each row's label among the program's output fields; other columns are no labels."""
    return labels_of([{k: v for k, v in row.labels().items() if k in outputs} for row in rows])


def gain_over(
    new: Sequence[float], old: Sequence[float], groups: Sequence[Hashable] | None = None
) -> Gain:
    """The mean difference of paired log-likelihoods, and its standard error.

    Args:
        new: a log-likelihood for each example.
        old: what they are compared with, in the same order.
        groups: which group each example is of; groups count alike, whatever their size. None is
            one of all.
    """
    members: dict[Hashable, list[float]] = defaultdict(list)
    for group, a, b in zip(groups or [()] * len(new), new, old, strict=True):
        members[group].append(a - b)
    means = {group: sum(own) / len(own) for group, own in members.items()}
    mean = sum(means.values()) / len(means)
    freedom = len(new) - len(means)
    if freedom < 1:
        return Gain(mean, math.inf)
    squares = sum((d - means[group]) ** 2 for group, own in members.items() for d in own)
    variance = squares / freedom * sum(1 / len(own) for own in members.values()) / len(means) ** 2
    return Gain(mean, math.sqrt(variance))


def total_gain(gains: Sequence[Gain]) -> Gain:
    """What changes of several predictors gain together; their errors are taken as independent."""
    error = math.sqrt(sum(one.standard_error**2 for one in gains))
    return Gain(sum(one.mean for one in gains), error)
