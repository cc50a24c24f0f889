"""The order of a search: which window is masked next, what is tried, and when the search ends."""

import logging
from dataclasses import dataclass
from typing import Protocol

from dspy_diffusion_infill.errors import ContextTooLongError
from dspy_diffusion_infill.optimizer.adaptive import Adaptive
from dspy_diffusion_infill.optimizer.candidates import Candidate
from dspy_diffusion_infill.optimizer.results import EndReason
from dspy_diffusion_infill.optimizer.search import Search
from dspy_diffusion_infill.optimizer.targets import Target
from dspy_diffusion_infill.windows import Window

logger = logging.getLogger(__name__)


class SearchOrder(Protocol):
    """Moves a search on until it ends."""

    def run(self) -> EndReason:
        """Proposes and tries; returns why it stopped."""
        ...


def run(search: Search) -> None:
    """Runs a search that has begun, in the order of its options, to its end."""
    if search.first is not None and search.first.is_hopeless:
        ((kind, _),) = search.validator.failure_kinds.most_common(1)
        logger.warning("no run of the student succeeded, so nothing is tried: %s", kind)
        search.validator.give_up()
        search.end_reason = "no run succeeded"
        return
    search.score_present_texts()
    search.end_reason = order_of(search).run()


def order_of(search: Search) -> SearchOrder:
    """The order that the search's options name."""
    name = search.plan.options.order
    return LeftToRight(search) if name == "left_to_right" else Adaptive(search)


@dataclass(slots=True)
class LeftToRight:
    """Sweeps over all windows from left to right, ``sweeps`` times (paper, §5.3).

    With guidance, only proposals that make the gold responses likelier are tried.
    """

    search: Search

    def run(self) -> EndReason:
        """As ``SearchOrder.run``."""
        search = self.search
        num_windows = self._num_windows()
        for sweep in range(search.plan.options.num_sweeps):
            for name, target in search.targets.items():
                if not self._sweep(target, sweep, num_windows[name, sweep]):
                    logger.info("the search ends: %s", search.end_reason)
                    return search.end_reason
        return "all windows tried"

    def _num_windows(self) -> dict[tuple[str, int], int]:
        """How many windows each sweep tries at most, by predictor and sweep: those of the start."""
        plan = self.search.plan
        return {
            (name, sweep): len(plan.windows(target, sweep))
            for name, target in self.search.targets.items()
            for sweep in range(plan.options.num_sweeps)
        }

    def _sweep(self, target: Target, sweep: int, num_windows: int) -> bool:
        """After an accepted edit, on over the new text from the same place; False at a cap.

        Edits can make the text longer. A sweep still tries no more windows than were estimated, and
        the next one goes on where this one stopped.
        """
        plan = self.search.plan
        for _ in range(num_windows):
            windows = plan.windows(target, sweep)
            window = next((w for w in windows if w.start > target.position), None)
            if window is None:
                break
            target.position = window.start
            try:
                has_room = self._try_window(target, window, sweep)
            except ContextTooLongError as error:
                if not self.search.trials:
                    raise
                logger.warning("a sweep ends early: %s", error)
                break
            if not has_room:
                return False
        else:
            if any(w.start > target.position for w in plan.windows(target, sweep)):
                return True
        target.position = -1
        return True

    def _try_window(self, target: Target, window: Window, sweep: int) -> bool:
        proposals = self.search.propose(target, window, sweep)
        chosen = self._screened(target, self.search.candidates(target, proposals))
        return all(self.search.try_candidate(one, sweep) is not None for one in chosen)

    def _screened(self, target: Target, candidates: list[Candidate]) -> list[Candidate]:
        """Without guidance all; with it those that make gold responses likelier, best first."""
        search = self.search
        if search.plan.guide is None:
            return candidates
        likelier = [one for one in candidates if search.mean_gain(one) > 0]
        likelier.sort(key=search.mean_gain, reverse=True)
        chosen = likelier[: search.plan.options.num_validated]
        for one in likelier[len(chosen) :]:  # outranked here, and welcome in a later sweep
            target.filter.forget(one.proposals[0])
        search.screened += len(candidates) - len(chosen)
        return chosen
