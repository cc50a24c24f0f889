"""What a search leaves behind: every trial, and the counts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import dspy

from dspy_diffusion_infill.denoisers.protocol import Cache
from dspy_diffusion_infill.infiller.leaks import Likeness
from dspy_diffusion_infill.infiller.proposals import Reason
from dspy_diffusion_infill.optimizer.budget import Cap, Spent
from dspy_diffusion_infill.protection import Protected

Scores = tuple[float, ...]
EndReason = (
    Cap
    | Literal[
        "all windows tried",
        "perfect score",
        "patience",
        "no new proposals",
        "interrupted",
        "no run succeeded",
    ]
)
"""Why a search ended: it was done, a cap was reached, or an exception cut it off."""


@dataclass(frozen=True, slots=True)
class Edit:
    """A change of one predictor's instructions, or of another text of it.

    Attributes:
        predictor: its name; of another text ``Part.name``, as ``"self: description of answer"``.
        start: first character of the window in the old instructions.
        end: one past the last character of the window.
        old_text: what stood in the window.
        new_text: what was put there; pieces are joined with " … ".
        instructions: the whole new instructions.
    """

    predictor: str
    start: int
    end: int
    old_text: str
    new_text: str
    instructions: str


@dataclass(frozen=True, slots=True)
class Refused:
    """A proposal that a check dropped before any LM call.

    Attributes:
        sweep: as in ``Trial``; so are the next five.
        predictor: see above.
        start: see above.
        end: see above.
        old_text: see above.
        new_text: see above.
        confidence: the denoiser's, in (0, 1].
        reason: the check.
    """

    sweep: int
    predictor: str
    start: int
    end: int
    old_text: str
    new_text: str
    confidence: float
    reason: Reason


@dataclass(frozen=True, slots=True)
class Trial:
    """A scored proposal.

    Attributes:
        number: 1 for the first trial.
        sweep: 0 for the first pass over all windows; of an adaptive search the number of the move.
        predictor: name of the predictor whose instructions were changed.
        start: first character of the window in the old instructions.
        end: one past the last character of the window.
        old_text: what stood in the window.
        new_text: what the denoiser put there.
        instructions: the predictor's whole new instructions.
        score: mean of the metric over the valset; higher is better.
        scores: the metric of each example that was scored, in the order of ``rows``.
        rows: numbers of these examples in the valset: all in order, or fewer where racing ended the
            trial.
        num_failures: examples on which the program or the metric raised; they count with
            ``failure_score``.
        confidence: the denoiser's mean probability of the tokens that it filled in, in (0, 1].
        log_likelihood_gain: change of the gold responses' mean log-likelihood, nats an example;
            None without guidance.
        accepted: whether the search went on from here.
        also: changes of further predictors in the same trial.
        nearest: what each change copies from an example, or else the example that is nearest to
            it; the predictor's own first, then as in ``also``. None where there is no example, or
            with ``leaks="off"``.
        spent: what the search had taken when the trial was scored; no part of a comparison.
    """

    number: int
    sweep: int
    predictor: str
    start: int
    end: int
    old_text: str
    new_text: str
    instructions: str
    score: float
    scores: Scores
    rows: tuple[int, ...]
    num_failures: int
    confidence: float
    log_likelihood_gain: float | None
    accepted: bool
    also: tuple[Edit, ...] = ()
    nearest: tuple[Likeness | None, ...] = ()
    spent: Spent = field(default=Spent(), compare=False)


@dataclass(frozen=True, slots=True)
class ProposalCounts:
    """What became of the proposals; the drops cost no LM call.

    Attributes:
        proposed: made by the denoiser.
        unchanged: equal to the old instructions.
        duplicate: equal to an earlier proposal.
        degenerate: empty, broken characters, only punctuation, repeated tokens.
        new_placeholder: brought a placeholder or a field marker in.
        touches_protected: would have changed protected text, or what it is.
        edited_too_much: beyond ``max_edit_fraction``.
        too_long: beyond ``max_instruction_tokens``.
        grew_too_much: beyond ``max_growth``.
        copies_example: held a value, phrase, near copy or detail of an example.
        partial_labels: added some of the class labels but not all.
        screened: less likely responses than before; dropped by guidance.
        validated: scored with the metric.
        accepted: kept.
    """

    proposed: int = 0
    unchanged: int = 0
    duplicate: int = 0
    degenerate: int = 0
    new_placeholder: int = 0
    touches_protected: int = 0
    edited_too_much: int = 0
    too_long: int = 0
    grew_too_much: int = 0
    copies_example: int = 0
    partial_labels: int = 0
    screened: int = 0
    validated: int = 0
    accepted: int = 0


@dataclass(frozen=True, slots=True, repr=False)
class DetailedResults:
    """The whole story of a ``compile``.

    ``print`` shows it in a terminal, a notebook shows it as HTML, and ``report`` writes a page.

    Attributes:
        instructions_before: the student's instructions, by predictor name.
        instructions_after: those of the best program.
        score_before: mean metric of the student on the valset.
        score_after: mean metric of the best program on the valset.
        scores_before: metric of each example under the student.
        scores_after: metric of each example under the best program.
        trials: every scored proposal, in order.
        counts: what became of the proposals.
        metric_calls: program runs that were scored, the first one and those for traces included.
        num_failures: runs that raised, over all trials.
        denoiser_passes: forward passes of the denoiser.
        seconds: wall time; no part of a comparison.
        denoiser: its name.
        cache: which keys and values it kept: ``Sampling.cache``.
        cache_refreshes: how often a proposal's whole text was computed anew, since what was kept of
            its context had drifted: ``Sampling.max_drift``.
        guidance: name of the response scorer; None without.
        skipped: predictors that were left alone, and why.
        end_reason: why the search ended; the name of a cap where one was reached.
        holdout_before: mean metric of the student on the rows that were held out; None where none
            were, or where a cap left no room for them.
        holdout_after: that of the best program.
        num_holdout: how many rows were held out.
        holdout_scores_before: metric of each of them under the student; empty where not scored.
        holdout_scores_after: that under the best program.
        lm_tokens: prompt and completion tokens that the LMs of program and metric took, over all
            processes of a resumed search.
        lm_cost: what they cost, USD; None where a price is unknown.
        p_value: the chance of such a gain on the valset if the result were no better than the
            student (``acceptance.paired_p``). The search has chosen the best of many trials on
            these rows, so it is too small rather than too large.
        protected: what of the student's instructions, marks taken out, was never masked, by
            predictor name.
        answers_before: what the student answered to each row: its output fields, each cut to 200
            characters, or the beginning of what was raised. None where it is not known any more.
        answers_after: what the best program answered.
        inputs: of each row whose score has changed the inputs, each field cut to 200 characters;
            None for the others.
        refused: the last 2,000 proposals that a check dropped, each with the reason.
        spent_before: what the search had taken before the first trial.
        settings: the options and the models, as plain values, and the code that runs the search
            again.
        versions: of Python and of the packages that decide the outcome.
    """

    instructions_before: dict[str, str]
    instructions_after: dict[str, str]
    score_before: float
    score_after: float
    scores_before: Scores
    scores_after: Scores
    trials: tuple[Trial, ...]
    counts: ProposalCounts
    metric_calls: int
    num_failures: int
    denoiser_passes: int
    seconds: float = field(compare=False)
    denoiser: str
    cache: Cache
    guidance: str | None
    skipped: dict[str, str]
    end_reason: EndReason = "all windows tried"
    cache_refreshes: int = 0
    holdout_before: float | None = None
    holdout_after: float | None = None
    num_holdout: int = 0
    holdout_scores_before: Scores = ()
    holdout_scores_after: Scores = ()
    lm_tokens: int = 0
    lm_cost: float | None = None
    p_value: float = 1.0
    protected: dict[str, tuple[Protected, ...]] = field(
        default_factory=dict[str, tuple[Protected, ...]]
    )
    answers_before: tuple[str | None, ...] = field(default=(), compare=False)
    answers_after: tuple[str | None, ...] = field(default=(), compare=False)
    inputs: tuple[str | None, ...] = field(default=(), compare=False)
    refused: tuple[Refused, ...] = ()
    spent_before: Spent = field(default=Spent(), compare=False)
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any], compare=False)
    versions: Mapping[str, str] = field(default_factory=dict[str, str], compare=False)

    @property
    def spent(self) -> Spent:
        """What the search has taken in all."""
        return Spent(
            metric_calls=self.metric_calls,
            lm_tokens=self.lm_tokens,
            lm_cost=self.lm_cost,
            seconds=self.seconds,
        )

    def report(self, path: str | PathLike[str], *, rows: bool = True) -> Path:
        """Writes the report: one HTML page that needs no network, or Markdown for ``*.md``.

        The page holds instructions and, shortened, inputs and answers of rows.

        Args:
            path: of the file; its folder must exist.
            rows: False leaves all texts of rows out.

        Returns:
            The path.
        """
        from dspy_diffusion_infill.report.writing import write_report

        return write_report(self, path, rows=rows)

    def _repr_html_(self) -> str:
        from dspy_diffusion_infill.report.page import notebook_html

        return notebook_html(self)

    def __str__(self) -> str:
        from dspy_diffusion_infill.report.terminal import as_text

        return as_text(self)

    def __repr__(self) -> str:
        return (
            f"DetailedResults(score {self.score_before:.3f} → {self.score_after:.3f}, "
            f"{len(self.trials)} trials, {self.counts.accepted} kept, "
            f"{self.metric_calls} metric calls, end_reason={self.end_reason!r})"
        )


def results_of(program: dspy.Module) -> DetailedResults:
    """The record on a program that ``DiffusionInfill`` compiled.

    Raises:
        ValueError: it carries none.
    """
    results = vars(program).get("detailed_results")
    if not isinstance(results, DetailedResults):
        raise ValueError(f"this {type(program).__name__} was not compiled by DiffusionInfill")
    return results
