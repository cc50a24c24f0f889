"""What a ``compile`` will cost, before it starts."""

from dataclasses import dataclass

from dspy_diffusion_infill.contexts import render_messages
from dspy_diffusion_infill.optimizer.plan import Plan
from dspy_diffusion_infill.optimizer.targets import Target
from dspy_diffusion_infill.scorers.denoiser import DenoiserScorer
from dspy_diffusion_infill.windows import Masking, Window

_CHARS_PER_TOKEN = 4  # English text under the usual tokenizers


@dataclass(frozen=True, slots=True)
class CostEstimate:
    """The most that a search can take.

    It usually takes less, since worthless proposals are dropped.

    Attributes:
        num_windows: windows of all predictors, in one sweep.
        metric_calls: program runs, the first evaluation included.
        lm_calls: calls of the program's LM; a program with loops may make more, and DSPy's
            ChatAdapter asks a second time, in JSON, where it cannot read an answer.
        lm_tokens: prompt tokens of these calls, at four characters a token.
        denoiser_passes: forward passes over one context each; those of guidance too, where the
            denoiser says how likely responses are.
    """

    num_windows: int
    metric_calls: int
    lm_calls: int
    lm_tokens: int
    denoiser_passes: int

    def __str__(self) -> str:
        return (
            f"at most {self.metric_calls:,} program runs ({self.lm_calls:,} LM calls, about "
            f"{self.lm_tokens:,} prompt tokens) and {self.denoiser_passes:,} denoiser passes, "
            f"over {self.num_windows} windows a sweep"
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
    num_windows = sum(map(len, sweeps))
    runs = plan.first_calls + num_windows * validated * len(plan.valset)
    if (limit := plan.scoring.max_metric_calls) is not None:
        runs = min(runs, limit)
    steps = plan.infiller.sampling.steps
    passes = sum(min(steps, _most_masks(plan, *one)) for sweep in sweeps for one in sweep)
    scored = num_windows * num_proposals + len(targets)
    return CostEstimate(
        num_windows=len(sweeps[0]),
        metric_calls=runs,
        lm_calls=runs * len(plan.base.predictors()),
        lm_tokens=runs * sum(map(_prompt_tokens, targets)),
        denoiser_passes=passes * num_proposals + scored * _passes_a_text(plan),
    )


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
        return len(target.text) // _CHARS_PER_TOKEN
    messages = render_messages(target.slot, target.text, target.slot.examples[:1])[:-1]
    return sum(len(message["content"]) for message in messages) // _CHARS_PER_TOKEN
