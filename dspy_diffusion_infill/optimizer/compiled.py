"""From a search to the program that ``compile`` returns, with its records."""

import logging
from dataclasses import fields
from typing import Any

import dspy

from dspy_diffusion_infill.optimizer.acceptance import paired_p
from dspy_diffusion_infill.optimizer.results import DetailedResults, ProposalCounts
from dspy_diffusion_infill.optimizer.search import Search
from dspy_diffusion_infill.outcomes import describe_error
from dspy_diffusion_infill.programs import (
    copy_program,
    give_back_lms,
    instructions_of,
    with_instructions,
)

logger = logging.getLogger(__name__)

BEST_FILE = "best_program.json"

_CHANCE = 0.05  # p-value of the gain above which a warning says so


def compiled_program(search: Search, *, passes: int, seconds: float) -> dspy.Module:
    """The best program with its records, bound to the LMs that the student is bound to.

    Args:
        search: at its end, or wherever it was cut off.
        passes: forward passes that the denoiser made.
        seconds: wall time of the whole ``compile``.
    """
    best = _best(search)
    records = _records(search, instructions_of(best), passes, seconds)
    _warn(search, records)
    candidates = _candidates(search)
    for row in candidates:
        give_back_lms(row["program"], search.plan.student)
    vars(best).update(
        detailed_results=records,
        total_calls=records.metric_calls,
        candidate_programs=candidates,
    )
    return best


def save_best(search: Search) -> None:
    """Writes the best program so far to ``log_dir``, as DSPy's JSON; the old file or the new one.

    What cannot be written so is only warned of: the journal has all that was paid for.
    """
    folder = search.plan.log_dir
    assert folder is not None, "there is a folder to write to"
    whole, part = folder / BEST_FILE, folder / f"partial_{BEST_FILE}"
    try:
        _best(search).save(str(part))
        part.replace(whole)
    except Exception as error:  # of DSPy, and of whatever the demos hold
        logger.warning("the best program so far is not in %s: %s", whole, describe_error(error))


def _best(search: Search) -> dspy.Module:
    """The best program so far, bound to the LMs that the student is bound to."""
    best = with_instructions(search.plan.base, search.instructions())
    give_back_lms(best, search.plan.student)
    return best


def _warn(search: Search, records: DetailedResults) -> None:
    """Says what was left alone, how often runs failed, and of a gain that it may be chance."""
    for name, reason in search.skipped.items():
        logger.warning("the instructions of %r are left alone: %s", name, reason)
    if failed := search.validator.num_failures:
        ((kind, times),) = search.validator.failure_kinds.most_common(1)
        runs = search.validator.metric_calls
        logger.warning("%d of %d runs raised, most often (%d): %s", failed, runs, times, kind)
    gain = records.score_after - records.score_before
    if gain > 0 and records.p_value > _CHANCE:
        logger.warning(
            "a gain of %.3f on %d rows may be chance (p = %.2f): measure it on more rows, or give "
            "holdout=0.25",
            gain,
            len(records.scores_after),
            records.p_value,
        )


def _records(search: Search, after: dict[str, str], passes: int, seconds: float) -> DetailedResults:
    plan, baseline = search.plan, search.first.baseline if search.first else search.best
    names = {f.name for f in fields(ProposalCounts)}
    counts = {name: number for name, number in search.counts().items() if name in names}
    return DetailedResults(
        instructions_before=dict(plan.before),
        instructions_after=after,
        score_before=baseline.mean,
        score_after=search.best.mean,
        scores_before=baseline.scores,
        scores_after=search.best.scores,
        trials=tuple(search.trials),
        counts=ProposalCounts(**counts),
        metric_calls=search.validator.metric_calls,
        num_failures=search.validator.num_failures,
        denoiser_passes=passes,
        seconds=seconds,
        denoiser=plan.infiller.denoiser.name,
        cache=plan.infiller.sampling.cache,
        guidance=None if plan.guide is None else plan.guide.scorer.name,
        skipped=dict(search.skipped),
        end_reason=search.end_reason,
        holdout_before=None if search.holdout is None else search.holdout[0].mean,
        holdout_after=None if search.holdout is None else search.holdout[1].mean,
        num_holdout=len(plan.holdout),
        lm_tokens=search.validator.budget.lm_tokens,
        lm_cost=search.validator.budget.lm_cost,
        p_value=paired_p(search.best.scores, baseline.scores),
        protected={
            name: tuple(target.protection.found(target.text))
            for name, target in plan.targets(plan.labelled).items()
        },
    )


def _candidates(search: Search) -> list[dict[str, Any]]:
    """The programs of student and trials, best first, as DSPy's other optimizers give them.

    A trial that racing ended has no score of all rows, and is none of them.
    """
    base = search.plan.base
    if search.first is None:
        return []
    rows: list[tuple[float, dspy.Module]] = [(search.first.baseline.mean, copy_program(base))]
    for trial, candidate in zip(search.trials, search.tried, strict=True):
        if len(trial.rows) == len(search.plan.valset):
            rows.append((trial.score, with_instructions(base, candidate.texts)))
    rows.sort(key=lambda row: -row[0])
    return [{"score": score, "program": program} for score, program in rows]
