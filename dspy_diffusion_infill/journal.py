"""A journal of everything that cost something, so that a crash at 80 % costs nothing twice.

One JSON object a line, flushed as it is written. A run with the same journal reads what stands in
it and pays for nothing again.
"""

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any


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
        """
        self.path = path
        self._lock = threading.Lock()
        self._entries: dict[str, Any] = {}
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = _whole_lines(path)
        if identity is not None:
            header = json.loads(json.dumps(identity))
            if lines:
                _check_identity(path, json.loads(lines.pop(0)).get("identity", {}), header)
            else:
                self._append({"identity": header})
        self._entries = {entry["key"]: entry["value"] for entry in map(json.loads, lines)}

    def get(self, key: str) -> Any | None:
        """The value of a key, or None."""
        return self._entries.get(key)

    def values(self) -> list[Any]:
        """All values, the oldest first."""
        return list(self._entries.values())

    def put(self, key: str, value: Any, *, about: str) -> None:
        """Writes a value at once; ``about`` tells a human reader what it is."""
        with self._lock:
            self._append({"key": key, "about": about, "value": value})
            self._entries[key] = value

    def _append(self, entry: Mapping[str, Any]) -> None:
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry, ensure_ascii=False) + "\n")


def _whole_lines(path: Path) -> list[bytes]:
    """The lines of the file; a torn last one is cut off the file too."""
    if not path.exists():
        return []
    # As bytes: texts may hold other line breaks, and a torn line may end inside a character.
    *lines, torn = path.read_bytes().split(b"\n")
    if torn:
        path.write_bytes(b"".join(line + b"\n" for line in lines))
    return [line for line in lines if line]


def _check_identity(path: Path, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    changed = [key for key in expected if found.get(key) != expected[key]]
    if changed:
        raise ValueError(
            f"log_dir={str(path.parent)!r} holds the journal of another search "
            f"(other {', '.join(changed)}): give a new folder, or delete this one"
        )
