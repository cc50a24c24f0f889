"""A piece that a run lacks, with the command that provides it."""

from collections.abc import Iterable
from dataclasses import dataclass

from dspy_diffusion_infill.reproduction.targets import PaperRow, numbers_text


@dataclass(frozen=True, slots=True)
class Missing:
    """What is missing.

    Attributes:
        what: the piece.
        command: what provides it.
        rows: the numbers of the rows that cannot run without.
    """

    what: str
    command: str
    rows: tuple[int, ...]

    def __str__(self) -> str:
        return f"missing: {self.what} (rows {numbers_text(self.rows)}): {self.command}"


def missing(what: str, command: str, rows: Iterable[PaperRow]) -> Missing:
    """A missing piece of some rows."""
    return Missing(what, command, tuple(row.number for row in rows))
