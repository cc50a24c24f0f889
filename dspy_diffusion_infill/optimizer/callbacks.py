"""What happens in a search, told to whoever wants to know: progress bar, run files, MLflow, yours.

``DiffusionInfill(callbacks=[…])`` takes subclasses of ``SearchCallback``. Their methods are called
one after another, all but ``on_run`` in the thread of ``compile``. They cannot change the search.
What a callback raises is logged and does not end the search; Ctrl-C does.

A search that is resumed from a journal tells everything again, from the beginning.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dspy

from dspy_diffusion_infill.infiller.proposals import Proposal, Reason
from dspy_diffusion_infill.optimizer.budget import Spent
from dspy_diffusion_infill.optimizer.results import DetailedResults, Refused, Trial


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEvent:
    """An evaluation begins, or a program run of it has ended.

    Attributes:
        about: what it is of: "baseline" (the student on the valset), "traced runs" (on the
            trainset, for responses that have no label), "trial" or "holdout".
        ended: rows whose runs have ended by now; of runs that end at once, each event may count
            all.
        replayed: of these, the rows that the journal of an earlier process had.
        rows: that the evaluation runs.
        spent: by the whole search, without the run that has just ended and those under way.
        most_metric_calls: as in ``StartEvent``.
        max_seconds: as there.
    """

    about: str
    ended: int
    replayed: int
    rows: int
    spent: Spent
    most_metric_calls: int
    max_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StartEvent:
    """The student is scored, and the first window comes next.

    Attributes:
        results: so far; no trial is among them.
        most_metric_calls: program runs that the whole search can take, those so far included.
        max_seconds: the cap on wall time; None is none.
    """

    results: DetailedResults
    most_metric_calls: int
    max_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProposalEvent:
    """A window was masked and filled.

    Attributes:
        sweep: as in ``Trial``.
        old: the instructions that the window is of.
        proposals: what the denoiser made, of one predictor and one window; there may be none.
        reasons: of each proposal, why it is worth no metric call; None where it is.
    """

    sweep: int
    old: str
    proposals: tuple[Proposal, ...]
    reasons: tuple[Reason | None, ...]

    def refused(self) -> list[Refused]:
        """The proposals that are worth no metric call."""
        return [
            Refused(
                sweep=self.sweep,
                predictor=one.predictor,
                start=one.window.start,
                end=one.window.end,
                old_text=one.window.text_of(self.old),
                new_text=" … ".join(one.fills),
                confidence=one.confidence,
                reason=reason,
            )
            for one, reason in zip(self.proposals, self.reasons, strict=True)
            if reason is not None
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialEvent:
    """A trial was scored; ``on_best`` follows where it was kept.

    Attributes:
        trial: the last of ``results.trials``.
        results: so far, this trial included.
    """

    trial: Trial
    results: DetailedResults


@dataclass(frozen=True, slots=True, kw_only=True)
class BestEvent:
    """A trial was kept: its program is the best one so far.

    Attributes:
        trial: what was kept.
        results: so far; ``instructions_after`` and ``scores_after`` are those of the new program.
    """

    trial: Trial
    results: DetailedResults


@dataclass(frozen=True, slots=True, kw_only=True)
class EndEvent:
    """The search has ended, perhaps by an exception: ``results.end_reason`` tells.

    Attributes:
        program: what ``compile`` returns, or what the exception carries.
        results: its ``detailed_results``.
    """

    program: dspy.Module
    results: DetailedResults


class SearchCallback:
    """Does nothing. A subclass overrides the methods that it needs."""

    def on_run(self, event: RunEvent) -> None:
        """As an evaluation begins and after each run of it, by any thread, one at a time."""

    def on_start(self, event: StartEvent) -> None:
        """Once, after the first evaluation."""

    def on_proposal(self, event: ProposalEvent) -> None:
        """After every window that the denoiser filled."""

    def on_trial(self, event: TrialEvent) -> None:
        """After every trial."""

    def on_best(self, event: BestEvent) -> None:
        """After a trial that was kept."""

    def on_end(self, event: EndEvent) -> None:
        """Once, also where an exception ends the search; without ``on_start`` if it was early."""


def check_callbacks(callbacks: Any) -> tuple[SearchCallback, ...]:
    """The callbacks as a tuple.

    Raises:
        TypeError: they are no sequence of ``SearchCallback`` instances.
    """
    wanted = "callbacks must be a list of SearchCallback instances"
    if isinstance(callbacks, SearchCallback | str) or not isinstance(callbacks, Sequence):
        raise TypeError(f"{wanted}, got {callbacks!r:.60}")
    for number, one in enumerate(callbacks):
        if not isinstance(one, SearchCallback):
            raise TypeError(f"{wanted}, got callbacks[{number}]={one!r:.60}")
    return tuple(callbacks)
