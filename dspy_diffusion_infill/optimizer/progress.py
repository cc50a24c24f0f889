"""The progress bar: what is masked now, the best score, calls, money, and the time left."""

import math
import shutil
from typing import Any

from tqdm.auto import tqdm

from dspy_diffusion_infill.optimizer.callbacks import (
    EndEvent,
    ProposalEvent,
    SearchCallback,
    StartEvent,
    TrialEvent,
)
from dspy_diffusion_infill.optimizer.results import DetailedResults

_LEAST_WIDTH = 110  # columns of a terminal in which the window's text is shown
_WINDOW_LENGTH = 24  # characters of it


class ProgressBar(SearchCallback):
    """Moves with the metric calls; tqdm tells the time left by the calls that remain."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._most = 0
        self._max_seconds = math.inf
        self._window = ""
        self._results: DetailedResults | None = None

    def on_start(self, event: StartEvent) -> None:
        """Opens the bar."""
        calls = event.results.metric_calls
        self._most = max(event.most_metric_calls, calls)
        self._max_seconds = event.max_seconds or math.inf
        self._bar = tqdm(
            total=self._most,
            initial=calls,  # made before the bar: they are no part of its rate
            desc="infilling",
            unit="call",
            dynamic_ncols=True,
        )
        self._show(event.results)

    def on_proposal(self, event: ProposalEvent) -> None:
        """Shows the window."""
        if not event.proposals or shutil.get_terminal_size().columns < _LEAST_WIDTH:
            return
        first = event.proposals[0]
        text = " ".join(first.window.text_of(event.old).split())
        if len(text) > _WINDOW_LENGTH:
            text = text[: _WINDOW_LENGTH - 1] + "…"
        self._window = f", in {first.predictor}: “{text}”"
        if self._results is not None:
            self._show(self._results)

    def on_trial(self, event: TrialEvent) -> None:
        """Moves the bar."""
        self._show(event.results)

    def on_end(self, event: EndEvent) -> None:
        """Closes the bar."""
        if self._bar is not None:
            self._bar.close()

    def _show(self, results: DetailedResults) -> None:
        self._results = results
        self._bar.n = results.metric_calls
        left = max(0, self._most - results.metric_calls)
        money = f", {results.lm_cost:.4f} USD" if results.lm_cost else ""
        time = self._max_seconds - results.seconds
        cap = f", at most {max(0.0, time):.0f} s more" if math.isfinite(time) else ""
        self._bar.set_postfix_str(
            f"best {results.score_after:.3f}, {results.counts.accepted} edits kept, "
            f"{left} calls left{money}{cap}{self._window}"
        )
