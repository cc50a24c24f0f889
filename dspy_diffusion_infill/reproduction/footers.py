"""The counts below a table: what was left out of it, where, and why."""

from collections import Counter
from collections.abc import Sequence

from dspy_diffusion_infill.reproduction.runner import CellResult


def count_remarks(results: Sequence[CellResult]) -> list[str]:
    """A line each for prompts, perplexity, failed calls and rows that are too long."""
    failed = sum(result.num_failed for result in results)
    too_long = _shown(results, [result.num_too_long for result in results])
    return [
        *_on_prompts(results),
        *_on_perplexity(results),
        f"Rows whose call failed, left out and asked for again by the next run: {failed}.",
        f"Rows too long for their model's context, left out and not counted as failed: {too_long}.",
    ]


def _on_prompts(results: Sequence[CellResult]) -> list[str]:
    """Without it, a row called "Infill" could be the template as it was."""
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
    """The sum, and what it is made of: ``12 (LLaDA, + ICL: 12)``."""
    by_label: Counter[str] = Counter()
    for result, count in zip(results, counts, strict=True):
        by_label[", ".join(result.cell.condition.label.values())] += int(count)
    parts = "; ".join(f"{label}: {count}" for label, count in by_label.items() if count)
    return f"{by_label.total()} ({parts})" if parts else "0"
