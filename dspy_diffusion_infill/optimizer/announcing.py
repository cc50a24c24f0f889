"""Tells callbacks what happens in a search."""

import logging
import threading
from collections.abc import Sequence
from typing import Any

import dspy

from dspy_diffusion_infill.optimizer.callbacks import (
    BestEvent,
    EndEvent,
    ProposalEvent,
    RunEvent,
    SearchCallback,
    StartEvent,
    TrialEvent,
)
from dspy_diffusion_infill.optimizer.compiled import compiled_program, records_of, save_best
from dspy_diffusion_infill.optimizer.estimate import CostEstimate
from dspy_diffusion_infill.optimizer.mlflow_callback import for_autolog
from dspy_diffusion_infill.optimizer.progress import ProgressBar
from dspy_diffusion_infill.optimizer.results import results_of
from dspy_diffusion_infill.optimizer.run_files import RunFiles
from dspy_diffusion_infill.optimizer.run_journal import JournaledRuns
from dspy_diffusion_infill.optimizer.search import Search

logger = logging.getLogger(__name__)


class Announcer:
    """Makes events of a search's state; one callback that raises does not keep them from others."""

    def __init__(
        self,
        search: Search,
        callbacks: Sequence[SearchCallback],
        cost: CostEstimate,
        *,
        has_bar: bool,
    ) -> None:
        """Has the search tell of its runs, proposals and trials.

        Args:
            search: that has not begun.
            callbacks: the user's; they are called after the progress bar and the run files.
            cost: at most, of the whole search.
            has_bar: whether there is a progress bar.
        """
        self._most_metric_calls, self._lock = cost.metric_calls, threading.Lock()
        self._search, self._folder = search, search.plan.log_dir
        own: list[SearchCallback] = [ProgressBar()] if has_bar else []
        if self._folder is not None:
            own.append(RunFiles(self._folder))
        self._callbacks = (*own, *callbacks, *for_autolog(callbacks))
        self._failed = set[tuple[int, str]]()
        search.on_trial, search.on_proposal = self._on_trial, self._on_proposal
        search.validator.on_run = self._on_run

    def start(self) -> None:
        """After the first evaluation."""
        event = StartEvent(
            results=records_of(self._search),
            most_metric_calls=self._most_metric_calls,
            max_seconds=self._search.plan.scoring.caps.max_seconds,
        )
        self._tell("on_start", event)

    def end(self) -> dspy.Module:
        """The compiled program, wherever the search has stopped."""
        program = compiled_program(self._search)
        self._tell("on_end", EndEvent(program=program, results=results_of(program)))
        return program

    def _on_run(self, runs: JournaledRuns) -> None:
        with self._lock:
            event = RunEvent(
                about=runs.about,
                ended=runs.num_ended,
                replayed=len(runs.known),
                rows=runs.num_rows,
                spent=self._search.validator.budget.spent,
                most_metric_calls=self._most_metric_calls,
                max_seconds=self._search.plan.scoring.caps.max_seconds,
            )
            self._tell("on_run", event)

    def _on_proposal(self, event: ProposalEvent) -> None:
        self._tell("on_proposal", event)

    def _on_trial(self, search: Search) -> None:
        trial = search.trials[-1]
        if trial.accepted and self._folder is not None:
            save_best(search, self._folder)
        results = records_of(search)
        self._tell("on_trial", TrialEvent(trial=trial, results=results))
        if trial.accepted:
            self._tell("on_best", BestEvent(trial=trial, results=results))

    def _tell(self, method: str, event: Any) -> None:
        for number, callback in enumerate(self._callbacks):
            try:
                getattr(callback, method)(event)
            except Exception as error:
                is_first = (number, method) not in self._failed
                self._failed.add((number, method))
                level = logging.WARNING if is_first else logging.DEBUG  # once, not at every trial
                name = f"{type(callback).__name__}.{method}"
                logger.log(level, "%s raised, and the search goes on: %r", name, error)
                logger.debug("%s raised", name, exc_info=error)
