"""What ``reproduce`` hands to the evaluation: optimizer, perplexity, progress bar."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import dspy
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from dspy_diffusion_infill.denoisers import Denoiser
from dspy_diffusion_infill.evaluation.experiment import SearchSpec
from dspy_diffusion_infill.evaluation.reproduction import Tools
from dspy_diffusion_infill.evaluation.runner import Cell
from dspy_diffusion_infill.evaluation.tasks import Task
from dspy_diffusion_infill.optimizer.diffusion_infill import DiffusionInfill
from dspy_diffusion_infill.training import perplexity
from dspy_diffusion_infill.windows import Prefix


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
    """The paper's procedure: no guidance, and shots as trainset and valset."""
    optimizer = DiffusionInfill(
        task.metric,
        denoiser,
        window=search.window,
        stride=search.stride,
        mask=search.mask,
        masking=None if prefix is None else Prefix(prefix, 0),
        sweeps=search.sweeps,
        num_proposals=search.proposals,
        steps=search.steps,
        max_metric_calls=search.max_metric_calls,
        guidance=None,
        num_threads=threads,
        max_errors=len(shots),
        seed=seed,
        log_dir=folder,
        display_progress=False,
    )
    return optimizer.compile(program, list(shots))


def measure_perplexity(
    denoiser: Denoiser,
    prompts: Sequence[str],
    responses: Sequence[str],
    *,
    num_samples: int,
    seed: int,
) -> float:
    """Diffusion perplexity of the responses."""
    found = perplexity(denoiser, prompts, responses, num_samples=num_samples, seed=seed)
    return found.perplexity


@contextmanager
def make_tools() -> Iterator[Tools]:
    """The tools, with a progress bar while the block runs."""
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
