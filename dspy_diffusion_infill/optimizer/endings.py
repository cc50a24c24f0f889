"""How a search ends before it is done: at a cap, by an exception, by a signal."""

import logging
import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType

import dspy

from dspy_diffusion_infill.errors import TooManyErrors
from dspy_diffusion_infill.optimizer.budget import BudgetSpentError
from dspy_diffusion_infill.optimizer.results import results_of
from dspy_diffusion_infill.optimizer.search import Search
from dspy_diffusion_infill.runs import TooManyFailuresError

logger = logging.getLogger(__name__)


@contextmanager
def ends_at_a_cap(search: Search) -> Generator[None]:
    """A cap ends the search wherever it is, as if it were done."""
    try:
        yield
    except BudgetSpentError as error:
        assert search.validator.budget.end_reason is not None
        search.end_reason = search.validator.budget.end_reason
        if search.first is None:
            logger.warning("nothing was tried, as the first evaluation did not end: %s", error)
        else:
            level = logging.WARNING if search.end_reason == "max_cost" else logging.INFO
            logger.log(level, "the search ends: %s", error)


@contextmanager
def best_on_exception(result: Callable[[], dspy.Module]) -> Generator[None]:
    """Puts the best program so far on whatever ends the search, Ctrl-C included."""
    try:
        yield
    except TooManyFailuresError as error:
        best = result()
        raise TooManyErrors(
            str(error), best_program=best, detailed_results=results_of(best)
        ) from error
    except (Exception, KeyboardInterrupt) as error:
        vars(error)["best_program"] = best = result()
        vars(error)["detailed_results"] = results_of(best)
        logger.warning("the search was cut off; its best program is .best_program of the error")
        raise


@contextmanager
def sigterm_as_interrupt() -> Generator[None]:
    """SIGTERM raises KeyboardInterrupt, as Ctrl-C does, so that the best program is not lost.

    Only in the main thread, which alone gets signals, and where SIGTERM has no handler yet.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _interrupt(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one stops at once
    raise KeyboardInterrupt("SIGTERM")
