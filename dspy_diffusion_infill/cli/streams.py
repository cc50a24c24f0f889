"""Standard streams that never raise: what was paid for is not lost to the way it is printed."""

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO


class _QuietPipe(io.FileIO):
    """A file descriptor that writes to nowhere once its reader is gone (``| head``)."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EINVAL):  # Windows says EINVAL
                raise
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), self.fileno())
        return super().write(data)


@contextmanager
def forgiving_streams() -> Iterator[None]:
    """Standard output and error take every text while the block runs.

    Characters that the terminal's encoding lacks are written as Python's escapes. A reader
    that closes the pipe early does not end the program.
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(_forgiving, before)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        sys.stdout, sys.stderr = before


def _forgiving(stream: TextIO) -> TextIO:
    """The same file descriptor behind another wrapper; what is no file stays as it is."""
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    stream.flush()
    raw = getattr(stream.buffer, "raw", stream.buffer)
    if type(raw) is not io.FileIO:  # a Windows console takes all of Unicode
        stream.reconfigure(errors="backslashreplace")
        return stream
    return io.TextIOWrapper(
        io.BufferedWriter(_QuietPipe(raw.fileno(), "wb", closefd=False)),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
