"""What GEPA tells a proposer: from its records to worked examples and their weights.

A record has ``Inputs``, ``Generated Outputs`` and ``Feedback`` of one call of a predictor, as text.
It holds no label: these come from the rows of the trainset.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import dspy
from dspy.signatures.signature import make_signature

from dspy_diffusion_infill.contexts import WorkedExample
from dspy_diffusion_infill.labels import label_texts
from dspy_diffusion_infill.optimizer.traces import draw_weight, worked_example

ReflectionRecord = Mapping[str, Any]
Weighted = tuple[WorkedExample, float]

_UNSEEN = 0.5  # the share of right answers of a row that no record is about

# What DSPy's GEPA writes where the metric says no more than a number.
_SCORE = re.compile(r"^This trajectory got a score of (True|False|[-+]?\d*\.?\d+)\.$")


def signature_of_records(
    records: Sequence[ReflectionRecord], rows: Sequence[dspy.Example], instructions: str
) -> type[dspy.Signature]:
    """A signature with the fields that the records name, where the program is not at hand.

    What they do not name is as in the first row; so are the types of its fields.
    """
    row = rows[0]
    inputs = next(filter(None, map(_inputs, records)), dict(row.inputs()))
    outputs = next(filter(None, map(_outputs, records)), dict(row.labels()))
    fields: dict[str, tuple[type, Any]] = {
        name: (_type_in(row, name), make())
        for names, make in ((inputs, dspy.InputField), (outputs, dspy.OutputField))
        for name in names
        if name != "Context" or name in row  # GEPA's own name for a conversation's history
    }
    return make_signature(fields, instructions)


def reflected_examples(
    signature: type[dspy.Signature],
    rows: Sequence[dspy.Example],
    records: Sequence[ReflectionRecord],
) -> list[Weighted]:
    """The worked examples of a predictor with the weight of each, the heaviest first.

    They are the trainset's rows; those weigh more that a record shows to have gone wrong. Where the
    rows have no label for the predictor, they are the records that scored at least the average.
    """
    scored = {}
    for record in records:
        if (number := _row_of(record, rows)) is not None:
            scored[number] = _share_right(record, rows[number])
    found = [
        (example, draw_weight(scored.get(number, _UNSEEN)))
        for number, row in enumerate(rows)
        if (example := worked_example(signature, row)) is not None
    ]
    return sorted(found or _good_records(signature, records), key=lambda pair: -pair[1])


def _good_records(
    signature: type[dspy.Signature], records: Sequence[ReflectionRecord]
) -> list[Weighted]:
    scores = [_score(record) for record in records]
    known = [score for score in scores if score is not None]
    average = sum(known) / len(known) if known else 0.0
    examples = [
        worked_example(signature, dspy.Example(), (_inputs(record), _outputs(record)))
        for record, score in zip(records, scores, strict=True)
        if _outputs(record) and (score is None or score >= average - 1e-9)
    ]
    return [(example, 1.0) for example in examples if example is not None]


def _row_of(record: ReflectionRecord, rows: Sequence[dspy.Example]) -> int | None:
    """The first row that has the inputs of the record."""
    inputs = {name: str(value) for name, value in _inputs(record).items()}
    for number, row in enumerate(rows):
        shared = [name for name in inputs if name in row]
        if shared and all(str(row[name]) == inputs[name] for name in shared):
            return number
    return None


def _share_right(record: ReflectionRecord, row: dspy.Example) -> float:
    """How right a record is, from 0 to 1: its score, else whether its outputs are the labels."""
    if (score := _score(record)) is not None:
        return min(1.0, max(0.0, score))
    outputs = _outputs(record)
    labelled = [name for name in outputs if name in row.labels()]
    if outputs and not labelled:
        return _UNSEEN
    is_right = all(str(outputs[n]) in (str(row[n]), *label_texts(row[n])) for n in labelled)
    return float(bool(outputs) and is_right)


def _score(record: ReflectionRecord) -> float | None:
    """The score that the feedback tells; None where the metric's own words stand there."""
    match = _SCORE.match(str(record.get("Feedback", "")))
    return None if match is None else float({"True": 1, "False": 0}.get(match[1], match[1]))


def _inputs(record: ReflectionRecord) -> Mapping[str, Any]:
    """The inputs by field; none where another adapter than DSPy's wrote them as one text."""
    inputs = record.get("Inputs")
    return inputs if isinstance(inputs, Mapping) else {}


def _outputs(record: ReflectionRecord) -> Mapping[str, Any]:
    """The outputs by field; none where the answer could not be read."""
    outputs = record.get("Generated Outputs")
    return outputs if isinstance(outputs, Mapping) else {}


def _type_in(row: dspy.Example, name: str) -> type:
    return type(row[name]) if name in row and row[name] is not None else str
