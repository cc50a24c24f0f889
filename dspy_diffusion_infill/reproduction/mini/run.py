"""A whole run: each seed pretrains a model, fine-tunes it in each way, and examines the results."""

import copy
import json as jsonlib
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Generator

from dspy_diffusion_infill.errors import MissingDependencyError
from dspy_diffusion_infill.reproduction.experiment import Scale
from dspy_diffusion_infill.reproduction.mini import training, world
from dspy_diffusion_infill.reproduction.mini.measures import draw_exam, measure
from dspy_diffusion_infill.reproduction.mini.progress import say
from dspy_diffusion_infill.reproduction.mini.recipe import SCALES, STAGES, MiniScale
from dspy_diffusion_infill.reproduction.mini.summary import MiniRow, markdown, table, verdicts


def run_mini(
    *,
    seeds: int = 3,
    output: Path | None = None,
    json: Path | None = None,
    display: bool = True,
    scale: Scale | MiniScale = "full",
) -> list[MiniRow]:
    """Reproduces the paper's claim in small: without masked prompts in training, no infilling.

    Args:
        seeds: runs, with seeds 0, 1, ...; they share the CPU's cores.
        output: folder for ``mini.md``, ``mini.png`` and ``mini.svg``.
        json: file for the rows; where it is given, a missing matplotlib costs no more than plots.
        display: print progress (standard error) and the table.
        scale: ``full`` (minutes), ``smoke`` (seconds, too short to learn anything), or your own.

    Returns:
        A row for each seed and stage.

    Raises:
        ValueError: ``seeds`` is below 1, ``scale`` is not known, or ``json`` is a folder.
        MissingDependencyError: ``output`` is given without ``json``, and matplotlib is missing.
    """
    if seeds < 1:
        raise ValueError(f"seeds must be at least 1, got seeds={seeds}")
    if isinstance(scale, str) and scale not in SCALES:
        raise ValueError(f"scale must be one of {', '.join(SCALES)}, got scale={scale!r}")
    has_plots = output is not None and _can_plot(required=json is None)
    if json is not None:
        if json.is_dir():
            raise ValueError(f"json must be a file, got the folder {json}")
        json.parent.mkdir(parents=True, exist_ok=True)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
    size = SCALES[scale] if isinstance(scale, str) else scale
    rows = [row for of_seed in _run_seeds(seeds, size, display) for row in of_seed]
    if json is not None:
        text = jsonlib.dumps([row.as_json() for row in rows], indent=1, allow_nan=False)
        json.write_text(text + "\n", encoding="utf-8")
    if output is not None:
        (output / "mini.md").write_text(markdown(rows), encoding="utf-8")
        if has_plots:
            from dspy_diffusion_infill.reproduction.mini import plot  # matplotlib is an extra

            plot.write_plot(rows, output)
    if display:
        _print(rows)
    return rows


def _can_plot(*, required: bool) -> bool:
    """Whether matplotlib is there; says what is missing before minutes of training, not after."""
    if find_spec("matplotlib") is not None:
        return True
    missing = "plots need matplotlib: pip install 'dspy-diffusion-infill[train]'"
    if required:
        raise MissingDependencyError(f"{missing}; or keep the rows alone, with json (--json)")
    say(f"{missing}; none are drawn")
    return False


def _run_seeds(seeds: int, scale: MiniScale, display: bool) -> Iterator[list[MiniRow]]:
    """One process for each core: models this small gain nothing from several threads."""
    job = partial(run_seed, scale=scale, display=display)
    workers = min(seeds, os.cpu_count() or 1)
    if workers == 1:
        yield from map(job, range(seeds))
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(job, range(seeds))


def run_seed(seed: int, *, scale: MiniScale, display: bool) -> list[MiniRow]:
    """All stages of one seed, from the same pretrained weights, examined on the same contexts."""
    with _one_thread():
        generator = Generator().manual_seed(seed)
        seen, unseen = world.split(generator)
        exam = draw_exam(unseen, scale.num_contexts, scale.max_examples, generator)
        start = training.new_model(scale, seed)
        training.pretrain(start, seen, scale=scale, seed=seed, log=display)
        rows = []
        for stage in STAGES:
            model = copy.deepcopy(start)
            training.fine_tune(model, seen, stage, scale=scale, seed=seed, log=display)
            denoiser = training.denoiser(model, name=f"mini {stage}, seed {seed}")
            rows.append(measure(denoiser, exam, stage=stage, seed=seed))
            if display:
                say(_progress(rows[-1]))
        return rows


@contextmanager
def _one_thread() -> Iterator[None]:
    """The same number of threads everywhere, so that the same seed gives the same sums."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _progress(row: MiniRow) -> str:
    return (
        f"seed {row.seed} · {row.stage}: infills {row.infill_exact_match:.2f}, "
        f"answers right {row.downstream_accuracy:.2f} under what it infilled, "
        f"{row.told_accuracy:.2f} under the truth, perplexity {row.perplexity:.2f}"
    )


def _print(rows: list[MiniRow]) -> None:
    header, *lines = table(rows)
    shown = Table(*header, show_lines=True)
    for line in lines:
        shown.add_row(*(entry.replace(" [", "\n[") for entry in line))
    console = Console()
    console.print(shown)
    for line in verdicts(rows):
        console.print(line, highlight=False)
