"""Progress lines on standard error."""

import sys
from contextlib import suppress


def say(line: str) -> None:
    """Prints a line; a closed or narrow standard error does not end minutes of training."""
    with suppress(OSError, UnicodeError):
        print(line, file=sys.stderr, flush=True)
