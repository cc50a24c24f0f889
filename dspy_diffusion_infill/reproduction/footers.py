"""The remarks below a table: what was measured on what, and what was left out, where and why."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from dspy_diffusion_infill.journal import Journal
from dspy_diffusion_infill.reproduction.experiment import PERPLEXITY, Experiment, PromptStep
from dspy_diffusion_infill.reproduction.models import Models
from dspy_diffusion_infill.reproduction.runner import CellResult, Runner


def count_remarks(results: Sequence[CellResult]) -> list[str]:
    """Lines on prompts, perplexity, failed calls and rows that are too long."""
    failed = sum(result.num_failed for result in results)
    too_long = _shown(results, [result.num_too_long for result in results])
    return [
        *_on_prompts(results),
        *_on_perplexity(results),
        f"Rows whose call failed, left out and asked for again by the next run: {failed}.",
        f"Rows too long for their model's context, left out and not counted as failed: {too_long}.",
    ]


def _on_prompts(results: Sequence[CellResult]) -> list[str]:
    """Whether searches found something: an "Infill" row may hold the template unchanged."""
    num_searched = sum(result.outcome != "given" for result in results)
    if not num_searched:
        return []
    unchanged, unfilled = (
        _shown(results, [result.outcome == outcome for result in results])
        for outcome in ("unchanged", "unfilled")
    )
    return [
        f"Searches for a prompt: {num_searched}. The prompt was left as it was in {unchanged}; "
        f"nothing was filled into a masked prompt, which then is not measured, in {unfilled}."
    ]


def _on_perplexity(results: Sequence[CellResult]) -> list[str]:
    measured = [result for result in results if result.perplexity is not None]
    if not measured:
        return []
    too_long = _shown(measured, [r.perplexity.num_too_long for r in measured if r.perplexity])
    return [
        "SE is the standard error of perplexity over its draws of masks. Rows too long for the "
        f"denoiser's context, left out of perplexity: {too_long}."
    ]


def _shown(results: Sequence[CellResult], counts: Sequence[int]) -> str:
    """The sum and its parts by condition: ``12 (LLaDA, + ICL: 12)``."""
    by_label: Counter[str] = Counter()
    for result, count in zip(results, counts, strict=True):
        by_label[", ".join(result.cell.condition.label.values())] += int(count)
    parts = "; ".join(f"{label}: {count}" for label, count in by_label.items() if count)
    return f"{by_label.total()} ({parts})" if parts else "0"


def retry_remark(journal: Journal, experiment: Experiment) -> str:
    """The calls that were sent again, over all sessions of the run."""
    mine = [one["reason"] for one in journal.values() if one["experiment"] == experiment.name]
    reasons = ", ".join(f"{reason}: {count}" for reason, count in sorted(Counter(mine).items()))
    why = f" ({reasons})" if mine else ""
    return f"Calls sent again after an error of the LM's server: {len(mine)}{why}."


def run_remarks(runner: Runner) -> list[str]:
    """What was measured on what; the same when the same command is run again."""
    experiment, test, shots = runner.experiment, runner.test, runner.shots
    num_test = min(len(test), experiment.test.num or len(test))
    num_shots = min(len(shots), experiment.shots.num or len(shots))
    cut = experiment.test.max_chars
    proposers = {
        step.by: _proposer(step, runner.models)
        for condition in experiment.measured
        for step in condition.steps
    }
    measured = (
        f"Measured on {num_test} of {len(test)} rows of {_short(test.source)} "
        f"({experiment.test.split})"
    )
    if PERPLEXITY in experiment.measures:
        num_scored = min(num_test, experiment.perplexity_rows or num_test)
        measured += (
            f"; perplexity on the first {num_scored} of them, with "
            f"{experiment.perplexity_samples} draws of masks each"
        )
    if any(condition.steps or condition.demos for condition in experiment.conditions):
        measured += f"; {num_shots} shots of {_short(shots.source)} ({experiment.shots.split})"
    notes = [
        f"{measured}." + (f" Texts are cut at {cut} characters." if cut else ""),
        f"Rows dropped by the data set's rule: {test.num_dropped} (test), {shots.num_dropped} "
        "(shots).",
    ]
    if proposers:
        named = ", ".join(f"{name} = {who}" for name, who in proposers.items())
        notes.append(f"Prompts proposed by: {named}.")
    return notes + closing_remarks(experiment)


def closing_remarks(experiment: Experiment) -> list[str]:
    """What the paper leaves open, and what the scale means."""
    notes = [f"The paper's figures: {remark}" for remark in experiment.paper_remarks]
    if experiment.scale != "full":
        notes.append(
            f"Scale: {experiment.scale}. This run shows that the machinery works; its figures say "
            "nothing about the paper's models."
        )
    return notes


def _proposer(step: PromptStep, models: Models) -> str | None:
    spec = models.spec(step.by)
    return spec.denoiser if step.kind == "infill" else spec.lm


def _short(source: str) -> str:
    """The last two parts of each path, so that tables do not depend on where the data lie."""
    return ", ".join("/".join(Path(part).parts[-2:]) for part in source.split(", "))
