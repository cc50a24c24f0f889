"""Marks in instructions: ``[[infill:16]]`` is filled in, ``[[keep]]…[[/keep]]`` is never masked.

Marks are for the search alone: they are taken out before any LM sees the instructions.
"""

import re
from dataclasses import dataclass

_MARK = re.compile(r"\[\[(?:infill:(?P<masks>\d+)|(?P<keep>/?keep))\]\]")

STARTS_A_MARK = re.compile(r"\[\[/?(?:infill|keep)")
"""What the text of a proposal must not hold."""


@dataclass(frozen=True, slots=True)
class MarkedText:
    """Instructions whose marks were read and taken out.

    Attributes:
        text: without marks.
        places: (character of ``text``, number of masks) of each ``[[infill:n]]``.
        kept: what stood between each ``[[keep]]`` and ``[[/keep]]``, without white space around it.
    """

    text: str
    places: tuple[tuple[int, int], ...]
    kept: tuple[str, ...]


def read_marks(instructions: str) -> MarkedText:
    """Takes the marks out of instructions.

    Raises:
        ValueError: a mark asks for no token, or the marks of a kept passage do not come in pairs,
            stand inside of one another, or hold nothing or a place to be filled.
    """
    text, position, opened = "", 0, None
    places, kept = list[tuple[int, int]](), list[str]()
    for match in _MARK.finditer(instructions):
        text += instructions[position : match.start()]
        position = match.end()
        _check(match, opened, text)
        if match["masks"]:
            places.append((len(text), int(match["masks"])))
        elif match["keep"] == "keep":
            opened = len(text)
        else:
            kept.append(text[opened:].strip())
            opened = None
    text += instructions[position:]
    if opened is not None:
        raise ValueError(
            f"[[keep]] before {_start(text[opened:])!r} must have a [[/keep]] after it"
        )
    return MarkedText(text, tuple(places), tuple(kept))


def _check(match: re.Match[str], opened: int | None, before: str) -> None:
    """Raises ValueError unless a mark may stand here.

    Args:
        match: the mark.
        opened: where the kept passage begins that the mark stands in; None outside of one.
        before: the text before the mark, without marks.
    """
    if match["masks"]:
        if int(match["masks"]) < 1:
            raise ValueError(f"{match[0]} must ask for at least 1 token, as in [[infill:16]]")
        if opened is not None:
            raise ValueError(f"{match[0]} must stand outside of [[keep]]…[[/keep]]")
    elif match["keep"] == "keep":
        if opened is not None:
            raise ValueError(
                f"[[keep]] before {_start(before[opened:])!r} must have a [[/keep]] after it and "
                "before the next [[keep]]: kept passages cannot be nested"
            )
    elif opened is None:
        raise ValueError(f"[[/keep]] after {before[-30:]!r} must have a [[keep]] before it")
    elif not before[opened:].strip():
        raise ValueError("[[keep]]…[[/keep]] must hold text, got none")


def _start(text: str) -> str:
    return text.lstrip()[:30]
