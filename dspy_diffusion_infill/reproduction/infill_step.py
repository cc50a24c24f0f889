"""Infilling as one step of a prompt search: the paper's procedure with the shipped optimizer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import dspy

from dspy_diffusion_infill.denoisers import Denoiser, Sampling
from dspy_diffusion_infill.optimizer.diffusion_infill import DiffusionInfill
from dspy_diffusion_infill.optimizer.options import PAPER
from dspy_diffusion_infill.optimizer.results import DetailedResults
from dspy_diffusion_infill.programs import instructions_of, with_instructions
from dspy_diffusion_infill.reproduction.experiment import SearchSpec
from dspy_diffusion_infill.reproduction.tasks import Benchmark
from dspy_diffusion_infill.windows import Prefix, take_marks


@dataclass(frozen=True, slots=True, kw_only=True)
class InfillStep:
    """What one infilling is made with.

    Attributes:
        task: has the metric.
        denoiser: proposes.
        prefix: put this many masks in front; None is sliding windows or the prompt's own marks.
        search: window, stride, mask, steps, budget.
        threads: program runs at once.
        seed: decides every random choice.
        folder: for a journal, with which a search that was cut off is resumed.
    """

    task: Benchmark
    denoiser: Denoiser
    prefix: int | None
    search: SearchSpec
    threads: int
    seed: int
    folder: Path


def infill(program: dspy.Module, shots: Sequence[dspy.Example], step: InfillStep) -> dspy.Module:
    """Compiles the program: no guidance, structure is masked, and the shots are also the valset.

    Where a part of the prompt is masked from the start (a prefix, marks), the best infilled prompt
    is taken, even if the unfilled one scored higher: that is what the paper's tables show. Where no
    proposal was ever tried, the prompt comes back unfilled; the runner reports it.
    """
    search = step.search
    optimizer = DiffusionInfill(
        step.task.metric,
        step.denoiser,
        window=search.window,
        stride=search.stride,
        mask=search.mask,
        masking=None if step.prefix is None else Prefix(step.prefix, 0),
        sweeps=search.sweeps,
        num_proposals=search.proposals,
        examples_per_context=(1, search.examples),
        sampling=Sampling(steps=search.steps, forbid_special=search.forbid_special),
        protect_structure=False,
        max_metric_calls=search.max_metric_calls,
        num_threads=step.threads,
        max_errors=len(shots),
        seed=step.seed,
        log_dir=step.folder,
        display_progress=False,
        **{**PAPER, "filters": search.filters},
    )
    better = optimizer.compile(program, list(shots))
    if not is_masked(step.prefix, instructions_of(program)):
        return better
    return with_instructions(better, _best_infilled(cast(DetailedResults, better.detailed_results)))


def is_masked(prefix: int | None, instructions: Mapping[str, str]) -> bool:
    """Whether a part of the prompt is masked from the start: a prefix, or marks."""
    return prefix is not None or any(take_marks(text)[1] for text in instructions.values())


def _best_infilled(results: DetailedResults) -> dict[str, str]:
    """The best trial's instructions by predictor; of two equal trials the more confident one's.

    Empty where there was no trial.
    """
    if not results.trials:
        return {}
    best = max(results.trials, key=lambda trial: (trial.score, trial.confidence))
    return {best.predictor: best.instructions}
