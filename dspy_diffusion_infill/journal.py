"""A journal of everything that cost something, so that a crash at 80 % costs nothing twice.

One JSON object a line, on disk when ``put`` returns. A run with the same journal reads what stands
in it and pays for nothing again.
"""

import json
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from dspy_diffusion_infill import disk
from dspy_diffusion_infill.errors import DataError
from dspy_diffusion_infill.jsonl import Line, lines_of

T = TypeVar("T")

_AGAIN = ", and what it held is paid for again; or delete the file"


class Journal:
    """Key to value; without a path it lives as long as the process.

    Attributes:
        path: the JSONL file; None keeps everything in memory.
    """

    def __init__(self, path: Path | None, *, identity: Mapping[str, Any] | None = None) -> None:
        """Reads the journal at ``path``, whose folder is made where it is missing.

        A torn last line, as a kill leaves it, is dropped.

        Args:
            path: the file; None keeps everything in memory.
            identity: what must be equal for old entries to count; the file's first line holds it.
                None takes every entry.

        Raises:
            ValueError: the file is the journal of another identity.
            DataError: a line is damaged that is not the last one.
            OSError: the file cannot be read or written.
        """
        self.path = path
        self._lock, self._is_closed = threading.Lock(), False
        self._entries: dict[str, Any] = {}
        if path is None:
            return
        disk.make_folder(path.parent)
        lines = _whole_lines(path)
        if identity is not None:
            header = json.loads(json.dumps(identity))
            if lines:
                _check_identity(path, _parsed(lines.pop(0), identity=dict)["identity"], header)
            else:
                self._append({"identity": header})
        for line in lines:
            entry = _parsed(line, key=str, value=object)
            self._entries[entry["key"]] = entry["value"]

    def get(self, key: str) -> Any | None:
        """The value of a key, or None."""
        return self._entries.get(key)

    def read(self, key: str, parse: Callable[[Any], T]) -> T | None:
        """What ``parse`` makes of the value of a key; None where there is no value.

        Raises:
            DataError: the value is none that ``parse`` takes.
        """
        if (value := self.get(key)) is None:
            return None
        try:
            return parse(value)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            why = " ".join(str(error).split())[:200]
            raise DataError(
                f"{self.path}: the value of {key!r} is damaged ({why}): delete its line{_AGAIN}"
            ) from error

    def values(self) -> list[Any]:
        """All values, the oldest first."""
        return list(self._entries.values())

    def put(self, key: str, value: Any, *, about: str) -> None:
        """Writes a value at once; ``about`` tells a human reader what it is.

        Raises:
            OSError: it cannot be written, as on a full disk; the file is as it was before.
        """
        with self._lock:
            if self._is_closed:
                return
            self._append({"key": key, "about": about, "value": value})
            self._entries[key] = value

    def close(self) -> None:
        """Ends writing; what a thread that outlives the search puts later is dropped."""
        with self._lock:
            self._is_closed = True

    def _append(self, entry: Mapping[str, Any]) -> None:
        if self.path is None:
            return
        line = json.dumps(entry, ensure_ascii=False).encode() + b"\n"
        try:
            with self.path.open("ab", buffering=0) as file:
                end = file.tell()
                try:
                    _write_all(file.fileno(), line)
                except OSError:
                    file.truncate(end)
                    raise
            if end == 0:  # the file is new
                disk.sync_folder(self.path.parent)
        except OSError as error:
            raise OSError(
                error.errno,
                f"the journal cannot be written ({error.strerror}): mend that, and compile with "
                "the same log_dir goes on from here",
                str(self.path),
            ) from error


def _write_all(descriptor: int, data: bytes) -> None:
    """Writes it, and waits until it is on the disk."""
    while data:
        data = data[os.write(descriptor, data) :]
    os.fsync(descriptor)


def _parsed(line: Line, **types: type) -> dict[str, Any]:
    """The entry of a line, which has values of these types."""
    try:
        value = line.parse()
        entry = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
        for name, kind in types.items():
            if name not in entry or not isinstance(entry[name], kind):
                raise DataError(f"no entry with {name}")
    except DataError as error:
        raise DataError(f"{line.origin} is damaged ({error}): delete this line{_AGAIN}") from error
    return entry


def _whole_lines(path: Path) -> list[Line]:
    """The lines of the file; a torn last one is cut off the file too."""
    if not path.exists():
        return []
    lines = list(lines_of(path))
    if lines and not lines[-1].content.endswith(b"\n"):
        torn = lines.pop()
        os.truncate(path, path.stat().st_size - len(torn.content))
    return lines


def _check_identity(path: Path, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    changed = [key for key in expected if found.get(key) != expected[key]]
    if changed:
        raise ValueError(
            f"log_dir={str(path.parent)!r} holds the journal of another search "
            f"(other {', '.join(changed)}): give a new folder, or delete this one"
        )
