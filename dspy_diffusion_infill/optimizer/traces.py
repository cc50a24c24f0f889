"""From examples and traced runs to what each predictor was given and should have answered."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import dspy
from pydantic import TypeAdapter
from pydantic.errors import PydanticUserError
from pydantic_core import to_jsonable_python

from dspy_diffusion_infill.contexts import Slot, WorkedExample
from dspy_diffusion_infill.programs import all_predictors, signature_of
from dspy_diffusion_infill.runs import Evaluation

logger = logging.getLogger(__name__)

Worked = dict[str, tuple[WorkedExample, ...]]


def needs_traces(
    program: dspy.Module, names: Sequence[str], examples: Sequence[dspy.Example]
) -> bool:
    """Whether the program must be run for inputs or outputs that the examples do not label."""
    for name, predictor in program.named_predictors():
        signature = signature_of(predictor)
        if name in names and any(_labelled(signature, example) is None for example in examples):
            return True
    return False


def work_examples(
    program: dspy.Module,
    names: Sequence[str],
    examples: Sequence[dspy.Example],
    traced: Evaluation | None = None,
    traced_names: Mapping[int, str] | None = None,
) -> Worked:
    """The worked examples of each named predictor: labels, and what traced runs add to them.

    Args:
        program: the student.
        names: predictors to optimise.
        examples: the trainset.
        traced: scores and traces of runs over the same examples; None where none were needed.
        traced_names: as ``names_in_traces`` gives them for the program that ran.
    """
    good, worked = _good_runs(traced), {}
    for name, predictor in program.named_predictors():
        if name not in names:
            continue
        calls = [
            _call_of(name, traced, traced_names or {}, number) if number in good else None
            for number in range(len(examples))
        ]
        signature = signature_of(predictor)
        found = [worked_example(signature, *pair) for pair in zip(examples, calls, strict=True)]
        worked[name] = tuple(
            replace(one, row=number) for number, one in enumerate(found) if one is not None
        )
    return worked


def draw_weight(share_right: float) -> float:
    """How likely an example is drawn into a context, by how often its row was right, 0 to 1.

    A row that is always wrong is drawn five times as often as one that is always right.
    """
    return 1.25 - share_right


def names_in_traces(program: dspy.Module) -> dict[int, str]:
    """Predictor names by the ``id`` of the predictor, and of its signature where it alone has it.

    ``dspy.Refine`` and ``dspy.BestOfN`` run copies of their predictors, which have its signature.
    """
    predictors = all_predictors(program)
    names = {id(predictor): name for name, predictor in predictors.items()}
    signatures = [id(predictor.signature) for predictor in predictors.values()]
    for name, signature in zip(predictors, signatures, strict=True):
        if signatures.count(signature) == 1:
            names[signature] = name
    return names


def make_slots(program: dspy.Module, worked: Worked) -> dict[str, Slot]:
    """The slot of each predictor that has worked examples, even if there are none of them."""
    adapter = dspy.settings.adapter or dspy.ChatAdapter()
    slots = {}
    for name, predictor in program.named_predictors():
        if name in worked:
            demos = tuple(dict(demo) for demo in predictor.demos)
            slots[name] = Slot(name, signature_of(predictor), adapter, worked[name], demos)
    return slots


_WORKED = TypeAdapter(
    dict[str, list[tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]], int | None]]]
)


def worked_to_json(
    worked: Worked, program: dspy.Module, rows: Sequence[dspy.Example]
) -> dict[str, Any] | None:
    """For the journal: what stands in a row of the trainset is only pointed to.

    Other values are written as the type of their field says. None where one cannot be read back.
    """
    try:
        types = _field_types(program)
        return {
            name: [
                [
                    _written(one.inputs, types[name], rows),
                    _written(one.outputs, types[name], rows),
                    one.row,
                ]
                for one in examples
            ]
            for name, examples in worked.items()
        }
    except (TypeError, ValueError, PydanticUserError):
        return None


def worked_from_json(value: Any, program: dspy.Module, rows: Sequence[dspy.Example]) -> Worked:
    """What ``worked_to_json`` wrote.

    Raises:
        LookupError: it is of other predictors, fields or rows.
        ValueError: it is none, or a value is not of its field's type.
    """
    value, types = _WORKED.validate_python(value), _field_types(program)
    return {
        name: tuple(
            WorkedExample(_read(inputs, types[name], rows), _read(outputs, types[name], rows), row)
            for inputs, outputs, row in examples
        )
        for name, examples in value.items()
    }


def worked_example(
    signature: type[dspy.Signature],
    example: dspy.Example,
    call: tuple[Mapping[str, Any], Mapping[str, Any]] | None = None,
) -> WorkedExample | None:
    """Labels win over traced outputs; without a trace, labels of some outputs must do.

    Args:
        signature: of the predictor.
        example: a row of the trainset.
        call: inputs and outputs of the predictor in a good run over the row.
    """
    if (complete := _labelled(signature, example)) is not None:
        return complete
    labels = {name: example[name] for name in signature.output_fields if name in example}
    if call is not None:
        inputs, outputs = call
        traced = {name: outputs[name] for name in signature.output_fields if name in outputs}
        return WorkedExample(
            {n: inputs[n] for n in signature.input_fields if n in inputs}, {**traced, **labels}
        )
    if labels and all(name in example for name in signature.input_fields):
        return WorkedExample({name: example[name] for name in signature.input_fields}, labels)
    return None


def _field_types(program: dspy.Module) -> dict[str, dict[str, TypeAdapter[Any]]]:
    """What reads and writes the values of each predictor's fields."""
    return {
        name: {
            field: TypeAdapter(cast(Any, info.annotation))
            for field, info in signature_of(predictor).fields.items()
        }
        for name, predictor in program.named_predictors()
    }


def _written(
    values: Mapping[str, Any], types: Mapping[str, TypeAdapter[Any]], rows: Sequence[dspy.Example]
) -> dict[str, Any]:
    """Each value as ``{"row": number}`` or ``{"value": JSON}``.

    Raises:
        TypeError: a value is not what JSON gives back.
        ValueError: a value is not of its field's type.
    """
    written: dict[str, Any] = {}
    for name, value in values.items():
        if (row := _row_of(name, value, rows)) is not None:
            written[name] = {"row": row}
            continue
        plain = json.loads(json.dumps(to_jsonable_python(value)))
        if types[name].validate_python(plain) != value:
            raise TypeError(f"the value of {name!r} does not survive JSON")
        written[name] = {"value": plain}
    return written


def _read(
    written: Mapping[str, Any], types: Mapping[str, TypeAdapter[Any]], rows: Sequence[dspy.Example]
) -> dict[str, Any]:
    return {
        name: rows[one["row"]][name] if "row" in one else types[name].validate_python(one["value"])
        for name, one in written.items()
    }


def _row_of(name: str, value: Any, rows: Sequence[dspy.Example]) -> int | None:
    """The first row whose field of this name has this value, and this type."""
    for number, row in enumerate(rows):
        if name in row and type(row[name]) is type(value) and _equal(row[name], value):
            return number
    return None


def _equal(one: Any, other: Any) -> bool:
    """Whether two values are equal; arrays, whose comparison is an array, are where all is."""
    same = one == other
    return bool(same.all()) if hasattr(same, "all") else bool(same)


def _labelled(signature: type[dspy.Signature], example: dspy.Example) -> WorkedExample | None:
    """The worked example that the labels alone give; None where a field is missing."""
    if not all(name in example for name in signature.fields):
        return None
    inputs = {name: example[name] for name in signature.input_fields}
    return WorkedExample(inputs, {name: example[name] for name in signature.output_fields})


def _good_runs(traced: Evaluation | None) -> set[int]:
    """Of the runs that did not raise, those that scored at least the average of them."""
    if traced is None:
        return set()
    ran = [number for number, trace in enumerate(traced.traces) if trace]
    scores = [traced.scores[number] for number in ran]
    if not ran:
        return set()
    if min(scores) == max(scores) <= 0:
        logger.warning(
            "no traced run scored above another, or above zero: responses of steps without labels "
            "may come from poor runs"
        )
    average = sum(scores) / len(ran)
    return {number for number in ran if traced.scores[number] >= average - 1e-9}


def _call_of(
    name: str, traced: Evaluation | None, names: Mapping[int, str], number: int
) -> tuple[Mapping[str, Any], Mapping[str, Any]] | None:
    """The last call of a predictor in a run: its inputs and outputs."""
    trace = traced.traces[number] if traced else None
    for predictor, inputs, prediction in reversed(trace or ()):
        if (names.get(id(predictor)) or names.get(id(predictor.signature))) == name:
            return inputs, dict(prediction)
    return None
