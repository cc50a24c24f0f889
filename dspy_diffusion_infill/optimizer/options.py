"""How a search scores programs, and how wide and long it is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from typing import Any, Literal

import dspy

from dspy_diffusion_infill.denoisers.protocol import Sampling
from dspy_diffusion_infill.identity import describe
from dspy_diffusion_infill.infiller.bounds import NO_BOUNDS, Bounds
from dspy_diffusion_infill.infiller.leaks import Leaks
from dspy_diffusion_infill.optimizer.acceptance import Acceptance
from dspy_diffusion_infill.optimizer.budget import Caps
from dspy_diffusion_infill.optimizer.guidance import Guidance, Signal
from dspy_diffusion_infill.optimizer.prices import Price
from dspy_diffusion_infill.programs import Parts
from dspy_diffusion_infill.protection import Protect
from dspy_diffusion_infill.windows import Masking

Order = Literal["adaptive", "left_to_right", "random"]
Validation = Literal["racing", "full"]
ExampleDraw = Literal["failures", "random"]
Parents = Literal["pool", "best"]
Holdout = float | Sequence[dspy.Example] | None

CHOICES: Mapping[str, Any] = {
    "order": Order,
    "validation": Validation,
    "examples": ExampleDraw,
    "parents": Parents,
    "signal": Signal,
    "leaks": Leaks,
}
"""The options that have a few values each."""
PAPER: Mapping[str, Any] = {
    "order": "left_to_right",  # which scores all rows and draws each example alike
    "holdout": 0.0,
    "guidance": None,
    "filters": False,
}
"""The paper's procedure and nothing else: ``DiffusionInfill(metric, **PAPER)``. There, end-of-text
may also be filled in: ``sampling=Sampling(forbid_special=False)``."""

Auto = Literal["light", "medium", "heavy"]

RUNS_PER_ROW: Mapping[Auto, int] = {"light": 20, "medium": 50, "heavy": 120}
"""What ``auto`` allows: evaluations of the whole valset, the first one included."""


def default_auto(order: Order) -> Auto | None:
    """What ``auto`` is where no budget of runs is given: None where the order ends by itself."""
    return None if order == "left_to_right" else "light"


def kind_of_search(
    order: Order | None,
    validation: Validation | None,
    examples: ExampleDraw | None,
    sweeps: int | None,
) -> dict[str, Any]:
    """Order, validation and examples; what is None goes by the order, and that by ``sweeps``.

    Who asks for sweeps, or from left to right, gets the paper's search whole.
    """
    if order is None:
        order = "adaptive" if sweeps is None else "left_to_right"
    is_swept = order == "left_to_right"
    if validation is None:
        validation = "full" if is_swept else "racing"
    if examples is None:
        examples = "random" if is_swept else "failures"
    return {"order": order, "validation": validation, "examples": examples}


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOptions:
    """How wide and how long.

    Attributes:
        maskings: the windows, one scheme a sweep in turn; marked spans have their own.
        sweeps: passes over all windows of all predictors, left to right; None is 2.
        num_proposals: proposals for each window and sweep.
        num_validated: with guidance, how many of them are validated, the likeliest first.
        protect: the user's protected text.
        protect_structure: whether code, tables, numbers with units and the like are protected.
        leaks: what becomes of proposals that copy examples.
        bounds: how far the sum of all edits may go.
        seed: decides every random choice.
        predictors: names of the predictors to optimise; None is all.
        parts: which texts of them are edited.
        examples_per_context: (fewest, most) worked examples that the denoiser sees.
        sampling: how the denoiser fills masks.
        guidance: ``"auto"``, a scorer, or None for the paper's procedure.
        signal: what guidance goes by: ``contrast`` sets gold responses against wrong answers.
        filters: whether worthless proposals are dropped by what they say; False is the paper's.
        acceptance: decides whether a trial is kept; None is ``MetricFirst``.
        order: which window is masked next: ``left_to_right`` is the paper's.
        validation: ``racing`` ends a trial that can hardly win; ``full`` is the paper's.
        examples: which worked examples a context draws: ``random`` is each alike.
        parents: which programs are edited: ``best`` is the paper's.
        holdout: share of the valset that takes no part, and is scored at the end, or such rows;
            None is a quarter of a valset of 40 rows or more.
        patience: rounds over all windows of all neighbourhoods in which nothing is kept, after
            which a search ends; None is no end where something else ends it.
    """

    maskings: tuple[Masking, ...]
    sweeps: int | None
    num_proposals: int
    num_validated: int
    protect: Protect
    seed: int
    predictors: tuple[str, ...] | None
    examples_per_context: tuple[int, int]
    sampling: Sampling
    guidance: Guidance
    acceptance: Acceptance | None
    parts: tuple[Parts, ...] = ("instructions",)
    signal: Signal = "likelihood"
    filters: bool = True
    order: Order
    validation: Validation
    examples: ExampleDraw
    parents: Parents = "best"
    patience: int | None = None
    holdout: Holdout = None
    protect_structure: bool = True
    leaks: Leaks = "refuse"
    bounds: Bounds = NO_BOUNDS

    @property
    def num_sweeps(self) -> int:
        """Passes over all windows, from left to right."""
        return 2 if self.sweeps is None else self.sweeps

    def identity(self) -> list[Any]:
        """What a journal knows the options by.

        Raises:
            ValueError: a masking of the user's own cannot be described.
        """
        plain = [self.num_sweeps, self.num_proposals, self.num_validated, self.seed]
        plain += [self.order, self.validation, self.examples, self.parents, self.patience]
        plain += [self.protect_structure, self.leaks, self.filters, *astuple(self.bounds)]
        plain += [describe(self.maskings, "masking"), describe(self.protect, "protect")]
        later = {
            "signal": (self.signal, "likelihood"),
            "parts": (self.parts, ("instructions",)),
        }
        added = {name: value for name, (value, default) in later.items() if value != default}
        return [*plain, added] if added else plain


@dataclass(frozen=True, slots=True, kw_only=True)
class Scoring:
    """How programs are scored.

    Attributes:
        metric: called as metric(example, prediction), or with a third None where it requires a
            trace; higher is better. None is exact match, until a plan is made.
        num_repeats: runs of each row, whose mean is its score; at least 1.
        num_threads: of ``dspy.Evaluate``; None is DSPy's setting.
        max_errors: failures that one evaluation tolerates; None is DSPy's setting.
        run_timeout: seconds that a run may take; None is no limit.
        failure_score: what a row that raised counts; None is 0, or the lowest score that the metric
            has given where that is below 0.
        caps: what may be spent over all evaluations.
        auto: gives ``caps.max_metric_calls`` by the size of the valset; None does not.
        prices: the user's prices, by model.
    """

    metric: Callable[..., Any] | None
    num_repeats: int = 1
    num_threads: int | None = None
    max_errors: int | None = None
    run_timeout: float | None = None
    failure_score: float | None = None
    caps: Caps = field(default_factory=Caps)
    auto: Auto | None = None
    prices: Mapping[str, Price] | None = None

    def for_rows(self, num_rows: int, *, default: Auto | None = None) -> "Scoring":
        """With the budget that ``auto`` gives for a valset of so many rows.

        Args:
            num_rows: of the valset.
            default: in place of ``auto`` where neither it nor ``max_metric_calls`` is given.
        """
        auto = self.auto or (default if self.caps.max_metric_calls is None else None)
        if auto is None:
            return self
        caps = replace(self.caps, max_metric_calls=RUNS_PER_ROW[auto] * num_rows)
        return replace(self, caps=caps, auto=None)
