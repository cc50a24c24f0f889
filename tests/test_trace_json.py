"""Traces in the journal: typed values come back, and what cannot is not written."""

import enum
from typing import Literal

import dspy
import pydantic
import pytest

from dspy_diffusion_infill.optimizer.trace_json import TraceJson

ROWS = [dspy.Example(text=f"row {k}", label="a", number=k).with_inputs("text") for k in range(3)]


class Place(pydantic.BaseModel):
    city: str
    rooms: float = 1.0


class Kind(enum.Enum):
    A = "a"


def program_with(annotation) -> dspy.Predict:
    signature = dspy.Signature({"text": (str, dspy.InputField())}, "Find it.")
    return dspy.Predict(signature.append("facts", dspy.OutputField(), annotation))


VALUES = [
    (dict[str, str], {"city": "x"}),
    (dict[str, list[int]], {"city": [1, 2]}),
    (list[Place], [Place(city="x", rooms=2)]),
    (Place, Place(city="x")),
    (Kind, Kind.A),
    (Literal[1, "a"], 1),
    (float, 0.5),
    (bool, True),
    (Place | None, None),
    (tuple[int, str], (1, "a")),
]


def trace_of(predictor: dspy.Predict, text, facts):
    return ((predictor, {"text": text}, dspy.Prediction(facts=facts)),)


@pytest.mark.parametrize(("annotation", "value"), VALUES, ids=str)
def test_typed_values_come_back_from_the_journal_as_what_they_were(annotation, value):
    program = program_with(annotation)
    traces = TraceJson(program, program, ["self"], ROWS)
    written = traces.written(trace_of(program, "row 1", value))
    assert written is not None
    assert traces.read(written) == ((program, {"text": "row 1"}, {"facts": value}),)
    assert "row 1" not in str(written), "what stands in a row is only pointed to"


def test_a_value_that_no_json_holds_is_not_journaled():
    class Handle:
        pass

    program = program_with(str)
    traces = TraceJson(program, program, ["self"], ROWS)
    assert traces.written(trace_of(program, Handle(), "x")) is None


def test_the_last_call_of_a_teachers_predictor_stands_for_it():
    student, teacher = program_with(str), program_with(str)
    traces = TraceJson(student, teacher, ["self"], ROWS)
    twice = trace_of(teacher, "row 1", "first") + trace_of(teacher, "row 2", "last")
    ((predictor, inputs, outputs),) = traces.read(traces.written(twice))
    assert predictor is teacher and (inputs, outputs) == ({"text": "row 2"}, {"facts": "last"})


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {"other": [{}, {}]},
        {"self": [{"text": {"row": 9}}, {}]},
        {"self": [{"text": {}}, {}]},
        {"self": [{"other": {"value": 1}}, {}]},
        {"self": [{}, {"facts": {"value": 3}}]},
    ],
    ids=str,
)
def test_a_trace_of_something_else_is_refused(value):
    program = program_with(str)
    with pytest.raises((LookupError, ValueError)):
        TraceJson(program, program, ["self"], ROWS).read(value)
