"""Checks of single values that several layers take, each with one wording."""

from collections.abc import Callable
from typing import Any


def check_whole(
    name: str, value: Any, *, least: int | None = None, unit: str = "", optional: bool = False
) -> None:
    """Raises unless the value is a whole number in range; a bool is none.

    Args:
        name: what the error calls the value.
        value: what was given.
        least: the smallest number allowed; None allows any.
        unit: what is counted, such as ``tokens``.
        optional: whether None is allowed.

    Raises:
        TypeError: it is no ``int``.
        ValueError: it is below ``least``.
    """
    if value is None and optional:
        return
    if type(value) is not int:
        allowed = f"a whole number{f' of {unit}' if unit else ''}{' or None' if optional else ''}"
        raise TypeError(f"{name} must be {allowed}, got {name}={value!r:.60}")
    if least is not None and value < least:
        raise ValueError(f"{name} must be at least {least}, got {name}={value}")


def check_number(
    name: str,
    value: Any,
    allowed: str,
    is_allowed: Callable[[float], bool],
    *,
    none: str | None = None,
) -> None:
    """Raises unless the value is a number in range; a bool is none.

    Args:
        name: what the error calls the value.
        value: what was given.
        allowed: what the error says that it must be.
        is_allowed: whether a number is.
        none: what the error says that None stands for; without it, None is refused.

    Raises:
        TypeError: it is no number.
        ValueError: it is not allowed.
    """
    if value is None and none is not None:
        return
    wanted = f"{name} must be {allowed}{f', or None for {none}' if none else ''}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{wanted}, got {name}={value!r:.60}")
    if not is_allowed(value):
        raise ValueError(f"{wanted}, got {name}={value}")


def check_flag(name: str, value: Any) -> bool:
    """Returns the value.

    Raises:
        TypeError: it is neither True nor False.
    """
    if type(value) is not bool:
        raise TypeError(f"{name} must be True or False, got {name}={value!r:.60}")
    return value


def broken_character(text: str) -> str | None:
    """What an error says of a text that is cut inside a character; None where it is whole.

    Such a text holds half of a surrogate pair, which no encoding has.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return (
            f"holds \\u{ord(text[error.start]):04x}, half of a surrogate pair: it was cut inside a "
            "character, so take that half out"
        )
    return None


def first_problem(error: Any) -> str:
    """Where and what the first problem of a ``ValidationError`` of pydantic or FastAPI is.

    It is short, whatever the keys of a value are.
    """
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"]))
    return f"{place:.200}: {first['msg']:.400}"
