"""From a search to the program that ``compile`` returns, with its records."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import dspy
from pydantic import TypeAdapter

from dspy_diffusion_infill import disk
from dspy_diffusion_infill.errors import DataError
from dspy_diffusion_infill.identity import key_of
from dspy_diffusion_infill.optimizer.acceptance import paired_p
from dspy_diffusion_infill.optimizer.results import DetailedResults, ProposalCounts, Scores
from dspy_diffusion_infill.optimizer.search import Search
from dspy_diffusion_infill.optimizer.settings import versions
from dspy_diffusion_infill.outcomes import Evaluation, describe_error
from dspy_diffusion_infill.programs import (
    copy_program,
    give_back_lms,
    texts_of,
    with_instructions,
)
from dspy_diffusion_infill.shortening import in_short

logger = logging.getLogger(__name__)

BEST_FILE = "best_program.json"

_TEXTS = TypeAdapter(tuple[str | None, ...])
_CHANCE = 0.05  # p-value of the gain above which a warning says so


def compiled_program(search: Search) -> dspy.Module:
    """The best program with its records, bound to the LMs that the student is bound to.

    Args:
        search: at its end, or wherever it was cut off.
    """
    best = _best(search)
    records = records_of(search)
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


def save_best(search: Search, folder: Path) -> None:
    """Writes the best program so far to a folder, as DSPy's JSON; the old file or the new one.

    What cannot be written so is only warned of: the journal has all that was paid for.
    """
    whole, part = folder / BEST_FILE, folder / f"partial_{BEST_FILE}"
    try:
        _best(search).save(str(part))
        disk.replace(part, whole)
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
            "a gain of %.3f on %d rows may be chance (p = %.2f): measure it on more rows%s",
            gain,
            len(records.scores_after),
            records.p_value,
            "" if records.num_holdout else ", or give holdout=0.25",
        )


def records_of(search: Search) -> DetailedResults:
    """What there is to say of a search at any moment."""
    plan, baseline = search.plan, search.first.baseline if search.first else search.best
    names = {f.name for f in fields(ProposalCounts)}
    counts = {name: number for name, number in search.counts().items() if name in names}
    return DetailedResults(
        instructions_before=dict(plan.before),
        instructions_after={**texts_of(plan.base, plan.before), **search.instructions()},
        score_before=baseline.mean,
        score_after=search.best.mean,
        scores_before=baseline.scores,
        scores_after=search.best.scores,
        trials=tuple(search.trials),
        counts=ProposalCounts(**counts),
        metric_calls=search.validator.metric_calls,
        num_failures=search.validator.num_failures,
        denoiser_passes=plan.infiller.denoiser.num_passes - search.passes_before,
        seconds=search.validator.budget.seconds,
        denoiser=plan.infiller.denoiser.name,
        cache=plan.infiller.sampling.cache,
        cache_refreshes=plan.infiller.num_refreshes,
        guidance=None if plan.guide is None else plan.guide.scorer.name,
        skipped=dict(search.skipped),
        end_reason=search.end_reason,
        num_holdout=len(plan.holdout),
        **_of_holdout(search.holdout),
        lm_tokens=search.validator.budget.lm_tokens,
        lm_cost=search.validator.budget.lm_cost,
        p_value=_p_value(search.best.scores, baseline.scores),
        protected=search.protected,
        answers_before=_answers(search, baseline, search.start),
        answers_after=_answers(search, search.best, search.instructions()),
        inputs=_inputs_of_changed(search.plan.valset, baseline.scores, search.best.scores),
        refused=tuple(search.refused),
        spent_before=search.spent_before,
        settings=search.settings,
        versions=versions(),
    )


def _of_holdout(scored: tuple[Evaluation, Evaluation] | None) -> dict[str, Any]:
    if scored is None:
        return {}
    before, after = scored
    return {
        "holdout_before": before.mean,
        "holdout_after": after.mean,
        "holdout_scores_before": before.scores,
        "holdout_scores_after": after.scores,
    }


@lru_cache(maxsize=8)  # asked for after every trial
def _p_value(after: Scores, before: Scores) -> float:
    return paired_p(after, before)


def _answers(
    search: Search, evaluation: Evaluation, texts: Mapping[str, str]
) -> tuple[str | None, ...]:
    """What a program answered; of an evaluation from the journal, what was kept beside it.

    The report alone needs them, so what cannot be kept or read back ends no search.
    """
    key, known = key_of("answers", texts), evaluation.answers
    try:
        if (kept := search.answers.read(key, _TEXTS.validate_python)) is not None:
            return kept
        if any(known):
            search.answers.put(key, list(known), about="answers")
    except (DataError, OSError) as error:
        logger.debug("answers are not kept: %s", error)
    return known


def _inputs_of_changed(
    rows: Sequence[dspy.Example], before: Scores, after: Scores
) -> tuple[str | None, ...]:
    return tuple(
        _shown(row) if old != new else None
        for row, old, new in zip(rows, before, after, strict=False)
    )


def _shown(row: dspy.Example) -> str | None:
    """The inputs in short; None where a value of the user's has no text."""
    try:
        return in_short(row.inputs())
    except Exception:
        return None


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
