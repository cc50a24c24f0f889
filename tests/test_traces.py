"""What each predictor was given and should have answered: labels, traced runs, and the journal."""

import enum
from typing import Literal

import dspy
import pydantic
import pytest

from dspy_diffusion_infill.contexts import WorkedExample
from dspy_diffusion_infill.optimizer.traces import (
    work_examples,
    worked_from_json,
    worked_to_json,
)
from dspy_diffusion_infill.runs import Evaluation

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


@pytest.mark.parametrize(("annotation", "value"), VALUES, ids=str)
def test_typed_values_come_back_from_the_journal_as_what_they_were(annotation, value):
    program = program_with(annotation)
    worked = {"self": (WorkedExample({"text": "row 1"}, {"facts": value}),)}
    written = worked_to_json(worked, program, ROWS)
    assert written is not None
    assert worked_from_json(written, program, ROWS) == worked
    assert "row 1" not in str(written), "what stands in a row is only pointed to"


def test_a_value_that_no_json_holds_is_not_journaled():
    class Handle:
        pass

    worked = {"self": (WorkedExample({"text": Handle()}, {"facts": "x"}),)}
    assert worked_to_json(worked, program_with(str), ROWS) is None


def traced(scores):
    predictor = dspy.Predict("text -> facts")
    traces = tuple(
        ((predictor, {"text": f"row {k}"}, dspy.Prediction(facts=str(k))),) for k in range(3)
    )
    return predictor, Evaluation(tuple(scores), traces)


@pytest.mark.parametrize(
    ("scores", "chosen"),
    [
        ((1.0, 0.0, 0.0), ["0"]),
        ((0.0, 0.0, 0.0), ["0", "1", "2"]),
        ((-3.0, 0.0, -1.0), ["1", "2"]),  # a metric whose best score is 0
        ((-3.0, -1.0, -9.0), ["0", "1"]),
        ((0.5, 0.5, 0.5), ["0", "1", "2"]),
    ],
)
def test_responses_come_from_the_runs_that_scored_at_least_the_average(scores, chosen):
    predictor, evaluation = traced(scores)
    names = {id(predictor): "self"}
    worked = work_examples(predictor, ["self"], ROWS, evaluation, names)["self"]
    assert [one.outputs["facts"] for one in worked] == chosen
