"""GEPA's records as worked examples: fields, labels, weights, and answers that stand for labels."""

import dspy
import pytest

from dspy_diffusion_infill.optimizer.reflection import reflected_examples, signature_of_records

ROWS = [
    dspy.Example(text=f"row {k}", label="ab"[k % 2], rooms=k).with_inputs("text") for k in range(4)
]


def record(inputs, outputs, feedback="Be right."):
    return {"Inputs": inputs, "Generated Outputs": outputs, "Feedback": feedback}


def score(value) -> str:
    return f"This trajectory got a score of {value}."


def weights(records) -> list[tuple[int, float]]:
    signature = dspy.Signature("text -> label")
    found = reflected_examples(signature, ROWS, records)
    return [(int(example.inputs["text"][-1]), weight) for example, weight in found]


def test_fields_and_types_are_those_of_the_records_and_rows():
    found = signature_of_records([record({"text": "x"}, {"note": "n", "rooms": "3"})], ROWS, "Do.")
    assert list(found.input_fields) == ["text"]
    types = {name: field.annotation for name, field in found.output_fields.items()}
    assert types == {"note": str, "rooms": int}
    assert found.instructions == "Do."


def test_what_no_record_tells_is_as_in_the_first_row():
    unread = record("row 1", "Couldn't parse the output")
    for records in ([], [unread]):
        found = signature_of_records(records, ROWS, "Do.")
        assert list(found.input_fields) == ["text"]
        assert list(found.output_fields) == ["label", "rooms"]


def test_the_history_that_gepa_renames_is_no_field_of_the_program():
    found = signature_of_records([record({"Context": "…", "text": "x"}, {"label": "a"})], ROWS, "")
    assert list(found.fields) == ["text", "label"]


@pytest.mark.parametrize(
    ("outputs", "feedback", "weight"),
    [
        ({"label": "b"}, "Well done.", 0.25),
        ({"label": "a"}, "Look again.", 1.25),
        ({"reasoning": "so"}, "Look again.", 0.75),
        ("Couldn't parse the output", "Your output failed to parse.", 1.25),
        ({"label": "a"}, score(1.0), 0.25),
        ({"label": "b"}, score(0), 1.25),
        ({"label": "b"}, score(0.5), 0.75),
        ({"label": "b"}, score(True), 0.25),
        ({"label": "b"}, score(-3), 1.25),
    ],
)
def test_a_row_weighs_by_its_score_or_else_by_its_label(outputs, feedback, weight):
    found = dict(weights([record({"text": "row 1"}, outputs, feedback)]))
    assert found == {0: 0.75, 1: weight, 2: 0.75, 3: 0.75}


def test_the_rows_that_went_wrong_come_first():
    records = [record({"text": f"row {k}"}, {"label": "a"}) for k in (0, 3)]
    assert [row for row, _ in weights(records)] == [3, 1, 2, 0]


def test_answers_that_scored_well_stand_for_labels_that_rows_lack():
    signature = dspy.Signature("clue -> note")
    records = [
        record({"clue": "c1"}, {"note": "good"}, score(1.0)),
        record({"clue": "c2"}, {"note": "bad"}, score(0.0)),
        record({"clue": "c3"}, "Couldn't parse the output"),
    ]
    found = reflected_examples(signature, ROWS, records)
    assert [(e.inputs, e.outputs, w) for e, w in found] == [({"clue": "c1"}, {"note": "good"}, 1.0)]
    assert reflected_examples(signature, ROWS, []) == []
