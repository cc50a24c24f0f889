"""The order of a search: which window is masked next, what is tried, and when the search ends."""

import logging
import math
import random
from collections import Counter
from dataclasses import dataclass
from typing import Protocol

from dspy_diffusion_infill.errors import ContextTooLongError
from dspy_diffusion_infill.optimizer.metrics import ExactMatch
from dspy_diffusion_infill.optimizer.neighbourhoods import NUM_LEVELS, neighbourhood
from dspy_diffusion_infill.optimizer.results import EndReason
from dspy_diffusion_infill.optimizer.search import Candidate, Search
from dspy_diffusion_infill.optimizer.targets import Target
from dspy_diffusion_infill.windows import Window

logger = logging.getLogger(__name__)

_CURIOSITY = 0.5  # how much a place that was seldom tried is worth, beside what it brought
_HEATS = (None, 1.0, 1.2, 1.4)  # temperatures after so many rounds that kept nothing
_BARREN_ROUNDS = 3  # rounds over everything without one new proposal, after which there are no more
_MOST_WAITING = 64  # candidates of a predictor that wait for a trial


class Order(Protocol):
    """Moves a search on until it ends."""

    def run(self) -> EndReason:
        """Proposes and tries; returns why it stopped."""
        ...


def run(search: Search) -> None:
    """Runs a search that has begun, in the order of its options, to its end."""
    if search.first is not None and search.first.is_hopeless:
        ((kind, _),) = search.validator.failure_kinds.most_common(1)
        logger.warning("no run of the student succeeded, so nothing is tried: %s", kind)
        search.end_reason = "no run succeeded"
        return
    search.score_present_texts()
    search.end_reason = order_of(search).run()


def order_of(search: Search) -> Order:
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
        """As ``Order.run``."""
        search = self.search
        num_windows = self._num_windows()
        for sweep in range(search.plan.options.sweeps):
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
            for sweep in range(plan.options.sweeps)
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
        likelier = [one for one in candidates if _mean_gain(search, one) > 0]
        likelier.sort(key=lambda one: -_mean_gain(search, one))
        chosen = likelier[: search.plan.options.num_validated]
        for one in likelier[len(chosen) :]:  # outranked here, and welcome in a later sweep
            target.filter.forget(one.proposal)
        search.screened += len(candidates) - len(chosen)
        return chosen


@dataclass(slots=True)
class _Place:
    """A window under search, with what it has brought.

    Attributes:
        target: the predictor.
        window: of its present text.
        prior: how promising it is before it was tried, 0 to 1.
        tries: how often it was masked.
        reward: what that brought, 0 to 1 a try.
    """

    target: Target
    window: Window
    prior: float
    tries: int = 0
    reward: float = 0.0

    def value(self, total: int) -> float:
        """An upper confidence bound (UCB1), after ``total`` moves."""
        mean = (self.prior + self.reward) / (1 + self.tries)
        return mean + _CURIOSITY * math.sqrt(math.log(1 + total) / (1 + self.tries))


class Adaptive:
    """Masks the window that promises most, and widens the neighbourhood where nothing is kept.

    A move masks one window, adds the proposals to those that wait, and tries the ``num_validated``
    likeliest of all that wait, be they likelier than the present text or not. A round is as many
    moves as there are windows. After a round that kept nothing, the next neighbourhood is
    searched too; after one over all neighbourhoods, proposals are drawn at a higher temperature. An
    edit that is kept brings the smallest neighbourhood back.

    With ``order="random"`` the window is drawn at random instead: a control.
    """

    def __init__(self, search: Search) -> None:
        """Begins with the smallest neighbourhood of every predictor."""
        self.search = search
        self.is_random = search.plan.options.order == "random"
        self._rng = random.Random(f"{search.plan.options.seed}/order")
        self._waiting: list[Candidate] = []
        self._places: list[_Place] = []
        self._level, self._heat, self._move = 0, 0, 0
        self._left, self._fruitless, self._barren = 0, 0, 0

    def run(self) -> EndReason:
        """As ``Order.run``."""
        if not self.search.targets:
            return "all windows tried"
        self._narrow()
        while not self._is_perfect():
            while self._left <= 0:
                if reason := self._next_round():
                    return reason
            self._left -= 1
            place = self._choose()
            kept = self._try(place)
            if kept is None:
                return self.search.end_reason
            if kept:
                self._narrow()
        return "perfect score"

    def _narrow(self) -> None:
        """Back to the smallest neighbourhood, of the texts as they are now."""
        self._level = self._heat = self._fruitless = self._barren = 0
        self._places = []
        self._open(0)

    def _open(self, level: int) -> None:
        """Adds a level's windows, each with the denoiser's surprise at its text as the prior."""
        search = self.search
        known = {(place.target.name, place.window) for place in self._places}
        found = [
            (target, window)
            for target in search.targets.values()
            for window in self._windows(target, level)
            if (target.name, window) not in known
        ]
        has_choice = len(known) + len(found) > 1 and not self.is_random
        surprises = [self._surprise(*pair) if has_choice else 0.0 for pair in found]
        most = max(surprises, default=0.0) or 1.0
        self._places += [
            _Place(*pair, prior=surprise / most)
            for pair, surprise in zip(found, surprises, strict=True)
        ]
        self._left = len(self._places)

    def _windows(self, target: Target, level: int) -> list[Window]:
        plan = self.search.plan
        if target.marked is not None:
            return [target.marked] if level == 0 else []
        text = target.as_text(plan.options.protect, plan.infiller.denoiser)
        return list(dict.fromkeys(neighbourhood(text, plan.options.maskings, level)))

    def _surprise(self, target: Target, window: Window) -> float:
        """Nats a token; 0 where nothing is taken out, or where the context is too long."""
        with self.search.validator.budget.batch("surprise"):
            try:
                return self.search.plan.infiller.surprise(target.slot, target.text, window)
            except ContextTooLongError:
                return 0.0

    def _next_round(self) -> EndReason | None:
        """Widens the search after a round that kept nothing; the reason to end it, if there is."""
        if self._level + 1 < NUM_LEVELS:
            self._level += 1
            self._open(self._level)
            return None
        if not self._places:
            return "no new proposals"
        self._fruitless += 1
        self._heat = min(self._heat + 1, len(_HEATS) - 1)
        self._left = len(self._places)
        patience = self.search.plan.options.patience
        if patience is not None and self._fruitless >= patience:
            return "patience"
        return "no new proposals" if self._barren >= _BARREN_ROUNDS * len(self._places) else None

    def _choose(self) -> _Place:
        if self.is_random:
            return self._rng.choice(self._places)
        return max(self._places, key=lambda place: place.value(self._move))

    def _try(self, place: _Place) -> bool | None:
        """One move; whether an edit was kept, or None at a cap."""
        search, target = self.search, place.target
        self._move += 1
        place.tries += 1
        heat = _HEATS[self._heat]
        try:
            proposals = search.propose(target, place.window, self._move, heat)
        except ContextTooLongError as error:
            if self._move == 1:
                raise
            logger.warning("a window is left out: %s", error)
            self._places.remove(place)
            return False
        new = search.candidates(target, proposals)
        self._barren = 0 if new else self._barren + 1
        place.reward += max((math.tanh(max(0.0, _mean_gain(search, c))) for c in new), default=0.0)
        self._waiting += new
        for candidate in self._chosen():
            trial = search.try_candidate(candidate, self._move)
            if trial is None:
                return None
            if trial.accepted:
                place.reward += 1.0
                return True
        return False

    def _chosen(self) -> list[Candidate]:
        """Takes the candidates to try out of those that wait, the likeliest first."""
        search, waiting = self.search, self._waiting
        if search.plan.guide is None:
            self._waiting = []
            return waiting
        waiting.sort(key=lambda one: -_mean_gain(search, one))
        num = search.plan.options.num_validated
        chosen, rest = waiting[:num], waiting[num:]
        self._waiting = rest[: _MOST_WAITING * len(search.targets)]
        search.screened += len(rest) - len(self._waiting)
        return chosen

    def _is_perfect(self) -> bool:
        """Whether every row scores 1 under a metric that gives 1 at most."""
        search = self.search
        if not all(score == 1.0 for score in search.best.scores):
            return False
        if isinstance(search.plan.scoring.metric, ExactMatch):
            return True
        seen = Counter(score for own in search.history.scores for score in own)
        return max(seen) <= 1.0 and 0.0 <= min(seen) < 1.0


def _mean_gain(search: Search, candidate: Candidate) -> float:
    """What a candidate gains as things are now, nats an example; 0 without guidance.

    Minus infinity where nothing can be said: both texts are too long for the scorer.
    """
    gain = search.gain(candidate)
    if gain is None:
        return 0.0
    return -math.inf if math.isnan(gain.mean) else gain.mean
