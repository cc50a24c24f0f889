"""The progress bar: calls, time left, the best score, money, and what is masked or scored now."""

import math
import shutil
from typing import Any

from tqdm.auto import tqdm

from dspy_diffusion_infill.optimizer.budget import Spent
from dspy_diffusion_infill.optimizer.callbacks import (
    EndEvent,
    ProposalEvent,
    RunEvent,
    SearchCallback,
    StartEvent,
    TrialEvent,
)
from dspy_diffusion_infill.optimizer.results import DetailedResults

_FORMAT = "{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
_OTHER_WIDTH = len("100%|█|  [00:00<00:00]")  # columns around calls and what follows the times
_SHORTEST_WINDOW, _LONGEST_WINDOW = 8, 24  # characters of its text
_STAGES = {"baseline": "first evaluation", "traced runs": "traced runs", "holdout": "holdout"}


class ProgressBar(SearchCallback):
    """Moves with the metric calls; tqdm tells the time left by the calls that remain."""

    def __init__(self, fold: str = "") -> None:
        """Nothing is shown before the first run.

        Args:
            fold: what stands in front, where the search is one of several.
        """
        self._bar: Any = None
        self._fold = fold
        self._max_seconds = math.inf
        self._results: DetailedResults | None = None
        self._window: tuple[str, str] | None = None  # predictor and text

    def on_run(self, event: RunEvent) -> None:
        """Opens the bar, and moves it within an evaluation."""
        if self._bar is None:
            self._max_seconds = event.max_seconds or math.inf
            self._bar = tqdm(
                total=event.most_metric_calls,
                desc=self._fold or None,
                bar_format=_FORMAT,
                dynamic_ncols=True,
            )
        if event.ended == event.replayed:  # took no time, and so is no part of the rate
            self._bar.initial += event.replayed
        stage = _STAGES.get(event.about)
        self._show(event.spent, stage and f"{stage}, {event.ended} of {event.rows}")

    def on_start(self, event: StartEvent) -> None:
        """Shows the student's score."""
        self._show_results(event.results)

    def on_proposal(self, event: ProposalEvent) -> None:
        """Shows the window."""
        if self._results is None or not event.proposals:
            return
        first = event.proposals[0]
        self._window = first.predictor, " ".join(first.window.text_of(event.old).split())
        self._show_results(self._results)

    def on_trial(self, event: TrialEvent) -> None:
        """Moves the bar."""
        self._show_results(event.results)

    def on_end(self, event: EndEvent) -> None:
        """Closes the bar."""
        if self._bar is not None:
            self._window = None
            self._show_results(event.results)
            self._bar.close()

    def _show_results(self, results: DetailedResults) -> None:
        self._results = results
        self._show(results.spent)

    def _show(self, spent: Spent, doing: str | None = None) -> None:
        self._bar.n = spent.metric_calls
        self._bar.total = max(self._bar.total, self._bar.n)
        parts = list[str]()
        if self._results is not None:
            parts.append(f"best {self._results.score_after:.3f}")
        if spent.lm_cost:
            parts.append(f"${spent.lm_cost:.4f}")
        if math.isfinite(self._max_seconds):
            parts.append(f"{max(0.0, self._max_seconds - spent.seconds):.0f} s left")
        self._bar.set_postfix_str(", ".join((*parts, doing) if doing else self._with_window(parts)))

    def _with_window(self, parts: list[str]) -> list[str]:
        """How many edits are kept and the window, as far as a line of the terminal has room."""
        kept = [] if self._results is None else [f"{self._results.counts.accepted} kept"]
        if self._window is None:
            return parts + kept
        calls = f"{self._bar.n}/{self._bar.total}"
        room = shutil.get_terminal_size().columns - _OTHER_WIDTH - len(self._bar.desc + calls)
        predictor, text = self._window
        for more, name in ((kept, f"{predictor}: "), (kept, ""), ([], "")):
            length = room - sum(len(part) + 2 for part in (*parts, *more, name + "“”"))
            if length >= _SHORTEST_WINDOW:
                length = min(length, _LONGEST_WINDOW)
                shown = text if len(text) <= length else text[: length - 1] + "…"
                return [*parts, *more, f"{name}“{shown}”"]
        return parts + kept
