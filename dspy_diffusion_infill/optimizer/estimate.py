"""What a ``compile`` will cost, before it starts."""

from dataclasses import dataclass

from dspy_diffusion_infill.contexts import render_messages
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
    options, targets = plan.options, list(plan.targets(plan.labelled).values())
    sweeps = [
        [(window, k) for target in targets for window in plan.windows(target, k)]
        for k in range(options.sweeps)
    ]
    validated = num_proposals = options.num_proposals
    if plan.guide is not None:
        validated = min(validated, options.num_validated)
    caps, steps = plan.scoring.caps, plan.infiller.sampling.steps
    if options.order == "left_to_right":
        num_moves = sum(map(len, sweeps))
        runs = plan.first_calls + num_moves * validated * len(plan.valset) + plan.last_calls
        runs = _at_most(runs, caps.max_metric_calls)
        passes = sum(min(steps, _most_masks(plan, *one)) for sweep in sweeps for one in sweep)
    else:
        assert caps.max_metric_calls is not None, "a plan of this order has a budget"
        runs = caps.max_metric_calls if targets else plan.first_calls + plan.last_calls
        rows = len(plan.valset) if options.validation == "full" else smallest_race(plan.valset)
        num_moves = -(-(runs - plan.first_calls - plan.last_calls) // rows)
        passes = num_moves * min(steps, MOST_MASKS)
    scored = num_moves * num_proposals + len(targets)
    return CostEstimate(
        num_windows=len(sweeps[0]),
        metric_calls=runs,
        lm_calls=runs * len(plan.base.predictors()),
        lm_tokens=_at_most(runs * sum(map(_prompt_tokens, targets)), caps.max_lm_tokens),
        denoiser_passes=passes * num_proposals + scored * _passes_a_text(plan),
        cost=_cost(plan, runs),
        seconds=caps.max_seconds,
    )


def _at_most(amount: int, cap: int | None) -> int:
    return amount if cap is None else min(amount, cap)


def _cost(plan: Plan, runs: int) -> float | None:
    """USD of so many runs; None where a price is unknown."""
    if not plan.spending.is_priced:
        return None
    cap, most = plan.scoring.max_cost, runs * plan.spending.bound.cost
    return most if cap is None else min(most, cap)


def _most_masks(plan: Plan, window: Window, sweep: int) -> int:
    """The masks of a window, or of the one that takes its place after edits lengthen the text."""
    masking: Masking = plan.options.maskings[sweep % len(plan.options.maskings)]
    return max(window.num_masks, int(getattr(masking, "mask", 0)))


def _passes_a_text(plan: Plan) -> int:
    """Denoiser passes that guidance takes to score one text; traced rows give an example each."""
    if plan.guide is None or not isinstance(scorer := plan.guide.scorer, DenoiserScorer):
        return 0
    return min(len(plan.trainset), plan.guide.max_examples) * (scorer.num_samples or 1)


def _prompt_tokens(target: Target) -> int:
    if not target.slot.examples:  # they come from traced runs, which an estimate does not make
        return len(target.text) // CHARS_PER_TOKEN
    messages = render_messages(target.slot, target.text, target.slot.examples[:1])[:-1]
    return sum(len(message["content"]) for message in messages) // CHARS_PER_TOKEN
