"""How a search scores programs, and how wide and long it is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dspy_diffusion_infill.denoisers.protocol import Sampling
from dspy_diffusion_infill.identity import describe
from dspy_diffusion_infill.optimizer.acceptance import Acceptance
from dspy_diffusion_infill.optimizer.guidance import Guidance
from dspy_diffusion_infill.protection import Protect
from dspy_diffusion_infill.windows import Masking


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOptions:
    """How wide and how long.

    Attributes:
        maskings: the windows, one scheme a sweep in turn; marked spans have their own.
        sweeps: passes over all windows of all predictors.
        num_proposals: proposals for each window and sweep.
        num_validated: with guidance, how many of them are validated, the likeliest first.
        protect: the user's protected text.
        seed: decides every random choice.
        predictors: names of the predictors to optimise; None is all.
        examples_per_context: (fewest, most) worked examples that the denoiser sees.
        sampling: how the denoiser fills masks.
        guidance: ``"auto"``, a scorer, or None for the paper's procedure.
        acceptance: decides whether a trial is kept; None is ``MetricFirst``.
    """

    maskings: tuple[Masking, ...]
    sweeps: int
    num_proposals: int
    num_validated: int
    protect: Protect
    seed: int
    predictors: tuple[str, ...] | None
    examples_per_context: tuple[int, int]
    sampling: Sampling
    guidance: Guidance
    acceptance: Acceptance | None

    def identity(self) -> list[Any]:
        """What a journal knows the options by.

        Raises:
            ValueError: a masking of the user's own cannot be described.
        """
        plain = [self.sweeps, self.num_proposals, self.num_validated, self.seed]
        return [*plain, describe(self.maskings, "masking"), describe(self.protect, "protect")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scoring:
    """How programs are scored.

    Attributes:
        metric: called as metric(example, prediction), or with a third None where it requires a
            trace; higher is better. None is exact match, until a plan is made.
        num_threads: of ``dspy.Evaluate``; None is DSPy's setting.
        max_errors: failures that one evaluation tolerates; None is DSPy's setting.
        failure_score: what a row that raised counts; None is 0, or the lowest score that the metric
            has given where that is below 0.
        max_metric_calls: budget over all evaluations; None is none.
    """

    metric: Callable[..., Any] | None
    num_threads: int | None = None
    max_errors: int | None = None
    failure_score: float | None = None
    max_metric_calls: int | None = None
