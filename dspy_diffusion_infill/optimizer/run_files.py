"""What ``dspy-infill report`` reads in a ``log_dir``: ``run.json`` and ``events.jsonl``.

``run.json`` is ``DetailedResults`` without the trials and the refused proposals, written anew after
every trial. These two stand in ``events.jsonl``, one a line. Nothing of a search depends on them:
the journal alone says what was paid for. A resumed search writes both files again from the
beginning.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from dspy_diffusion_infill import disk
from dspy_diffusion_infill.errors import DataError
from dspy_diffusion_infill.jsonl import lines_of, parse_json
from dspy_diffusion_infill.optimizer.callbacks import (
    EndEvent,
    ProposalEvent,
    SearchCallback,
    StartEvent,
    TrialEvent,
)
from dspy_diffusion_infill.optimizer.results import DetailedResults
from dspy_diffusion_infill.value_checks import first_problem

RUN_FILE, EVENTS_FILE = "run.json", "events.jsonl"
_LISTS = {"trial": "trials", "refused": "refused"}  # what a line of events is one of


class RunFiles(SearchCallback):
    """Writes the files of a search as it goes on."""

    def __init__(self, folder: Path) -> None:
        """Nothing is written before the first evaluation has ended."""
        self._folder = folder

    def on_start(self, event: StartEvent) -> None:
        """Begins both files."""
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / EVENTS_FILE).write_bytes(b"")
        self._write(event.results)

    def on_proposal(self, event: ProposalEvent) -> None:
        """Adds the proposals that are not tried."""
        for one in event.refused():
            self._append("refused", asdict(one))

    def on_trial(self, event: TrialEvent) -> None:
        """Adds the trial."""
        self._append("trial", asdict(event.trial))
        self._write(event.results)

    def on_end(self, event: EndEvent) -> None:
        """Writes how it ended; after a first evaluation that was cut off, nothing."""
        if event.results.scores_before:
            self._write(event.results)

    def _append(self, kind: str, value: Mapping[str, Any]) -> None:
        line = json.dumps({"event": kind, **value}, ensure_ascii=False)
        with (self._folder / EVENTS_FILE).open("ab") as file:
            file.write(line.encode("utf-8", "backslashreplace") + b"\n")

    def _write(self, results: DetailedResults) -> None:
        """In one step: a reader sees the old file or the new one."""
        names = [one.name for one in fields(results) if one.name not in _LISTS.values()]
        values = {name: getattr(results, name) for name in names}
        text = json.dumps(values, ensure_ascii=False, indent=1, default=asdict)
        new = self._folder / f"{RUN_FILE}.new"
        new.write_bytes(text.encode("utf-8", "backslashreplace"))
        disk.replace(new, self._folder / RUN_FILE)


def read_run(folder: str | Path) -> DetailedResults:
    """The records of a search, ended or not, from its ``log_dir``.

    Raises:
        DataError: there are none, or a file is damaged; the message names it.
    """
    path = Path(folder) / RUN_FILE
    if not path.is_file():
        folds = sorted(one.parent.name for one in Path(folder).glob(f"*/{RUN_FILE}"))
        inside = f"; of its folders {folds} do" if folds else ""
        raise DataError(
            f"{folder} holds no {RUN_FILE}: give the log_dir of a search whose first evaluation "
            f"has ended{inside}"
        )
    try:
        values = parse_json(path.read_bytes())
        if not isinstance(values, dict):
            raise DataError("must be a JSON object")
        events = _read_events(Path(folder) / EVENTS_FILE)
        return TypeAdapter(DetailedResults).validate_python({**values, **events})
    except ValidationError as error:
        raise DataError(f"{path}: {first_problem(error)}") from error
    except DataError as error:
        message = str(error)
        raise DataError(message if str(folder) in message else f"{path}: {message}") from error


def _read_events(path: Path) -> dict[str, list[Any]]:
    """The trials and the refused proposals; a line that is being written is left out."""
    found: dict[str, list[Any]] = {name: [] for name in _LISTS.values()}
    for line in lines_of(path):
        if not line.content.endswith(b"\n"):
            break
        try:
            entry = line.parse()
        except DataError as error:
            raise DataError(f"{line.origin}: {error}") from error
        kind = entry.pop("event", None) if isinstance(entry, dict) else None
        if not isinstance(kind, str) or kind not in _LISTS:
            raise DataError(f"{line.origin}: must be a trial or a refused proposal")
        found[_LISTS[kind]].append(entry)
    return found
