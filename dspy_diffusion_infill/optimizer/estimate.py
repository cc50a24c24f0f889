"""What a ``compile`` will cost, before it starts."""

from dataclasses import dataclass

from dspy_diffusion_infill.contexts import render_messages
from dspy_diffusion_infill.optimizer.search import Search, Target
from dspy_diffusion_infill.scorers.denoiser import DenoiserScorer

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


def estimate(search: Search) -> CostEstimate:
    """Counts the windows and multiplies; nothing is called."""
    options, num_examples = search.options, len(search.valset)
    sweeps = [
        [window for target in search.targets.values() for window in search.windows_of(target, k)]
        for k in range(options.sweeps)
    ]
    validated = num_proposals = options.num_proposals
    if search.guide is not None:
        validated = min(validated, options.num_validated)
    trials = sum(map(len, sweeps)) * validated
    runs = search.first_calls + trials * num_examples
    if (limit := search.validator.max_metric_calls) is not None:
        runs = min(runs, limit)
    steps = search.infiller.sampling.steps
    passes = sum(min(steps, window.num_masks) for sweep in sweeps for window in sweep)
    scored = sum(map(len, sweeps)) * num_proposals + len(search.targets)
    predictors = search.student.predictors()
    return CostEstimate(
        num_windows=len(sweeps[0]),
        metric_calls=runs,
        lm_calls=runs * len(predictors),
        lm_tokens=runs * sum(map(_prompt_tokens, search.targets.values())),
        denoiser_passes=passes * num_proposals + scored * _passes_a_text(search),
    )


def _passes_a_text(search: Search) -> int:
    """Denoiser passes that guidance takes to score one text."""
    if search.guide is None or not isinstance(scorer := search.guide.scorer, DenoiserScorer):
        return 0
    num_examples = max((len(t.slot.examples) for t in search.targets.values()), default=0)
    return min(num_examples, search.guide.max_examples) * (scorer.num_samples or 1)


def _prompt_tokens(target: Target) -> int:
    if not target.slot.examples:  # they come from a traced run, which an estimate does not make
        return len(target.text) // _CHARS_PER_TOKEN
    messages = render_messages(target.slot, target.text, target.slot.examples[:1])[:-1]
    return sum(len(message["content"]) for message in messages) // _CHARS_PER_TOKEN
