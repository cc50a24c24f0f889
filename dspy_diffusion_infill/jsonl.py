"""JSONL, read in one way everywhere: a file or a pipe, with or without a byte order mark."""

import codecs
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dspy_diffusion_infill.errors import DataError
from dspy_diffusion_infill.value_checks import broken_character


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

    Only a line feed ends a line: strings in JSON may hold other line breaks.

    Raises:
        DataError: nothing can be read there.
    """
    try:
        with Path(path).open("rb") as file:
            for number, content in enumerate(file, start=1):
                content = content.removeprefix(codecs.BOM_UTF8) if number == 1 else content
                if content.strip():
                    yield Line(f"{path}:{number}", number, content)
    except OSError as error:
        what = "does not exist" if isinstance(error, FileNotFoundError) else error.strerror
        raise DataError(f"{path} {what or 'cannot be read'}") from error


def objects_of(path: str | Path) -> Iterator[tuple[Line, dict[str, Any]]]:
    """Each line with its JSON object.

    Raises:
        DataError: nothing can be read there, or a line holds no JSON object; the message begins
            with ``file:line``.
    """
    for line in lines_of(path):
        try:
            value = line.parse()
        except DataError as error:
            raise DataError(f"{line.origin}: {error}") from error
        if not isinstance(value, dict):
            raise DataError(f"{line.origin}: must be a JSON object, got {type(value).__name__}")
        yield line, value


def parse_json(content: bytes) -> Any:
    """The value of JSON in UTF-8, perhaps behind a byte order mark.

    Raises:
        DataError: as ``Line.parse``.
    """
    try:
        value = json.loads(content.removeprefix(codecs.BOM_UTF8).decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(
            f"invalid UTF-8 at byte {error.start} of the line (0x{error.object[error.start]:02x}); "
            "save the file as UTF-8"
        ) from error
    except json.JSONDecodeError as error:
        raise DataError(f"no JSON: {error}") from error
    if b"\\ud" in content.lower():  # half of an escaped pair is JSON, and no Unicode text
        if broken := broken_character(json.dumps(value, ensure_ascii=False)):
            raise DataError(f"the text {broken}")
    return value
