"""An orderly stop, and a cache that never pays for a completion twice.

The journals of a run are in its output folder. ``rows.jsonl`` and ``prompts.jsonl`` hold one
finished row or prompt a line. ``calls/`` is a DSPy cache of single completions: it answers calls
that a killed run had made in the middle of a row or of a search.
"""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import dspy
from dspy.clients.cache import Cache
from dspy.utils.callback import BaseCallback

logger = logging.getLogger(__name__)

_DISK_LIMIT = 2**40  # bytes; DSPy's cache would drop the oldest answers above it


class RunStopped(KeyboardInterrupt):
    """The run was asked to stop; not an ``Exception``, which optimizers would swallow."""


class Stop:
    """Turns Ctrl-C and SIGTERM into an orderly end: calls under way are finished and kept."""

    def __init__(self) -> None:
        self._asked = threading.Event()

    @property
    def is_asked(self) -> bool:
        """Whether the run has been asked to end."""
        return self._asked.is_set()

    def check(self) -> None:
        """Raises RunStopped if the run has been asked to end."""
        if self.is_asked:
            raise RunStopped

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Listens while the block runs; a second Ctrl-C ends the process as usual.

        A second SIGTERM does not: ``timeout`` sends two.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {kind: signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)}
        for kind in before:
            signal.signal(kind, self._note)
        try:
            yield
        finally:
            for kind, handler in before.items():
                signal.signal(kind, handler)

    def _note(self, kind: int, _frame: FrameType | None) -> None:
        if self.is_asked:
            if kind == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self._asked.set()
        name = signal.Signals(kind).name
        logger.warning("%s: no new call is made, calls under way are finished", name)


class CallsUnderWay(BaseCallback):
    """Tracks the LM calls that have no answer yet, in all threads.

    An optimizer that is stopped leaves its threads running: their answers are paid for, too.
    """

    def __init__(self) -> None:
        self._calls: set[str] = set()
        self._changed = threading.Condition()

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Counts a call that begins; DSPy names all of its arguments."""
        del instance, inputs
        with self._changed:
            self._calls.add(call_id)

    def on_lm_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        """Counts a call off: its answer is in the cache, or it has failed."""
        del outputs, exception
        with self._changed:
            self._calls.discard(call_id)
            self._changed.notify_all()

    def wait(self, *, seconds: float) -> None:
        """Waits until no call is under way, at most this long."""
        with self._changed:
            self._changed.wait_for(lambda: not self._calls, timeout=seconds)


class CallJournal(Cache):
    """DSPy's cache in a folder of the run, which counts, and makes no new call after a stop."""

    def __init__(self, folder: Path, stop: Stop) -> None:
        super().__init__(
            enable_disk_cache=True,
            enable_memory_cache=True,
            disk_cache_dir=str(folder),
            disk_size_limit_bytes=_DISK_LIMIT,
            restrict_pickle=True,  # answers are plain data: a run's folder may be a stranger's
        )
        self._disk: Any = self.disk_cache
        self.num_made = self.num_known = 0
        self._stop = stop

    def get(self, request: dict[str, Any], ignored_args_for_cache_key: Any = None) -> Any:
        """A known answer, or None: then DSPy makes the call.

        Raises:
            RunStopped: the answer is not known, and the run has been asked to end.
        """
        known = super().get(request, ignored_args_for_cache_key)
        if known is None:
            self._stop.check()
            return None
        with self._lock:
            self.num_known += 1
        return known

    def put(self, request: dict[str, Any], value: Any, *args: Any, **kwargs: Any) -> None:
        """Keeps an answer and counts it."""
        super().put(request, value, *args, **kwargs)
        with self._lock:
            self.num_made += 1

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Makes this DSPy's cache while the block runs."""
        settings: Any = dspy  # the attribute is made on demand, so that type checkers miss it
        before = settings.cache
        settings.cache = self
        try:
            yield
        finally:
            settings.cache = before
            self._disk.close()
