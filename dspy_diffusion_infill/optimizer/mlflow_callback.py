"""A search as an MLflow run: options, curves over trials, the program and the report.

``mlflow.dspy.autolog(log_compiles=True)`` records the rows and the program of a compile. Where it
is on, a search adds its options and trials to the same run, without a callback that is given.
"""

import copy
import importlib
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dspy_diffusion_infill.optimizer.budget import Spent
from dspy_diffusion_infill.optimizer.callbacks import (
    EndEvent,
    SearchCallback,
    StartEvent,
    TrialEvent,
)

_LENGTH = 250  # characters of a parameter, which every MLflow store takes
_PREFIX = "infill."


class MLflowCallback(SearchCallback):
    """Writes into the active MLflow run, or into one of its own where none is active.

    Each fold of ``CrossValidation`` has a run of its own, inside of the active one.
    """

    def __init__(self, *, report: bool = True, run_name: str | None = None) -> None:
        """Imports MLflow.

        Args:
            report: keep the HTML report as an artifact; it holds instructions, and inputs and
                answers of rows.
            run_name: of a run of its own, inside of the active one if there is one; None writes
                into the active one.

        Raises:
            ImportError: MLflow is not installed.
        """
        import mlflow

        self._mlflow: Any = mlflow
        self._report, self._run_name = report, run_name
        self._own_run = False

    def __deepcopy__(self, memo: dict[int, Any]) -> "MLflowCallback":
        return self

    def named(self, run_name: str) -> "MLflowCallback":
        """Another one that writes into a run of its own with this name."""
        one = copy.copy(self)
        one._run_name, one._own_run = run_name, False
        return one

    def on_start(self, event: StartEvent) -> None:
        """Begins a run where none is active, or one of its own; the options become parameters."""
        if self._run_name is not None or self._mlflow.active_run() is None:
            self._mlflow.start_run(run_name=self._run_name or "DiffusionInfill", nested=True)
            self._own_run = True
        results = event.results
        options = {**results.settings["options"], **results.settings["used"]}
        self._mlflow.log_params(
            {_PREFIX + name: str(value)[:_LENGTH] for name, value in options.items()}
        )
        self._log(0, results.spent_before, best_score=results.score_before)

    def on_trial(self, event: TrialEvent) -> None:
        """One step of every curve."""
        trial = event.trial
        scores = {"best_score": event.results.score_after, "trial_score": trial.score}
        self._log(trial.number, trial.spent, **scores)

    def on_end(self, event: EndEvent) -> None:
        """The program as DSPy's JSON, the report, and why the search ended."""
        is_lost = self._run_name is not None and not self._own_run
        if is_lost or self._mlflow.active_run() is None:  # it was cut off before it began
            return
        try:
            self._log_end(event)
        finally:
            if self._own_run:
                self._own_run = False
                is_cut = event.results.end_reason == "interrupted"
                self._mlflow.end_run("KILLED" if is_cut else "FINISHED")

    def _log_end(self, event: EndEvent) -> None:
        self._mlflow.set_tag(f"{_PREFIX}end_reason", event.results.end_reason)
        with tempfile.TemporaryDirectory() as folder:
            program = Path(folder, "program.json")
            event.program.save(program)
            self._mlflow.log_artifact(str(program))
            if self._report:
                page = event.results.report(Path(folder, "report.html"))
                self._mlflow.log_artifact(str(page))

    def _log(self, step: int, spent: Spent, **scores: float) -> None:
        values = {**scores, "metric_calls": spent.metric_calls, "lm_tokens": spent.lm_tokens}
        if spent.lm_cost is not None:
            values["lm_cost"] = spent.lm_cost
        finite = {_PREFIX + name: v for name, v in values.items() if math.isfinite(v)}
        self._mlflow.log_metrics(finite, step=step)


def for_autolog(given: Sequence[SearchCallback]) -> list[SearchCallback]:
    """A callback where autolog records compiles and none is given; else nothing.

    MLflow is not imported for it.
    """
    if "mlflow" not in sys.modules or any(isinstance(one, MLflowCallback) for one in given):
        return []
    states: Any = importlib.import_module("mlflow.utils.autologging_utils")
    if states.autologging_is_disabled("dspy"):
        return []
    logs = states.get_autologging_config("dspy", "log_compiles", False)
    return [MLflowCallback()] if logs else []
