"""One check over all rows, before any call, that names row and field."""

import difflib
import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from types import UnionType
from typing import Any, Union, get_args, get_origin

import dspy

from dspy_diffusion_infill.programs import output_fields
from dspy_diffusion_infill.value_checks import broken_character


def check_rows(rows: Sequence[dspy.Example], program: dspy.Module, *, name: str) -> None:
    """Raises unless every row can be run and scored.

    Args:
        rows: examples with their inputs set.
        program: takes these inputs.
        name: ``trainset`` or ``valset``.

    Raises:
        ValueError: a row names no input, or none that the program takes; it lacks a value for a
            label; or a text holds half of a surrogate pair.
    """
    required, taken = _inputs_of(program)
    may_be_none = {
        name: _takes_none(field.annotation) for name, field in output_fields(program).items()
    }
    for number, row in enumerate(rows):
        place = f"{name}[{number}]"
        _check_inputs(row, place, required, taken)
        for field, value in row.items():
            _check_text(value, f"{place}[{field!r}]")
            is_allowed = value is None and may_be_none.get(field, True)
            if field in may_be_none and _is_missing(value) and not is_allowed:
                raise ValueError(
                    f"{place}[{field!r}] is {value!r}, and {field!r} is an output that is compared "
                    "with it: label the row or leave it out"
                )


def place_of(row: dspy.Example, rows: Sequence[dspy.Example]) -> int | None:
    """The number of the first of the rows that equals this one; None where none does.

    Rows whose values cannot be compared, as arrays cannot, are different ones.
    """
    return next((number for number, other in enumerate(rows) if is_same_row(row, other)), None)


def is_same_row(one: dspy.Example, other: dspy.Example) -> bool:
    """Whether two rows are equal; False where their values cannot be compared."""
    try:
        return one is other or bool(one == other)
    except Exception:  # of whatever a value's own ``==`` raises
        return False


def _check_inputs(
    row: dspy.Example, place: str, required: set[str], taken: set[str] | None
) -> None:
    given = set(row.inputs().keys())
    if unknown := sorted(set(row._input_keys or ()) - set(row.keys())):
        hint = _hint(unknown[0], row.keys())
        raise ValueError(f"{place} has no field {unknown[0]!r}, which with_inputs names{hint}")
    if not given:
        raise ValueError(f"{place} names no input: call example.with_inputs with its input fields")
    if missing := sorted(required - given):
        hint = _hint(missing[0], given)
        raise ValueError(
            f"{place} has no input {missing[0]!r}, which the program takes; its inputs are "
            f"{sorted(given)}{hint}"
        )
    if taken is not None and (wrong := sorted(given - taken)):
        hint = _hint(wrong[0], taken)
        raise ValueError(
            f"{place} has the input {wrong[0]!r}, which the program does not take; it takes "
            f"{sorted(taken)}{hint}"
        )


def _check_text(value: Any, place: str) -> None:
    for text in _texts(value):
        if broken := broken_character(text):
            raise ValueError(f"{place} {broken}")


def _texts(value: Any) -> Iterator[str]:
    """Every text in a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _texts(key)
            yield from _texts(inner)
    elif isinstance(value, list | tuple | set | frozenset):
        for inner in value:
            yield from _texts(inner)
    elif callable(getattr(value, "model_dump", None)):
        yield from _texts(dict(value))


def _is_missing(value: Any) -> bool:
    """None, NaN, or what pandas takes for them."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, float) and math.isnan(value)


def _takes_none(annotation: Any) -> bool:
    if annotation in (Any, None, type(None)):
        return True
    is_union = get_origin(annotation) in (Union, UnionType)
    return is_union and type(None) in get_args(annotation)


def _inputs_of(program: dspy.Module) -> tuple[set[str], set[str] | None]:
    """(inputs that the program must get, inputs that it can take; None for any)."""
    forward = inspect.getattr_static(program, "forward", None)
    try:
        parameters = list(inspect.signature(forward).parameters.values())  # pyright: ignore
    except (TypeError, ValueError):
        return set(), None
    if inspect.isfunction(forward):  # the first one is the program itself, whatever its name is
        parameters = parameters[1:]
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    takes = [p for p in parameters if p.kind in named]
    required = {p.name for p in takes if p.default is inspect.Parameter.empty}
    if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return required, {p.name for p in takes}
    predictor = program.predict if isinstance(program, dspy.ChainOfThought) else program
    signature = getattr(predictor, "signature", None)
    if isinstance(signature, type) and issubclass(signature, dspy.Signature):
        required |= {name for name, one in signature.input_fields.items() if one.is_required()}
    return required, None


def _hint(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, map(str, known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
