"""Diffusion perplexity of the measured prompt with its gold responses, measured once."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import dspy

from dspy_diffusion_infill.denoisers import Denoiser
from dspy_diffusion_infill.identity import key_of
from dspy_diffusion_infill.journal import Journal
from dspy_diffusion_infill.programs import signature_of
from dspy_diffusion_infill.reproduction.experiment import PERPLEXITY, Experiment, PerplexityOver


@dataclass(frozen=True, slots=True)
class GoldPerplexity:
    """Diffusion perplexity over some rows; lower is better.

    Attributes:
        value: the estimate; None where no row fits the denoiser.
        standard_error: of the estimate, from its draws of masks; None where there is none.
        num_rows: rows that entered.
        num_too_long: rows that were left out, since they do not fit the denoiser's context.
    """

    value: float | None
    standard_error: float | None
    num_rows: int
    num_too_long: int


def gold_perplexity(
    denoiser: Denoiser,
    predictor: dspy.Predict,
    adapter: dspy.Adapter,
    examples: Sequence[dspy.Example],
    *,
    experiment: Experiment,
    journal: Journal,
    seed: int,
    about: str,
) -> GoldPerplexity:
    """Perplexity of what the adapter sends, with the examples' gold verdicts as answers.

    A figure that the journal holds is not measured again.
    """
    chosen = list(examples)[: experiment.perplexity_rows]
    prompts = [_prompt(adapter, predictor, example) for example in chosen]
    gold = [example.verdict for example in chosen]
    draws, over = experiment.perplexity_samples, experiment.perplexity_over
    texts = (prompts, gold, over)
    key = key_of(PERPLEXITY, denoiser.name, denoiser.context_length, texts, draws, seed)
    if (known := journal.get(key)) is not None:
        return GoldPerplexity(**known)
    found = measure_perplexity(denoiser, prompts, gold, over=over, num_samples=draws, seed=seed)
    journal.put(key, asdict(found), about=about)
    return found


def measure_perplexity(
    denoiser: Denoiser,
    prompts: Sequence[str],
    responses: Sequence[str],
    *,
    over: PerplexityOver,
    num_samples: int,
    seed: int,
) -> GoldPerplexity:
    """Diffusion perplexity over the prompts and responses that fit the denoiser together."""
    # Torch comes with it, and what is checked before a run must start without.
    from dspy_diffusion_infill.training import perplexity

    pairs = zip(prompts, responses, strict=True)
    fitting = [pair for pair in pairs if _fits(denoiser, *pair)]
    num_too_long = len(prompts) - len(fitting)
    if not fitting:
        return GoldPerplexity(None, None, 0, num_too_long)
    found = perplexity(
        denoiser,
        [prompt for prompt, _ in fitting],
        [response for _, response in fitting],
        over=over,
        num_samples=num_samples,
        seed=seed,
    )
    return GoldPerplexity(found.perplexity, found.standard_error, len(fitting), num_too_long)


def _fits(denoiser: Denoiser, prompt: str, response: str) -> bool:
    """Whether ``perplexity`` would take the pair."""
    turns = [
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": response.strip()},
    ]
    return len(denoiser.encode(denoiser.render(turns)).input_ids) <= denoiser.context_length


def _prompt(adapter: dspy.Adapter, predictor: dspy.Predict, example: dspy.Example) -> str:
    messages = adapter.format(signature_of(predictor), [], dict(example.inputs()))
    return "\n\n".join(message["content"] for message in messages)
