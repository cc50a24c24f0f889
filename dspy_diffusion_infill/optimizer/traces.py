"""From examples and traced runs to what each predictor was given and should have answered."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import dspy

from dspy_diffusion_infill.contexts import Slot, WorkedExample
from dspy_diffusion_infill.outcomes import Evaluation, Trace
from dspy_diffusion_infill.programs import all_predictors, signature_of

logger = logging.getLogger(__name__)

Worked = dict[str, tuple[WorkedExample, ...]]
PredictorCall = tuple[Mapping[str, Any], Mapping[str, Any]]  # inputs and outputs of a predictor


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
    names_of = traced_names or {}
    good = {number: last_calls(trace, names_of) for number, trace in _good_runs(traced).items()}
    worked = {}
    for name, predictor in program.named_predictors():
        if name not in names:
            continue
        calls = [good.get(number, {}).get(name) for number in range(len(examples))]
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


def last_calls(trace: Trace, names: Mapping[int, str]) -> dict[str, PredictorCall]:
    """The last call of each predictor in a run.

    Args:
        trace: of the run.
        names: as ``names_in_traces`` gives them for the program that ran.
    """
    calls: dict[str, PredictorCall] = {}
    for predictor, inputs, prediction in trace:
        name = names.get(id(predictor)) or names.get(id(predictor.signature))
        if name is not None:
            calls[name] = inputs, dict(prediction)
    return calls


def make_slots(program: dspy.Module, worked: Worked) -> dict[str, Slot]:
    """The slot of each predictor that has worked examples, even if there are none of them."""
    adapter = dspy.settings.adapter or dspy.ChatAdapter()
    slots = {}
    for name, predictor in program.named_predictors():
        if name in worked:
            demos = tuple(dict(demo) for demo in predictor.demos)
            slots[name] = Slot(name, signature_of(predictor), adapter, worked[name], demos)
    return slots


def worked_example(
    signature: type[dspy.Signature],
    example: dspy.Example,
    call: PredictorCall | None = None,
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


def _labelled(signature: type[dspy.Signature], example: dspy.Example) -> WorkedExample | None:
    """The worked example that the labels alone give; None where a field is missing."""
    if not all(name in example for name in signature.fields):
        return None
    inputs = {name: example[name] for name in signature.input_fields}
    return WorkedExample(inputs, {name: example[name] for name in signature.output_fields})


def _good_runs(traced: Evaluation | None) -> dict[int, Trace]:
    """Of the runs that did not raise, those that scored at least the average of them."""
    if traced is None:
        return {}
    ran = {number: trace for number, trace in enumerate(traced.traces) if trace is not None}
    scores = [traced.scores[number] for number in ran]
    if not ran:
        return {}
    if min(scores) == max(scores) <= 0:
        logger.warning(
            "no traced run scored above another, or above zero: responses of steps without labels "
            "may come from poor runs"
        )
    average = sum(scores) / len(ran)
    return {n: trace for n, trace in ran.items() if traced.scores[n] >= average - 1e-9}
