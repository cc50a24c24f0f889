"""What contrast sets the gold responses against: the wrong answers that the program gave."""

from collections.abc import Mapping
from dataclasses import replace

from dspy_diffusion_infill.contexts import Slot, WorkedExample, render_messages
from dspy_diffusion_infill.optimizer.guidance import WrongAnswers
from dspy_diffusion_infill.optimizer.racing import is_right
from dspy_diffusion_infill.optimizer.traces import PredictorCall, last_calls
from dspy_diffusion_infill.outcomes import Evaluation

MOST_WRONG = 3
"""Wrong answers to a row that are kept: the newest ones."""


def wrong_answers(
    slot: Slot,
    evaluation: Evaluation,
    names: Mapping[int, str],
    bounds: tuple[float, float],
    before: WrongAnswers,
) -> WrongAnswers:
    """Those known before, and what a predictor answered in the runs that scored wrong.

    Only an answer to the very prompt of the row's worked example counts: what a step answers to
    another step's mistake is not wrong by itself.

    Args:
        slot: of the predictor.
        evaluation: of the program on the rows that the slot's examples come from.
        names: as ``traces.names_in_traces`` gives them for that program.
        bounds: (lowest, highest) score; a run is wrong up to the middle.
        before: wrong answers of earlier programs.
    """
    found = dict(before)
    for example in slot.examples:
        if example.row is None or is_right(evaluation.scores[example.row], *bounds):
            continue
        call = last_calls(evaluation.traces[example.row] or (), names).get(slot.part.predictor)
        answer = None if call is None else _wrong(slot, example, call)
        if answer is not None:
            known = dict.fromkeys((*found.get(example.row, ()), answer))
            found[example.row] = tuple(known)[-MOST_WRONG:]
    return found


def _wrong(slot: Slot, example: WorkedExample, call: PredictorCall) -> str | None:
    """What was answered, rendered as the gold response is; None where it is equal to that."""
    inputs, outputs = call
    if not (example.inputs.keys() <= inputs.keys() and example.outputs.keys() <= outputs.keys()):
        return None
    given = replace(
        example,
        inputs={name: inputs[name] for name in example.inputs},
        outputs={name: outputs[name] for name in example.outputs},
    )
    text = slot.own_text
    *prompt, gold = render_messages(slot, text, [example])
    *asked, answer = render_messages(slot, text, [given])
    return answer["content"] if asked == prompt and answer != gold else None
