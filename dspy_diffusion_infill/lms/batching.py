"""Calls of several threads gathered into batches."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

from dspy_diffusion_infill.value_checks import check_whole

Item = TypeVar("Item")
Result = TypeVar("Result")

QUIET, QUIET_SHARE = 0.01, 0.05
"""A batch that is not full starts after so many seconds without a new item, or after this share of
the time that the last batch took, whichever is longer: its callers come back one by one."""


class Batcher(Generic[Item, Result]):
    """Answers items one by one to its callers, and in batches to its function.

    There is no thread of its own: of the callers that wait, one runs the next batch, first come
    first served, while the others wait for their results. Items that arrive meanwhile are the next
    batch.

    Attributes:
        max_batch: the most items of a batch.
    """

    def __init__(self, run: Callable[[Sequence[Item]], Sequence[Result]], max_batch: int) -> None:
        """Makes a batcher; nothing runs.

        Args:
            run: gives the results of a batch, in its order; called by one thread at a time.
            max_batch: the most items of a batch, >= 1. A batch of 1 never waits for others.

        Raises:
            TypeError: ``max_batch`` is no whole number.
            ValueError: it is below 1.
        """
        check_whole("max_batch", max_batch, least=1)
        self.max_batch = max_batch
        self._run = run
        self._quiet = QUIET
        self._waiting: list[tuple[Item, Future[Result]]] = []
        self._arrived = threading.Condition()
        self._turn = threading.Lock()

    def __call__(self, item: Item) -> Result:
        """The result of an item, or what ``run`` raised over its batch."""
        mine = item, Future[Result]()
        with self._arrived:
            self._waiting.append(mine)
            self._arrived.notify_all()
        try:
            while not mine[1].done():
                with self._turn:
                    if not mine[1].done():
                        self._run_next()
        except BaseException:  # Ctrl-C in this thread; the items of the others stay
            with self._arrived:
                self._waiting = [one for one in self._waiting if one is not mine]
            raise
        return mine[1].result()

    def _run_next(self) -> None:
        """Runs the items that wait, at most ``max_batch`` of them."""
        with self._arrived:
            while len(self._waiting) < self.max_batch and self._arrived.wait(self._quiet):
                pass
            batch = self._waiting[: self.max_batch]
            del self._waiting[: self.max_batch]
        started = time.perf_counter()
        try:
            results = self._run([item for item, _ in batch])
            for (_, future), result in zip(batch, results, strict=True):
                future.set_result(result)
            self._quiet = max(QUIET, QUIET_SHARE * (time.perf_counter() - started))
        except Exception as error:
            for _, future in batch:
                future.set_exception(error)
        except BaseException:
            with self._arrived:
                self._waiting[:0] = batch
            raise
