"""Reading rows of data files, with errors that name the file, the row and the field."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from dspy_diffusion_infill.errors import DataError, MissingDependencyError
from dspy_diffusion_infill.jsonl import objects_of, parse_json

T = TypeVar("T")

INSTALL = "pip install 'dspy-diffusion-infill[evaluation]'"


@dataclass(frozen=True, slots=True)
class Record:
    """One row, and where it came from.

    Attributes:
        values: field name to value.
        source: the file or the hub's data set.
        number: of the row in it, from 1.
    """

    values: Mapping[str, Any]
    source: str
    number: int

    def text(self, name: str, *, may_be_empty: bool = False) -> str:
        """A text field.

        Raises:
            DataError: it is missing, no text, or empty.
        """
        value = self.get(name, str, "text")
        if not may_be_empty and not value.strip():
            raise self.error(name, "is empty")
        return value

    def number_of(self, name: str, *, low: float, high: float) -> float:
        """A number in [low, high]; digits in quotes are taken too.

        Raises:
            DataError: it is missing, no number, or out of its range.
        """
        value = self.get(name, (int, float, str), "a number")
        try:
            number = float(value)
        except (ValueError, OverflowError):
            raise self.error(name, f"must be a number, got {value!r:.60}") from None
        if not low <= number <= high:
            raise self.error(name, f"must be in {low:g}..{high:g}, got {value!r:.60}")
        return number

    def items(self, name: str) -> Sequence[Any]:
        """A list field.

        Raises:
            DataError: it is missing or no list.
        """
        return self.get(name, list, "a list")

    def inner(self, name: str) -> "Record":
        """A field that holds fields.

        Raises:
            DataError: it is missing or holds none.
        """
        values = self.get(name, dict, "an object")
        return Record(
            {f"{name}.{key}": value for key, value in values.items()}, self.source, self.number
        )

    def get(self, name: str, kind: type[T] | tuple[type[T], ...], called: str) -> T:
        """A field of the given type.

        Raises:
            DataError: it is missing or of another type.
        """
        if name not in self.values or self.values[name] is None:
            names = ", ".join(sorted(self.values)) or "-"
            raise self.error(name, f"is missing; the row has {names:.300}")
        value = self.values[name]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise self.error(name, f"must be {called}, got {type(value).__name__}: {value!r:.60}")
        return value

    def error(self, name: str, problem: str) -> DataError:
        """A DataError that names file, row and field."""
        return DataError(f"{self.source}, row {self.number}: field {name!r} {problem}")


def read_rows(path: Path) -> list[Record]:
    """The rows of a ``.jsonl``, ``.json`` (a list of objects) or ``.parquet`` file.

    Raises:
        DataError: the file is missing, of another kind, or not what its name says.
    """
    readers = {".jsonl": _jsonl, ".json": _json, ".parquet": _parquet}
    if not path.exists() or path.is_dir():
        raise DataError(f"{path} is no file")
    kind = path.suffix if path.is_file() else ".jsonl"  # a pipe has no name that says its kind
    if kind not in readers:
        raise DataError(f"{path}: the file must be {', '.join(readers)}, got {kind!r}")
    records = readers[kind](path)
    if not records:
        raise DataError(f"{path} holds no rows")
    return records


def _jsonl(path: Path) -> list[Record]:
    """Records are numbered by their lines."""
    return [Record(value, str(path), line.number) for line, value in objects_of(path)]


def _json(path: Path) -> list[Record]:
    try:
        values = parse_json(path.read_bytes())
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    if not isinstance(values, list):
        raise DataError(f"{path}: must be a list of rows, got {type(values).__name__}")
    return _numbered(values, path)


def _numbered(values: Sequence[Any], path: Path) -> list[Record]:
    for number, value in enumerate(values, start=1):
        if not isinstance(value, dict):
            raise DataError(f"{path}, row {number}: must be an object, got {type(value).__name__}")
    return [Record(value, str(path), number) for number, value in enumerate(values, start=1)]


def _parquet(path: Path) -> list[Record]:
    try:
        from pyarrow import ArrowInvalid
        from pyarrow.parquet import read_table
    except ImportError:
        raise MissingDependencyError(f"reading {path} needs pyarrow: {INSTALL}") from None
    try:
        return _numbered(read_table(path).to_pylist(), path)
    except ArrowInvalid as error:
        raise DataError(f"{path}: no parquet file ({error})") from None
