"""The budget that all arms share: every run of the task's program is counted, none passes the cap.

The ledger is a DSPy callback, so programs and optimizers stay as they are. Proposers' calls do not
count.
"""

import threading
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import dspy
from dspy.utils.callback import BaseCallback

from dspy_diffusion_infill.optimizer.results import DetailedResults


class BudgetSpent(BaseException):
    """An arm asked for one run too many.

    No ``Exception``: optimizers catch those, count them as failures and go on.
    """


class Incumbent(NamedTuple):
    """Instructions that were the best from so many program runs on."""

    calls: int
    instructions: str


@dataclass(frozen=True, slots=True)
class Run:
    """One run of the program."""

    instructions: str
    input: str
    score: float


class Ledger(BaseCallback):
    """Counts and scores the runs of one arm.

    Attributes:
        budget: runs that are allowed.
        runs: those that have ended, in order.
    """

    def __init__(self, start: str, rows: Sequence[dspy.Example], metric: Any, budget: int) -> None:
        self.budget, self.runs = budget, list[Run]()
        self._start, self._metric = start, metric
        self._rows = {row.input: row for row in rows}
        self._lock = threading.Lock()
        self._num_begun = 0
        self._open: dict[str, tuple[str, str]] = {}

    def on_module_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        if not is_task(instance):
            return
        with self._lock:
            if self._num_begun >= self.budget:
                raise BudgetSpent
            self._num_begun += 1
        self._open[call_id] = instance.signature.instructions, inputs["kwargs"]["input"]

    def on_module_end(
        self, call_id: str, outputs: Any, exception: BaseException | None = None
    ) -> None:
        if call_id in self._open:
            instructions, value = self._open.pop(call_id)
            score = self._score(self._rows[value], outputs)
            with self._lock:
                self.runs.append(Run(instructions, value, score))

    def _score(self, row: dspy.Example, outputs: Any) -> float:
        """0 for a run that failed. Under GEPA, a run gives the prediction and its trace."""
        prediction = outputs[0] if isinstance(outputs, tuple) else outputs
        is_answer = isinstance(prediction, dspy.Prediction) and "output" in prediction
        return float(self._metric(row, prediction)) if is_answer else 0.0

    def trajectory(self, final: str | None = None) -> list[Incumbent]:
        """The instructions with the best mean after each run, of those that were run on all rows.

        Args:
            final: what the arm chose at its end; None where it was cut off.
        """
        found = [Incumbent(0, self._start)]
        scores: dict[str, dict[str, float]] = defaultdict(dict)
        means: dict[str, float] = {}
        for calls, run in enumerate(self.runs, 1):
            own = scores[run.instructions]
            own[run.input] = run.score
            if len(own) == len(self._rows):
                means[run.instructions] = sum(own.values()) / len(own)
                best = max(means, key=lambda text: means[text])  # of equal ones the earliest
                if best != found[-1].instructions:
                    found.append(Incumbent(calls, best))
        if final is not None and final != found[-1].instructions:
            found.append(Incumbent(len(self.runs), final))
        return found


def is_task(instance: Any) -> bool:
    """Whether it is the task's program, and not a proposer's."""
    return isinstance(instance, dspy.Predict) and is_task_signature(instance.signature)


def is_task_signature(signature: type[dspy.Signature]) -> bool:
    """Whether it has the fields of the task."""
    return tuple(signature.fields) == ("input", "output")


def trajectory_of(results: DetailedResults) -> list[Incumbent]:
    """What ``DiffusionInfill`` held to be the best, and from which run on."""
    calls = len(results.scores_before)
    found = [Incumbent(0, results.instructions_before["self"])]
    for trial in results.trials:
        calls += len(trial.scores)
        if trial.accepted:
            found.append(Incumbent(calls, trial.instructions))
    return found
