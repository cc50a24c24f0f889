"""What a ``compile`` will cost, before it starts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dspy_diffusion_infill.contexts import render_messages
from dspy_diffusion_infill.optimizer.contrast import MOST_WRONG
from dspy_diffusion_infill.optimizer.neighbourhoods import MOST_MASKS
from dspy_diffusion_infill.optimizer.plan import Plan
from dspy_diffusion_infill.optimizer.racing import smallest_race
from dspy_diffusion_infill.optimizer.spending import CHARS_PER_TOKEN
from dspy_diffusion_infill.optimizer.targets import Target
from dspy_diffusion_infill.scorers.denoiser import DenoiserScorer
from dspy_diffusion_infill.windows import Masking, Window


@dataclass(frozen=True, slots=True)
class CostEstimate:
    """The most that a search can take.

    It usually takes less, since worthless proposals are dropped. The denoiser passes of an adaptive
    search are those of one trial a move; moves that bring no new proposal come on top.

    Attributes:
        num_windows: windows of all predictors, in one sweep.
        metric_calls: program runs, the first evaluation included.
        lm_calls: calls of the program's LM; a program with loops may make more, and DSPy's
            ChatAdapter asks a second time, in JSON, where it cannot read an answer.
        lm_tokens: prompt tokens of these calls, at four characters a token; at most
            ``max_lm_tokens``.
        denoiser_passes: forward passes over one context each; those of guidance too, where the
            denoiser says how likely responses are.
        cost: USD, if every prompt is as long as the longest row makes it and every answer as long
            as its LM's ``max_tokens``; at most ``max_cost``, and None where a price is unknown.
        seconds: ``max_seconds``; None without, since nobody knows how fast the LM answers.
    """

    num_windows: int
    metric_calls: int
    lm_calls: int
    lm_tokens: int
    denoiser_passes: int
    cost: float | None = None
    seconds: float | None = None

    def __str__(self) -> str:
        money = f", at most {self.cost:.2f} USD" if self.cost else ""
        time = f", at most {self.seconds:g} s" if self.seconds is not None else ""
        return (
            f"at most {self.metric_calls:,} program runs ({self.lm_calls:,} LM calls, about "
            f"{self.lm_tokens:,} prompt tokens) and {self.denoiser_passes:,} denoiser passes, "
            f"over {self.num_windows} windows a sweep{money}{time}"
        )


def estimate(plan: Plan) -> CostEstimate:
    """Counts the windows and multiplies; nothing is called."""
    targets = list(plan.targets(plan.labelled).values())
    caps, num_proposals = plan.scoring.caps, plan.options.num_proposals
    counted = _sweeps(plan, targets) if _is_in_sweeps(plan) else _moves(plan, targets)
    predictors = {target.slot.part.predictor: target for target in targets}.values()
    scored = counted.moves * num_proposals + len(targets)
    return CostEstimate(
        num_windows=sum(len(plan.windows(target)) for target in targets),
        metric_calls=counted.runs,
        lm_calls=counted.runs * len(plan.base.predictors()),
        lm_tokens=_at_most(counted.runs * sum(map(_prompt_tokens, predictors)), caps.max_lm_tokens),
        denoiser_passes=counted.passes * num_proposals + scored * _passes_a_text(plan),
        cost=_cost(plan, counted.runs),
        seconds=caps.max_seconds,
    )


@dataclass(frozen=True, slots=True)
class _Counted:
    """The most of each: windows that are masked, program runs, denoiser passes a proposal."""

    moves: int
    runs: int
    passes: int


def _is_in_sweeps(plan: Plan) -> bool:
    return plan.options.order == "left_to_right"


def _sweeps(plan: Plan, targets: Sequence[Target]) -> _Counted:
    """Of a search that goes over all windows a number of times."""
    options = plan.options
    windows = [
        (window, sweep)
        for sweep in range(options.num_sweeps)
        for target in targets
        for window in plan.windows(target, sweep)
    ]
    tried = options.num_proposals
    if plan.guide is not None:
        tried = min(tried, options.num_validated)
    runs = plan.first_calls + len(windows) * tried * plan.num_runs(plan.valset) + plan.last_calls
    steps = plan.infiller.sampling.steps
    passes = sum(min(steps, _most_masks(plan, *one)) for one in windows)
    return _Counted(len(windows), _at_most(runs, plan.scoring.caps.max_metric_calls), passes)


def _moves(plan: Plan, targets: Sequence[Target]) -> _Counted:
    """Of an adaptive search, which goes on until its budget is spent."""
    runs, around = plan.scoring.caps.max_metric_calls, plan.first_calls + plan.last_calls
    assert runs is not None, "a plan of this order has a budget"
    if not targets:
        return _Counted(0, around, 0)
    rows = plan.valset[: smallest_race(plan.valset)] if plan.is_race else plan.valset
    moves = math.ceil((runs - around) / plan.num_runs(rows))
    return _Counted(moves, runs, moves * min(plan.infiller.sampling.steps, MOST_MASKS))


def _at_most(amount: int, cap: int | None) -> int:
    return amount if cap is None else min(amount, cap)


def _cost(plan: Plan, runs: int) -> float | None:
    """USD of so many runs; None where a price is unknown."""
    if not plan.spending.is_priced:
        return None
    cap, most = plan.scoring.caps.max_cost, runs * plan.spending.bound.cost
    return most if cap is None else min(most, cap)


def _most_masks(plan: Plan, window: Window, sweep: int) -> int:
    """The masks of a window, or of the one that takes its place after edits lengthen the text."""
    masking: Masking = plan.options.maskings[sweep % len(plan.options.maskings)]
    return max(window.num_masks, int(getattr(masking, "mask", 0)))


def _passes_a_text(plan: Plan) -> int:
    """Denoiser passes that guidance takes to score one text; traced rows give an example each."""
    if plan.guide is None or not isinstance(scorer := plan.guide.scorer, DenoiserScorer):
        return 0
    responses = 1 + MOST_WRONG if plan.contrasts else 1
    return min(len(plan.trainset), plan.guide.max_examples) * (scorer.num_samples or 1) * responses


def _prompt_tokens(target: Target) -> int:
    if not target.slot.examples:  # they come from traced runs, which an estimate does not make
        return len(target.text) // CHARS_PER_TOKEN
    messages = render_messages(target.slot, target.text, target.slot.examples[:1])[:-1]
    return sum(len(message["content"]) for message in messages) // CHARS_PER_TOKEN
