"""Strict settings in YAML: pydantic dataclasses, and errors that name their place in the file."""

import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

T = TypeVar("T")

STRICT = ConfigDict(extra="forbid")
"""Configuration of every dataclass of settings: a key that it does not know is an error."""


def _number(value: Any) -> Any:
    wrong = PydanticCustomError("number", "must be a number, got {got}", {"got": _short(value)})
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise wrong
    try:
        number = float(value)  # YAML 1.1 reads 1e-5, without a point, as text
    except (ValueError, OverflowError):
        raise wrong from None
    if not math.isfinite(number):
        raise PydanticCustomError("number", "must be a finite number, got {got}", {"got": number})
    return number


Int = Annotated[int, Field(strict=True)]
"""A whole number; True and 1.0 are none."""
Float = Annotated[float, BeforeValidator(_number)]
"""A finite number."""
Bool = Annotated[bool, Field(strict=True)]


def validated(kind: type[T], content: Any, where: str) -> T:
    """The content of a file, or of a part of it, as a ``kind``.

    Raises:
        ValueError: an unknown, missing or wrong entry; the message begins with ``where`` and the
            keys that lead to it.
    """
    try:
        return TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        found = error.errors(include_url=False)
        unknown = [one for one in found if one["type"] == "unexpected_keyword_argument"]
        raise ValueError(_described(kind, (unknown or found)[0], where)) from None


def plain(settings: Any) -> Any:
    """Settings as plain data again: what ``validated`` makes the same settings of."""
    return TypeAdapter(type(settings)).dump_python(settings, mode="json")


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """``below`` with ``above`` laid over it: mappings key by key, all else as a whole."""
    both = dict(below)
    for key, value in above.items():
        is_nested = isinstance(value, Mapping) and isinstance(both.get(key), Mapping)
        both[key] = merged(both[key], value) if is_nested else value
    return both


def _described(kind: type, error: ErrorDetails, where: str) -> str:
    """One line: the place, what it must be, and what it is."""
    path, owner = _place(kind, error["loc"])
    found, context, got = error["type"], error.get("ctx", {}), error["input"]
    short = [key[:80] for key in path]
    parent, place = ".".join([where, *short[:-1]]), ".".join([where, *short])
    if found == "unexpected_keyword_argument":
        return f"{parent} has no key {_short(path[-1])}{_hint(path[-1], owner)}"
    if found == "missing":
        is_item = path[-1].isdigit()
        return f"{parent} must have more items" if is_item else f"{parent} needs {path[-1]}"
    if found == "value_error":
        return f"{place}: {context['error']}"
    if found == "number":
        return f"{place} {error['msg']}"
    if found == "literal_error":
        choices = context["expected"].replace("'", "").replace(" or ", ", ")
        return f"{place} must be one of {choices}; got {_short(got)}"
    kinds = {
        "dataclass_type": "must be a mapping",
        "tuple_type": "must be a list",
        "int_type": "must be of type int",
        "bool_type": "must be of type bool",
        "string_type": "must be of type str",
    }
    wanted = kinds.get(found) or error["msg"].replace("Input should be", "must be")
    return f"{place} {wanted}, got {_short(got)}"


def _place(kind: Any, path: Sequence[int | str]) -> tuple[list[str], Any]:
    """The keys that lead to an error, and the dataclass that the last one is of.

    Of a field with several types pydantic names the type too: that is no key.
    """
    keys: list[str] = []
    owner = kind
    for number, part in enumerate(path):
        is_last = number == len(path) - 1
        if isinstance(part, str) and owner is not None:
            hints = get_type_hints(owner, include_extras=False)
            if part in hints:
                keys.append(part)
                owner = owner if is_last else _dataclass_in(hints[part])
                continue
            if is_last:
                keys.append(part)
        elif isinstance(part, int):
            keys.append(str(part))
    return keys, owner


def _dataclass_in(hint: Any) -> Any:
    """``Stage`` of ``tuple[Stage, ...]``; None where there is none."""
    if is_dataclass(hint):
        return hint
    return next((one for part in get_args(hint) if (one := _dataclass_in(part))), None)


def _hint(key: str, owner: Any) -> str:
    names = [field.name for field in fields(owner)] if owner is not None else []
    close = get_close_matches(key, names, n=1)
    return f": did you mean {close[0]!r}?" if close else f"; it has {', '.join(names)}"


def _short(value: Any) -> str:
    """The value as code, of which long or deep parts are left out."""
    writer = reprlib.Repr()
    writer.maxstring = writer.maxother = writer.maxlong = 80
    return writer.repr(value)[:80]
