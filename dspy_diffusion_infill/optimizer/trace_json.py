"""What predictors did in a run, as plain data for the journal."""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, cast

import dspy
from pydantic import TypeAdapter
from pydantic.errors import PydanticUserError
from pydantic_core import to_jsonable_python

from dspy_diffusion_infill.optimizer.traces import last_calls, names_in_traces
from dspy_diffusion_infill.outcomes import Trace
from dspy_diffusion_infill.programs import all_predictors, signature_of

_CALLS = TypeAdapter(dict[str, tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]])


class TraceJson:
    """Writes and reads traces: the last call of each named predictor, by the student's fields.

    What stands in a row of the trainset is only pointed to. Other values are written as the type of
    their field says.
    """

    def __init__(
        self,
        student: dspy.Module,
        runner: dspy.Module,
        names: Sequence[str],
        rows: Sequence[dspy.Example],
    ) -> None:
        """For runs of ``runner``, the student or its teacher, over the rows of the trainset."""
        self._student, self._names, self._rows = student, names, rows
        self._predictors, self._names_of = all_predictors(runner), names_in_traces(runner)

    def written(self, trace: Trace) -> dict[str, Any] | None:
        """JSON; None where a value cannot be read back from it."""
        try:
            return {
                name: [self._plain(name, inputs), self._plain(name, outputs)]
                for name, (inputs, outputs) in last_calls(trace, self._names_of).items()
                if name in self._types
            }
        except (TypeError, ValueError, PydanticUserError):
            return None

    def read(self, value: Any) -> Trace:
        """What was written, as calls of the runner's predictors.

        Raises:
            LookupError: it is of other predictors, fields or rows.
            ValueError: it is none, or a value is not of its field's type.
        """
        return tuple(
            (self._predictors[name], self._values(name, inputs), self._values(name, outputs))
            for name, (inputs, outputs) in _CALLS.validate_python(value).items()
        )

    @cached_property
    def _types(self) -> dict[str, dict[str, TypeAdapter[Any]]]:
        """What reads and writes the values of each named predictor's fields."""
        return {
            name: {
                field: TypeAdapter(cast(Any, info.annotation))
                for field, info in signature_of(predictor).fields.items()
            }
            for name, predictor in self._student.named_predictors()
            if name in self._names
        }

    def _plain(self, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """Each field's value as ``{"row": number}`` or ``{"value": JSON}``.

        Raises:
            TypeError: a value is not what JSON gives back.
            ValueError: a value is not of its field's type.
        """
        written: dict[str, Any] = {}
        for field, kind in self._types[name].items():
            if field not in values:
                continue
            value = values[field]
            if (row := self._row_of(field, value)) is not None:
                written[field] = {"row": row}
                continue
            plain = json.loads(json.dumps(to_jsonable_python(value)))
            if kind.validate_python(plain) != value:
                raise TypeError(f"the value of {field!r} does not survive JSON")
            written[field] = {"value": plain}
        return written

    def _values(self, name: str, written: Mapping[str, Any]) -> dict[str, Any]:
        types = self._types[name]
        return {
            field: self._rows[one["row"]][field]
            if "row" in one
            else types[field].validate_python(one["value"])
            for field, one in written.items()
        }

    def _row_of(self, field: str, value: Any) -> int | None:
        """The first row whose field of this name has this value, and this type."""
        for number, row in enumerate(self._rows):
            if field in row and type(row[field]) is type(value) and _equal(row[field], value):
                return number
        return None


def _equal(one: Any, other: Any) -> bool:
    """Whether two values are equal; arrays, whose comparison is an array, are where all is."""
    same = one == other
    return bool(same.all()) if hasattr(same, "all") else bool(same)
