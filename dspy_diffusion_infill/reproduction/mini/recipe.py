"""Sizes and budgets of the small reproduction, and its stages."""

from dataclasses import dataclass
from typing import Literal

from dspy_diffusion_infill.reproduction.experiment import Scale

MaskingName = Literal["RO", "FS"]
StageName = Literal["None", "RO", "FS", "FS+RO"]

GENTLE = 0.1
"""Share of the peak learning rate at which RO follows FS.

The loss of RO is close to zero after few steps here. Normalized optimizers (Muon, AdamW) keep their
step size where the gradient vanishes: at the full rate they move the weights away from what FS had
learned, and FS+RO infills nothing. The paper fine-tunes 8B models at 1e-5.
"""


@dataclass(frozen=True, slots=True)
class StagePart:
    """One masking of a stage, with its shares of the stage's tokens and of the peak rate."""

    masking: MaskingName
    tokens: float = 1.0
    rate: float = 1.0


STAGES: dict[StageName, tuple[StagePart, ...]] = {
    "None": (),
    "RO": (StagePart("RO"),),
    "FS": (StagePart("FS"),),
    "FS+RO": (
        StagePart("FS", 2 / 3),
        StagePart("RO", 1 / 3, GENTLE),
    ),  # the paper's epochs, 8 and 4
}
"""The maskings that each stage trains with after pretraining, in turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MiniScale:
    """Sizes of model, training and exam.

    Attributes:
        width: of the model; its feed-forward part is twice as wide.
        layers: of the model.
        heads: of each layer.
        pretraining_tokens: tokens of texts in which instructions and examples never meet.
        stage_tokens: tokens of contexts that each of RO, FS and FS+RO is fine-tuned on.
        batch_tokens: tokens of a step.
        learning_rate: peak, in pretraining and in each part of a stage; cosine decay.
        max_examples: worked examples of a context: 1 to so many in training, so many in the test.
        num_contexts: test contexts for each stage and seed.
        met: share of the pretraining texts that hold an instruction together with its own examples.
    """

    width: int = 96
    layers: int = 3
    heads: int = 4
    pretraining_tokens: int = 1_800_000
    stage_tokens: int = 1_200_000
    batch_tokens: int = 2048
    learning_rate: float = 4e-3
    max_examples: int = 3
    num_contexts: int = 200
    met: float = 0.0


SCALES: dict[Scale, MiniScale] = {
    "full": MiniScale(),
    "smoke": MiniScale(
        width=48, layers=2, pretraining_tokens=40_000, stage_tokens=40_000, num_contexts=20
    ),
}
