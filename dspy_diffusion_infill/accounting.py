"""What the runs of one evaluation take: asked for before each run, and told after it.

The caller's own ``dspy.track_usage()`` gets it too, once, whatever the number of threads: DSPy
gives each thread a copy of the tracker, of which the caller sees nothing.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import dspy
from dspy.utils.usage_tracker import UsageTracker

from dspy_diffusion_infill.usage import Usage, added, roll_up, usage_of


class RunRefusedError(Exception):
    """The accountant refused a run, so that its evaluation has no scores."""


class Accountant(Protocol):
    """Is asked before each run of a program, and told after it. Called by several threads."""

    def reserve(self) -> Any | None:
        """What the run is to be settled with; None refuses it, and ends the evaluation."""
        ...

    def settle(self, reservation: Any | None, usage: Usage) -> None:
        """A run has ended and was scored.

        Args:
            reservation: as ``reserve`` gave it; None where usage has come up without one.
            usage: what the LMs of program and metric took.
        """
        ...


class _ThisThread(threading.local):
    """The run that a thread is making: its reservation, and what it took so far.

    Each thread finds it as it is here.
    """

    reservation: Any | None = None
    usage: Usage = ()


class _SharedTracker(UsageTracker):
    """One tracker for all threads of a run: ``dspy.Parallel`` would give each a copy."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "_SharedTracker":
        return self


class Accounts:
    """The account of each thread's run, in one evaluation.

    Attributes:
        outer: the tracker of the caller, in whose thread this is made; None without.
        is_refused: whether a run was refused.
    """

    def __init__(self, accountant: Accountant | None) -> None:
        self.outer: UsageTracker | None = dspy.settings.usage_tracker
        self.is_refused = False
        self._accountant = accountant
        self._this_thread = _ThisThread()
        self._num_open = 0
        self._closed = threading.Condition()

    def open(self) -> None:
        """Begins the account of a run in this thread.

        Raises:
            RunRefusedError: the accountant does not allow it.
        """
        if self._accountant is None:
            return
        if (reservation := self._accountant.reserve()) is None:
            self.is_refused = True
            raise RunRefusedError("a run was refused")
        self._this_thread.reservation = reservation
        with self._closed:
            self._num_open += 1

    @property
    def here(self) -> Usage:
        """What stands in this thread's account."""
        return self._this_thread.usage

    @contextmanager
    def tracked(self) -> Iterator[UsageTracker]:
        """What LMs take inside of it stands in this thread's account, and in the caller's."""
        tracker, own = _SharedTracker(), self._this_thread
        try:
            with dspy.context(usage_tracker=tracker):
                yield tracker
        finally:
            own.usage = added(own.usage, usage_of(tracker))
            if self.outer is not None:
                with self._closed:
                    roll_up(tracker, self.outer)

    def close(self) -> None:
        """Ends this thread's account, if it has one that is open."""
        own = self._this_thread
        reservation, usage = own.reservation, own.usage
        own.reservation, own.usage = None, ()
        if self._accountant is not None and (reservation is not None or usage):
            self._accountant.settle(reservation, usage)
        with self._closed:
            self._num_open -= reservation is not None
            self._closed.notify_all()

    def wait(self) -> None:
        """Returns when every account that was opened is closed."""
        with self._closed:
            self._closed.wait_for(lambda: self._num_open == 0)
