"""A limit on the time that somebody else's code takes."""

import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

Result = TypeVar("Result")


class OutOfTimeError(Exception):
    """A call did not end in time."""


def within(seconds: float | None, call: Callable[[], Result]) -> Result:
    """What the call returns, or raises.

    Python cannot stop a call. One that is late goes on in a thread of its own, which does not keep
    the process from ending, and nobody hears what it returns.

    Args:
        seconds: above 0; with None the call is made in this thread, and takes what it takes.
        call: sees the context variables of this thread, as they are now.

    Raises:
        OutOfTimeError: it takes longer.
    """
    if seconds is None:
        return call()
    ended, context = Future[Result](), contextvars.copy_context()

    def run() -> None:
        try:
            ended.set_result(context.run(call))
        except BaseException as error:
            ended.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    if not wait([ended], timeout=min(seconds, threading.TIMEOUT_MAX)).done:
        raise OutOfTimeError(f"no answer within {seconds:g} s")
    return ended.result()
