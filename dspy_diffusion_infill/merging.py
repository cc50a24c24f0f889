"""Three-way merges of texts: the edits of two texts that were made from the same one."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from dspy_diffusion_infill.words import TOKEN


@dataclass(frozen=True, slots=True, order=True)
class Change:
    """Characters ``start:end`` of a text, and what stands in their place in another one."""

    start: int
    end: int
    new: str


def merged(base: str, one: str, other: str) -> str | None:
    """The base with the edits of both texts; None where these overlap or touch.

    Texts are compared by words. An edit that both texts have is made once.
    """
    changes = sorted({*changes_between(base, one), *changes_between(base, other)})
    if any(second.start <= first.end for first, second in pairwise(changes)):
        return None
    for change in reversed(changes):
        base = base[: change.start] + change.new + base[change.end :]
    return base


def merged_texts(
    base: Mapping[str, str], one: Mapping[str, str], other: Mapping[str, str]
) -> dict[str, str] | None:
    """As ``merged``, of several texts by name; None where two edits of one text overlap."""
    texts: dict[str, str] = {}
    for name, text in base.items():
        found = merged(text, one[name], other[name])
        if found is None:
            return None
        texts[name] = found
    return texts


def changes_between(old: str, new: str) -> list[Change]:
    """The changes that make the new text of the old one, from left to right."""
    before, after = TOKEN.findall(old), TOKEN.findall(new)
    starts = [0]
    for token in before:
        starts.append(starts[-1] + len(token))
    matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
    return [
        Change(starts[a], starts[b], "".join(after[c:d]))
        for tag, a, b, c, d in matcher.get_opcodes()
        if tag != "equal"
    ]
