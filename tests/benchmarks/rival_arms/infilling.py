"""The arms that fill windows: ours, its ablations, and the controls."""

from dataclasses import replace
from functools import partial
from typing import Any

from dspy_diffusion_infill import DiffusionInfill
from dspy_diffusion_infill.optimizer.acceptance import MetricFirst
from dspy_diffusion_infill.optimizer.options import PAPER
from dspy_diffusion_infill.optimizer.results import results_of
from dspy_diffusion_infill.training.causal_base import load_causal_base
from rival_arms.fillers import CausalFills, OtherFills, RandomWords
from rival_arms.job import Arm, Job
from rival_arms.ledger import Incumbent, trajectory_of

SWITCHES: dict[str, dict[str, Any]] = {
    "without_order": {"sweeps": 12, "validation": "racing", "examples": "failures"},
    "without_choice_of_windows": {"order": "random"},
    "without_racing": {"validation": "full"},
    "without_failures": {"examples": "random"},
    "without_guidance": {"guidance": None},
    "without_examples": {"examples_per_context": (1, 1)},
    "with_contrast": {"signal": "contrast"},
    "with_pool": {"parents": "pool"},
    "with_holdout": {"holdout": 0.25},
    "without_label_guard": {"acceptance": MetricFirst(labels=())},
    "with_paired_test": {"acceptance": MetricFirst(max_p=0.2)},
}
"""Each changes one thing of the default search."""


def infill(job: Job, denoiser: Any = None, **options: Any) -> list[Incumbent]:
    """``DiffusionInfill`` with these options, by default its own."""
    optimizer = DiffusionInfill(
        job.metric,
        denoiser or job.denoiser,
        max_metric_calls=job.ledger.budget,
        max_errors=len(job.rows),
        seed=job.seed,
        display_progress=False,
        **{"sampling": job.sampling, **options},
    )
    return trajectory_of(results_of(optimizer.compile(job.program, job.rows)))


def paper(job: Job) -> list[Incumbent]:
    """The paper's procedure: end-of-text may be filled in, and nothing is filtered or guided."""
    return infill(job, sampling=replace(job.sampling, forbid_special=False), **PAPER)


def random_fills(job: Job) -> list[Incumbent]:
    """The default search with random words in its windows."""
    words = RandomWords(job.denoiser, job.words)
    return infill(job, OtherFills(job.denoiser, words))


def causal_fills(job: Job) -> list[Incumbent]:
    """The default search with what the causal LM writes after the text left of its windows."""
    filler = CausalFills(job.denoiser, load_causal_base(job.denoiser_name))
    return infill(job, OtherFills(job.denoiser, filler))


ARMS: dict[str, Arm] = {
    "infill": infill,
    "left_to_right": partial(infill, sweeps=12),
    "paper": paper,
    "random": random_fills,
    "causal": causal_fills,
}
ABLATIONS: dict[str, Arm] = {name: partial(infill, **switch) for name, switch in SWITCHES.items()}
