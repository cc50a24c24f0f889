"""From examples and traced runs to what each predictor was given and should have answered."""

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import dspy

from dspy_diffusion_infill.contexts import Slot, WorkedExample
from dspy_diffusion_infill.optimizer.validation import Evaluation
from dspy_diffusion_infill.programs import signature_of

logger = logging.getLogger(__name__)

Worked = dict[str, tuple[WorkedExample, ...]]


def needs_traces(
    program: dspy.Module, names: Sequence[str], examples: Sequence[dspy.Example]
) -> bool:
    """Whether the program must be run for inputs or outputs that the examples do not label."""
    for name, predictor in program.named_predictors():
        if name in names and any(_labelled(predictor, example) is None for example in examples):
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
        traced_names: predictor names by the ``id`` of the predictor objects in the traces.
    """
    good, worked = _good_runs(traced), {}
    for name, predictor in program.named_predictors():
        if name not in names:
            continue
        calls = [
            _call_of(name, traced, traced_names or {}, number) if number in good else None
            for number in range(len(examples))
        ]
        found = [_worked_example(predictor, *pair) for pair in zip(examples, calls, strict=True)]
        worked[name] = tuple(example for example in found if example is not None)
    return worked


def make_slots(program: dspy.Module, worked: Worked) -> dict[str, Slot]:
    """The slot of each predictor that has worked examples, even if there are none of them."""
    adapter = dspy.settings.adapter or dspy.ChatAdapter()
    slots = {}
    for name, predictor in program.named_predictors():
        if name in worked:
            demos = tuple(dict(demo) for demo in predictor.demos)
            slots[name] = Slot(name, signature_of(predictor), adapter, worked[name], demos)
    return slots


def worked_to_json(worked: Worked, rows: Sequence[dspy.Example]) -> dict[str, Any] | None:
    """For the journal: what stands in a row of the trainset is only pointed to.

    None where a value is not what JSON keeps as it is.
    """

    def written(values: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: {"row": row} if (row := _row_of(name, value, rows)) is not None else value
            for name, value in values.items()
        }

    try:
        plain = {
            name: [[written(one.inputs), written(one.outputs)] for one in examples]
            for name, examples in worked.items()
        }
        return plain if json.loads(json.dumps(plain)) == plain else None
    except (TypeError, ValueError):
        return None


def worked_from_json(value: Mapping[str, Any], rows: Sequence[dspy.Example]) -> Worked:
    """What ``worked_to_json`` wrote."""

    def read(values: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: rows[value["row"]][name] if isinstance(value, dict) else value
            for name, value in values.items()
        }

    return {
        name: tuple(WorkedExample(read(inputs), read(outputs)) for inputs, outputs in examples)
        for name, examples in value.items()
    }


def _row_of(name: str, value: Any, rows: Sequence[dspy.Example]) -> int | None:
    """The first row whose field of this name has this value; a dict cannot be told from a pointer.

    Raises:
        TypeError: the value is a dict that no row has.
    """
    for number, row in enumerate(rows):
        if name in row and row[name] == value:
            return number
    if isinstance(value, dict):
        raise TypeError(f"the value of {name!r} is a dict")
    return None


def _labelled(predictor: dspy.Predict, example: dspy.Example) -> WorkedExample | None:
    """The worked example that the labels alone give; None where a field is missing."""
    signature = signature_of(predictor)
    if not all(name in example for name in signature.fields):
        return None
    inputs = {name: example[name] for name in signature.input_fields}
    return WorkedExample(inputs, {name: example[name] for name in signature.output_fields})


def _worked_example(
    predictor: dspy.Predict,
    example: dspy.Example,
    call: tuple[Mapping[str, Any], Mapping[str, Any]] | None,
) -> WorkedExample | None:
    """Labels win over traced outputs; without a trace, labels of some outputs must do."""
    if (complete := _labelled(predictor, example)) is not None:
        return complete
    signature = signature_of(predictor)
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


def _good_runs(traced: Evaluation | None) -> set[int]:
    """Of the runs that did not raise, those that scored at least the average of them.

    All of them where that average is not above zero.
    """
    if traced is None:
        return set()
    ran = [number for number, trace in enumerate(traced.traces) if trace]
    if not ran:
        return set()
    average = sum(traced.scores[number] for number in ran) / len(ran)
    best = {n for n in ran if traced.scores[n] >= average and traced.scores[n] > 0}
    if not best:
        logger.warning(
            "no traced run scored above zero: responses of steps without labels come from poor runs"
        )
    return best or set(ran)


def _call_of(
    name: str, traced: Evaluation | None, names: Mapping[int, str], number: int
) -> tuple[Mapping[str, Any], Mapping[str, Any]] | None:
    """The last call of a predictor in a run: its inputs and outputs."""
    trace = traced.traces[number] if traced else None
    for predictor, inputs, prediction in reversed(trace or ()):
        if names.get(id(predictor)) == name:
            return inputs, dict(prediction)
    return None
