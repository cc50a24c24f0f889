"""A journal of everything that cost something, so that a crash at 80 % costs nothing twice.

One JSON object a line, written and flushed as it happens. ``compile`` with the same ``log_dir``
replays it: scores and proposals that stand in the journal are read, not paid for again. The search
being deterministic, it arrives where it was, and goes on.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dspy_diffusion_infill.optimizer.validation import Evaluation

FILE_NAME = "journal.jsonl"


class Journal:
    """Reads and extends a journal; without a folder it only remembers within the run."""

    def __init__(self, folder: str | Path | None, identity: dict[str, Any]) -> None:
        """Opens the journal of ``folder``, made where it is missing.

        Args:
            folder: where ``journal.jsonl`` lies; None keeps everything in memory.
            identity: what must be equal for old entries to count: program, data, metric, denoiser,
                options.

        Raises:
            ValueError: the folder holds the journal of another search.
        """
        self.entries: dict[str, Any] = {}
        self.path = Path(folder) / FILE_NAME if folder is not None else None
        header = json.loads(json.dumps(identity, default=str))
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists() and self.path.stat().st_size:
            self._read(header)
        else:
            self._append({"identity": header})

    def _read(self, header: dict[str, Any]) -> None:
        assert self.path is not None
        # As bytes: texts may hold other line breaks, and a torn line may end inside a character.
        *lines, torn = self.path.read_bytes().split(b"\n")
        if torn:  # the last line was being written when the process died
            self.path.write_bytes(b"".join(line + b"\n" for line in lines))
        if not lines:
            self._append({"identity": header})
            return
        found = json.loads(lines[0]).get("identity", {})
        changed = [key for key in header if found.get(key) != header[key]]
        if changed:
            raise ValueError(
                f"log_dir={str(self.path.parent)!r} holds the journal of another search "
                f"(other {', '.join(changed)}): "
                "give a new folder, or delete this one"
            )
        self.entries = {entry["key"]: entry["value"] for entry in map(json.loads, lines[1:])}

    def get(self, *key: Any) -> Any | None:
        """The value of a key, or None."""
        return self.entries.get(key_of(*key))

    def put(self, value: Any, *key: Any) -> None:
        """Writes a value down at once."""
        self.entries[key_of(*key)] = value
        self._append({"key": key_of(*key), "about": key[0], "value": value})

    def _append(self, entry: dict[str, Any]) -> None:
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry, ensure_ascii=False) + "\n")


def key_of(*parts: Any) -> str:
    """A short key of anything that JSON can write."""
    return hashlib.sha256(json.dumps(parts, default=str, sort_keys=True).encode()).hexdigest()[:24]


def evaluation_to_json(evaluation: Evaluation) -> dict[str, Any]:
    """The scores and failures; traces are not written."""
    return {"scores": list(evaluation.scores), "failures": list(evaluation.failures)}


def evaluation_from_json(value: dict[str, Any]) -> Evaluation:
    """An evaluation without traces."""
    scores: Sequence[float] = value["scores"]
    return Evaluation(tuple(scores), (None,) * len(scores), tuple(value["failures"]))
