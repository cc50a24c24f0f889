"""The adaptive order: the window that promises most, in neighbourhoods that grow and narrow."""

import logging
import math
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dspy_diffusion_infill.errors import ContextTooLongError
from dspy_diffusion_infill.optimizer.candidates import Candidate
from dspy_diffusion_infill.optimizer.metrics import ExactMatch
from dspy_diffusion_infill.optimizer.neighbourhoods import NUM_LEVELS, neighbourhood
from dspy_diffusion_infill.optimizer.results import EndReason
from dspy_diffusion_infill.optimizer.search import Search
from dspy_diffusion_infill.optimizer.targets import Target
from dspy_diffusion_infill.windows import Window

logger = logging.getLogger(__name__)

_CURIOSITY = 0.5  # how much a place that was seldom tried is worth, beside what it brought
_HEATS = (None, 1.0, 1.2, 1.4)  # temperatures after so many rounds that kept nothing
_BARREN_ROUNDS = 3  # rounds over everything without one new proposal, after which there are no more
_MOST_WAITING = 64  # candidates of a predictor that wait for a trial
_MOST_MERGED = 8  # of those that wait, after an edit was kept
_POOL_SHARE = 0.5  # of the moves after the first round: those that change another program


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

    With ``parents="pool"``, after a round that kept nothing, half of the moves change another
    program of the pool. What a candidate or a program of the pool changes elsewhere than the best
    program is merged with it, and the likeliest edits of several predictors are tried at once.

    With ``order="random"`` the window is drawn at random instead: a control.
    """

    def __init__(self, search: Search) -> None:
        """Begins with the smallest neighbourhood of every predictor."""
        self.search = search
        self.is_random = search.plan.options.order == "random"
        self._has_pool = search.plan.options.parents == "pool"
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
        text = target.as_text(plan.infiller.denoiser)
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
        self._move += 1
        try:
            new = self._from_pool() if self._goes_to_pool() else self._from_best(place)
        except ContextTooLongError as error:
            if self._move == 1:
                raise
            logger.warning("a window is left out: %s", error)
            self._places.remove(place)
            return False
        self._barren = 0 if new else self._barren + 1
        self._waiting += new
        for candidate in self._chosen():
            trial = self.search.try_candidate(candidate, self._move)
            if trial is None:
                return None
            if trial.accepted:
                place.reward += 1.0
                self._merge_waiting()
                return True
            self._merge_into_best(candidate)
        return False

    def _from_best(self, place: _Place) -> list[Candidate]:
        """Candidates that fill a window of the best program."""
        search, target = self.search, place.target
        place.tries += 1
        proposals = search.propose(target, place.window, self._move, _HEATS[self._heat])
        new = search.candidates(target, proposals)
        gains = [search.mean_gain(one) for one in new]
        place.reward += max((math.tanh(max(0.0, gain)) for gain in gains), default=0.0)
        return new

    def _goes_to_pool(self) -> bool:
        """Whether this move changes another program of the pool, once a round kept nothing."""
        is_open = self._has_pool and self._level > 0 and len(self.search.pool.members) > 1
        return is_open and self._rng.random() < _POOL_SHARE

    def _from_pool(self) -> list[Candidate]:
        """Candidates that fill a window of a program drawn from the pool."""
        search = self.search
        parent = search.pool.draw(self._rng).texts
        name = self._rng.choice(sorted(parent))
        target = search.targets[name].among(parent)
        windows = self._windows(target, self._rng.randint(0, self._level))
        if not windows:
            return []
        window = self._rng.choice(windows)
        proposals = search.propose(target, window, self._move, _HEATS[self._heat])
        return search.candidates(target, proposals, parent)

    def _chosen(self) -> list[Candidate]:
        """Takes the candidates to try out of those that wait, the likeliest first."""
        search, waiting = self.search, self._waiting
        if search.plan.guide is None:
            self._waiting = []
            return waiting
        waiting.sort(key=search.mean_gain, reverse=True)
        num = search.plan.options.num_validated
        chosen, rest = waiting[:num], waiting[num:]
        self._waiting = rest[: _MOST_WAITING * len(search.targets)]
        search.screened += len(rest) - len(self._waiting)
        joined = self._joined(chosen[0], waiting[1:]) if self._has_pool and chosen else None
        return chosen if joined is None else [joined, *chosen]

    def _joined(self, first: Candidate, others: Sequence[Candidate]) -> Candidate | None:
        """The likeliest candidate with the likeliest ones of the other predictors, all at once."""
        joined = first
        for other in others:
            if self.search.mean_gain(other) <= 0:
                break
            joined = joined.joined(other) or joined
        return None if joined is first or self.search.mean_gain(first) <= 0 else joined

    def _merge_waiting(self) -> None:
        """Puts the edit that was kept under the likeliest candidates that do not touch it."""
        if self._has_pool:
            likeliest = self._waiting[:_MOST_MERGED]
            self._waiting += self._merged((one.old, one.texts) for one in likeliest)

    def _merge_into_best(self, candidate: Candidate) -> None:
        """Merges what a trial has brought into the pool with the best program."""
        texts = candidate.texts
        if self._has_pool and any(one.texts == texts for one in self.search.pool.members):
            self._waiting += self._merged([(self.search.start, texts)])

    def _merged(
        self, pairs: Iterable[tuple[Mapping[str, str], Mapping[str, str]]]
    ) -> list[Candidate]:
        found = [self.search.merge(base, texts) for base, texts in pairs]
        return [one for one in found if one is not None]

    def _is_perfect(self) -> bool:
        """Whether every row scores 1 under a metric that gives 1 at most."""
        search = self.search
        if not all(score == 1.0 for score in search.best.scores):
            return False
        if isinstance(search.plan.scoring.metric, ExactMatch):
            return True
        seen = Counter(score for own in search.history.scores for score in own)
        return max(seen) <= 1.0 and 0.0 <= min(seen) < 1.0
