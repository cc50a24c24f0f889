"""Values made shorter step by step, of whatever type they are: texts are cut, lists lose items."""

from collections.abc import Mapping
from typing import Any

import dspy
from pydantic import BaseModel

CUT = " …"  # stands at the end of a text that was cut

TEXT_LENGTH = 200
"""Characters of a text that is shown to people in short, the mark of a cut included."""


def short(text: str) -> str:
    """The text cut to ``TEXT_LENGTH`` characters."""
    return text if len(text) <= TEXT_LENGTH else _cut(text, TEXT_LENGTH, 0)


def in_short(values: Any) -> str:
    """A prediction or a row as text for people: each field, cut to ``TEXT_LENGTH`` characters."""
    if not isinstance(values, dspy.Example):
        return short(str(values))
    fields = {name: short(str(value)) for name, value in values.items()}
    if len(fields) == 1:
        return next(iter(fields.values()))
    return "\n".join(f"{name}: {text}" for name, text in fields.items())


def size_of(value: Any) -> int:
    """The characters of all texts in a value; of another value, those that it is written with."""
    if isinstance(value, str):
        return len(value)
    parts = _parts(value)
    return sum(map(size_of, parts)) if parts is not None else len(str(value))


def shorter(value: Any, *, keep: int) -> Any | None:
    """The value at about half its size; None where nothing of it can be made shorter.

    A text is halved, but never below ``keep`` characters, the mark at its end counted. In a list,
    tuple, set, dict or pydantic model the longest texts are halved first; where none is longer than
    ``keep``, the second half of the items is left out. Types stay what they are: an enum member, a
    number or an image is never cut, and neither is a model's field that is no text, list or dict.
    """
    if type(value) is str:
        return _cut(value, len(value) // 2, keep) if len(value) > keep else None
    longest = _longest_text(value)
    if longest > keep:
        return _with_texts_cut(value, max(keep, longest // 2), keep)
    return _with_fewer_items(value)


def _parts(value: Any) -> list[Any] | None:
    """What a value is made of; None where it is no container."""
    if isinstance(value, BaseModel):
        return [getattr(value, name) for name in type(value).model_fields]
    if isinstance(value, Mapping):
        return list(value.values())
    if type(value) in (list, tuple, set, frozenset):
        return list(value)
    return None


def leaves_of(value: Any) -> list[Any]:
    """The values inside of a value that are no containers; of another value itself."""
    parts = _parts(value)
    return [value] if parts is None else [leaf for part in parts for leaf in leaves_of(part)]


def _longest_text(value: Any) -> int:
    if type(value) is str:
        return len(value)
    return max(map(_longest_text, _parts(value) or []), default=0)


def _cut(text: str, length: int, keep: int) -> str:
    return text[: max(keep, length) - len(CUT)].rstrip() + CUT


def _with_texts_cut(value: Any, length: int, keep: int) -> Any:
    """The value with every text that is longer than ``length`` cut to it."""
    if type(value) is str:
        return _cut(value, length, keep) if len(value) > length else value
    if isinstance(value, BaseModel):
        changed = {
            name: _with_texts_cut(getattr(value, name), length, keep)
            for name in type(value).model_fields
        }
        return value.model_copy(update=changed)
    if type(value) is dict:
        return {key: _with_texts_cut(one, length, keep) for key, one in value.items()}
    if type(value) in (list, tuple, set, frozenset):
        return type(value)(_with_texts_cut(one, length, keep) for one in value)
    return value


def _with_fewer_items(value: Any) -> Any | None:
    """The value whose largest list, or dict of more than one entry, is half as long."""
    if isinstance(value, BaseModel):
        sizes = {name: size_of(getattr(value, name)) for name in type(value).model_fields}
        for name in sorted(sizes, key=lambda name: -sizes[name]):
            fewer = _with_fewer_items(getattr(value, name))
            if fewer is not None:
                return value.model_copy(update={name: fewer})
        return None
    if type(value) is dict and len(value) > 1:
        return dict(list(value.items())[: len(value) // 2])
    if type(value) in (list, set, frozenset) and len(value) > 1:
        return type(value)(list(value)[: len(value) // 2])
    return None
