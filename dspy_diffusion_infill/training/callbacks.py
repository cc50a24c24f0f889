"""What is shown, kept and measured while a stage runs."""

import json
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

LoggedFigures = dict[str, float]


class Progress(TrainerCallback):
    """Prints a line for each entry of the log, and keeps the log as JSONL.

    Args:
        stage: name that stands in front of each line.
        path: of the JSONL file; a resumed stage writes what it resumes from anew.
        show: where lines go.
    """

    def __init__(self, stage: str, path: Path, show: Callable[[str], None]) -> None:
        self.stage, self.path, self.show = stage, path, show
        self._start = (0, 0.0)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Notes where the stage starts from."""
        self._start = (state.global_step, time.monotonic())
        if state.is_world_process_zero:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            history = "".join(json.dumps(entry) + "\n" for entry in state.log_history)
            self.path.write_text(history, encoding="utf-8")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Has the last step logged too, so that the counts in the log are of all steps."""
        if state.global_step >= state.max_steps:
            control.should_log = True

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Writes and shows the newest entry."""
        if not state.is_world_process_zero:
            return
        entry = state.log_history[-1]
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        if "loss" in entry:
            self.show(self._line(entry, state))

    def _line(self, entry: LoggedFigures, state: TrainerState) -> str:
        first, began = self._start
        done = max(1, state.global_step - first)
        seconds = (time.monotonic() - began) / done * (state.max_steps - state.global_step)
        return (
            f"{self.stage} {state.global_step}/{state.max_steps}"
            f"  loss {entry['loss']:.4f}"
            f"  masked accuracy {entry['masked_accuracy']:.3f}"
            f"  {entry['tokens_per_second']:,.0f} tokens/s"
            f"  ETA {timedelta(seconds=round(seconds))}"
        )


class EvaluationDuringTraining(TrainerCallback):
    """Measures the model every so many steps, and at the last one.

    Args:
        every: optimizer steps; 0 is at the last one only.
        measure: gives the figures of the model as it is.
        log: where they go; ``Trainer.log``.
        show: where a line about them goes.
    """

    def __init__(
        self,
        every: int,
        measure: Callable[[], LoggedFigures],
        log: Callable[[LoggedFigures], None],
        show: Callable[[str], None],
    ) -> None:
        self.every, self.measure, self.log, self.show = every, measure, log, show

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Measures, on every process: with sharded weights a forward pass needs all of them."""
        is_due = self.every > 0 and state.global_step % self.every == 0
        if not is_due and state.global_step < state.max_steps:
            return
        figures, should_log = self.measure(), control.should_log
        if figures:
            self.log(dict(figures))
            control.should_log = should_log  # the loss of this step is still to be logged
            self.show(f"step {state.global_step}  {as_text(figures)}")


def as_text(figures: LoggedFigures) -> str:
    """The figures that one looks at first, on one line."""
    shown = ("probe_nll_sequential", "probe_accuracy_sequential", "probe_nll_parallel", "nelbo")
    return "  ".join(
        f"{name.replace('_', ' ')} {figures[name]:.3f}" for name in shown if name in figures
    )
