"""What ``reproduce`` hands to the evaluation: optimizer, perplexity, progress bar."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import dspy
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from dspy_diffusion_infill.denoisers import Denoiser
from dspy_diffusion_infill.optimizer.diffusion_infill import DiffusionInfill
from dspy_diffusion_infill.optimizer.results import DetailedResults
from dspy_diffusion_infill.reproduction.experiment import SearchSpec
from dspy_diffusion_infill.reproduction.perplexity import GoldPerplexity
from dspy_diffusion_infill.reproduction.prompt_search import apply_instructions, instructions_of
from dspy_diffusion_infill.reproduction.reproduce import Tools
from dspy_diffusion_infill.reproduction.runner import Cell
from dspy_diffusion_infill.reproduction.tasks import Task
from dspy_diffusion_infill.training import perplexity
from dspy_diffusion_infill.windows import Prefix, take_marks


def infill(
    program: dspy.Module,
    shots: Sequence[dspy.Example],
    *,
    task: Task,
    denoiser: Denoiser,
    prefix: int | None,
    search: SearchSpec,
    threads: int,
    seed: int,
    folder: Path,
) -> dspy.Module:
    """The paper's procedure: no guidance, and shots as trainset and valset.

    Where a part of the prompt is masked from the start (a prefix, marks), the best infilled prompt
    is taken, even if the unfilled one scored higher: that is what the paper's tables show. Where no
    proposal was ever tried, the prompt comes back unfilled; the evaluation notices and says so.
    """
    optimizer = DiffusionInfill(
        task.metric,
        denoiser,
        window=search.window,
        stride=search.stride,
        mask=search.mask,
        masking=None if prefix is None else Prefix(prefix, 0),
        sweeps=search.sweeps,
        num_proposals=search.proposals,
        examples_per_context=(1, search.examples),
        steps=search.steps,
        max_metric_calls=search.max_metric_calls,
        guidance=None,
        num_threads=threads,
        max_errors=len(shots),
        seed=seed,
        log_dir=folder,
        display_progress=False,
    )
    is_masked = any(take_marks(text)[1] for text in instructions_of(program).values())
    better = optimizer.compile(program, list(shots))
    if prefix is not None or is_masked:
        apply_instructions(better, best_infilled(cast(DetailedResults, better.detailed_results)))
    return better


def best_infilled(results: DetailedResults) -> dict[str, str]:
    """The best trial's instructions by predictor, the more confident of two equal ones.

    Empty where there was no trial.
    """
    if not results.trials:
        return {}
    best = max(results.trials, key=lambda trial: (trial.score, trial.confidence))
    return {best.predictor: best.instructions}


def measure_perplexity(
    denoiser: Denoiser,
    prompts: Sequence[str],
    responses: Sequence[str],
    *,
    num_samples: int,
    seed: int,
) -> GoldPerplexity:
    """Diffusion perplexity of the responses that fit the denoiser with their prompts."""
    pairs = zip(prompts, responses, strict=True)
    fitting = [pair for pair in pairs if _fits(denoiser, *pair)]
    num_too_long = len(prompts) - len(fitting)
    if not fitting:
        return GoldPerplexity(None, None, 0, num_too_long)
    found = perplexity(
        denoiser,
        [prompt for prompt, _ in fitting],
        [response for _, response in fitting],
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


@contextmanager
def make_tools() -> Iterator[Tools]:
    """The tools, with a progress bar while the block runs."""
    # A judge's answer that is cut at max_tokens is unreadable and counted; it need not be logged.
    logging.getLogger("dspy.clients.lm").setLevel(logging.ERROR)
    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns,
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        line = bar.add_task("", total=None)

        def on_progress(cell: Cell, done: int, total: int) -> None:
            bar.update(line, description=str(cell), completed=done, total=total)

        yield Tools(
            infill=infill,
            perplexity=measure_perplexity,
            echo=lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True),
            on_progress=on_progress,
        )
