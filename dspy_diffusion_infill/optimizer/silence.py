"""When an LM counts as gone: runs in a row have failed without an answer, for a while."""

import threading
from collections.abc import Callable

from dspy_diffusion_infill.outcomes import Outcome

FEWEST_RUNS = 6
"""One thread makes them in 42 s where an LM refuses at once: DSPy tries a call four times and waits
7 s in between. Where each fifth run fails, so many in a row are one chance in 15,000."""

LONGEST_SECONDS = 25.0
"""From the end of the first such run. Several threads have so many runs sooner."""


class Silence:
    """Runs in a row in which no LM answered, over all evaluations. Several threads may use it.

    A run in which some call was answered, by whatever text, ends the silence. So does one that ends
    because the LM is asked too often (429): its server is there.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        """``clock`` gives seconds, from anywhere."""
        self._clock, self._lock = clock, threading.Lock()
        self._num_runs, self._since = 0, 0.0

    def reason_to_end(self, outcome: Outcome) -> str | None:
        """Takes the outcome of the next run; why the search ends with it, or None."""
        failure = outcome.failure
        with self._lock:
            if outcome.usage or failure is None or not failure.is_silent:
                self._num_runs = 0
                return None
            if self._num_runs == 0:
                self._since = self._clock()
            self._num_runs += 1
            seconds = self._clock() - self._since
            if self._num_runs < FEWEST_RUNS or seconds < LONGEST_SECONDS:
                return None
        return (
            f"no LM answered in {self._num_runs} runs in a row, for {seconds:.0f} s; the last: "
            f"{failure.text}"
        )
