"""JSONL, read in one way everywhere: a file or a pipe, with or without a byte order mark."""

import codecs
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from dspy_diffusion_infill.errors import DataError
from dspy_diffusion_infill.value_checks import broken_character

MAX_LINE = 2**26
"""Bytes of a line, 64 MiB: a longer one is no row, and would only fill the memory."""
MAX_DEPTH = 100
"""Lists and objects inside one another, far below the depth at which Python gives up."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line that is not blank.

    Attributes:
        origin: ``file:number``, the number counted from 1.
        number: of the line.
        content: its bytes, without a byte order mark.
    """

    origin: str
    number: int
    content: bytes

    def parse(self) -> Any:
        """The JSON value of the line.

        Raises:
            DataError: it is no UTF-8, no JSON, or holds text that cannot be encoded; the message
                does not name the line.
        """
        return parse_json(self.content)


def lines_of(path: str | Path) -> Iterator[Line]:
    """The lines of a file or pipe that are not blank.

    Raises:
        DataError: nothing can be read there, or a line is longer than ``MAX_LINE``.
    """
    try:
        with Path(path).open("rb") as file:
            yield from lines_in(file, str(path))
    except OSError as error:
        what = "does not exist" if isinstance(error, FileNotFoundError) else error.strerror
        raise DataError(f"{path} {what or 'cannot be read'}") from error


def lines_in(file: IO[bytes], name: str) -> Iterator[Line]:
    """The lines of an open file that are not blank; ``name`` is what errors call it.

    Only a line feed ends a line: strings in JSON may hold other line breaks.

    Raises:
        DataError: a line is longer than ``MAX_LINE``.
    """
    lines = iter(lambda: file.readline(MAX_LINE + 1), b"")
    for number, content in enumerate(lines, start=1):
        if len(content) > MAX_LINE:
            raise DataError(f"{name}:{number}: a line must be at most {MAX_LINE} bytes")
        content = content.removeprefix(codecs.BOM_UTF8) if number == 1 else content
        if content.strip():
            yield Line(f"{name}:{number}", number, content)


def objects_of(path: str | Path) -> Iterator[tuple[Line, dict[str, Any]]]:
    """Each line of a file or pipe with its JSON object.

    Raises:
        DataError: as ``lines_of`` and ``objects_in``.
    """
    return objects_in(lines_of(path))


def objects_in(lines: Iterable[Line]) -> Iterator[tuple[Line, dict[str, Any]]]:
    """Each line with its JSON object.

    Raises:
        DataError: a line holds no JSON object; the message begins with ``file:line``.
    """
    for line in lines:
        try:
            value = line.parse()
        except DataError as error:
            raise DataError(f"{line.origin}: {error}") from error
        if not isinstance(value, dict):
            raise DataError(f"{line.origin}: must be a JSON object, got {type(value).__name__}")
        yield line, value


def parse_json(content: bytes, *, allow_nan: bool = True) -> Any:
    """The value of JSON in UTF-8, perhaps behind a byte order mark.

    Args:
        content: the JSON.
        allow_nan: whether Python's NaN and Infinity, which are no JSON, are taken.

    Raises:
        DataError: as ``Line.parse``.
    """
    try:
        text = content.removeprefix(codecs.BOM_UTF8).decode("utf-8")
        value = json.loads(text, parse_constant=None if allow_nan else _refuse)
    except UnicodeDecodeError as error:
        raise DataError(
            f"invalid UTF-8 at byte {error.start} of the line (0x{error.object[error.start]:02x}); "
            "save the file as UTF-8"
        ) from error
    except ValueError as error:  # of the decoder, and of numbers with thousands of digits
        raise DataError(f"no JSON: {error}") from error
    except RecursionError:
        raise DataError(_TOO_DEEP) from None
    if content.count(b"[") + content.count(b"{") > MAX_DEPTH and _is_deep(value):
        raise DataError(_TOO_DEEP)
    if b"\\ud" in content.lower():  # half of an escaped pair is JSON, and no Unicode text
        if broken := broken_character(json.dumps(value, ensure_ascii=False)):
            raise DataError(f"the text {broken}")
    return value


_TOO_DEEP = f"lists and objects must be at most {MAX_DEPTH} inside one another"


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no number of JSON")


def _is_deep(value: Any) -> bool:
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_DEPTH):
        parts = [one.values() if isinstance(one, dict) else one for one in level]
        level = [item for part in parts for item in part if isinstance(item, dict | list)]
    return bool(level)
