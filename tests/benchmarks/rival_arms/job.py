"""What an arm gets, and what it gives back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import dspy

from dspy_diffusion_infill.denoisers.protocol import Denoiser, Sampling
from rival_arms.ledger import Incumbent, Ledger


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One task under one seed for one arm.

    Attributes:
        program: to be improved.
        rows: trainset and valset in one.
        metric: of a row and a prediction; 0 to 1.
        ledger: counts the program's runs, and cuts the arm off at its budget.
        seed: of every random choice.
        denoiser: loaded.
        denoiser_name: as ``load_denoiser`` takes it.
        sampling: how it fills masks.
        prompt_lm: writes whole instructions for the rivals.
        words: texts from whose words random fills are drawn.
    """

    program: dspy.Predict
    rows: Sequence[dspy.Example]
    metric: Callable[..., Any]
    ledger: Ledger
    seed: int
    denoiser: Denoiser
    denoiser_name: str
    sampling: Sampling
    prompt_lm: dspy.BaseLM
    words: Sequence[str]

    @property
    def start(self) -> str:
        """The instructions that the search starts from."""
        return self.program.signature.instructions

    @property
    def num_trials(self) -> int:
        """Evaluations on all rows that the budget allows."""
        return self.ledger.budget // len(self.rows)


Arm = Callable[[Job], list[Incumbent]]
