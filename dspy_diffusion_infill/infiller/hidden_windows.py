"""Windows of true instructions, hidden: what a denoiser is calibrated on."""

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import dspy

from dspy_diffusion_infill.contexts import Slot, WorkedExample
from dspy_diffusion_infill.denoisers.protocol import Denoiser, Sampling, ScoreRequest
from dspy_diffusion_infill.errors import DataError
from dspy_diffusion_infill.infiller.infiller import Infiller
from dspy_diffusion_infill.jsonl import objects_of
from dspy_diffusion_infill.template_adapter import TemplateAdapter
from dspy_diffusion_infill.windows import SlidingWindow

NUM_EXAMPLES = 16
BUNDLED_INSTRUCTIONS = (
    "Read what the customer has written about the product, the service or the place, think about "
    "how the customer feels, and then say whether the text is positive or negative."
)


def bundled_task() -> Slot:
    """The demo's rows, under longer instructions."""
    file = resources.files("dspy_diffusion_infill") / "data/demo/sentiment_train.jsonl"
    with resources.as_file(file) as path:
        rows = [(row["text"], row["label"]) for _, row in objects_of(path)]
    return _slot(BUNDLED_INSTRUCTIONS, rows)


def read_task(file: Path) -> Slot:
    """A task of instruction induction: its first human instructions, and its training rows.

    Raises:
        DataError: the file is not ``{human_instructions, train: [{input, outputs}]}``.
    """
    try:
        task: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        instructions = str(task["human_instructions"][0])
        rows = [(row["input"], row["outputs"][0]) for row in task["train"]]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise DataError(
            f"{file} must be {{human_instructions: [text], train: [{{input, outputs}}]}}: {error!r}"
        ) from error
    if not rows:
        raise DataError(f"{file}: train must have a row, got none")
    return _slot(instructions, rows)


def hidden_windows(
    denoiser: Denoiser, slots: Sequence[Slot], *, num_windows: int, seed: int
) -> list[ScoreRequest]:
    """Windows of the slots' instructions, masked in contexts that they share.

    Args:
        denoiser: cuts the windows.
        slots: instructions with worked examples.
        num_windows: of each slot, at most, evenly spread; >= 1.
        seed: decides the contexts.
    """
    infiller, requests = Infiller(denoiser, Sampling(cache="context")), list[ScoreRequest]()
    for slot in slots:
        text = slot.signature.instructions
        windows = SlidingWindow().windows(text, denoiser.encode(text).offsets, [])
        step = max(1, -(-len(windows) // num_windows))
        for number, window in enumerate(windows[::step]):
            hidden, truth = infiller.hide(text, window)
            rng = random.Random(f"{seed}/{number}")
            context = infiller.masked_context(slot, text, hidden, rng)
            requests.append(ScoreRequest(context.input_ids, truth, context.shared))
    return requests


def with_other_text(requests: Sequence[ScoreRequest], *, seed: int) -> list[ScoreRequest]:
    """The same windows, in contexts that hold the tokens of other windows in their place.

    So it is in a search: what is kept has seen the present text, and what is filled in is another
    one. Windows whose contexts are cut into other tokens are left out.

    Args:
        requests: of ``hidden_windows``, with different texts.
        seed: decides which other window.
    """
    rng, changed = random.Random(seed), list[ScoreRequest]()
    for request in requests:
        others = [one.targets for one in requests if one.targets and one.targets != request.targets]
        context, num = request.context, len(request.targets)
        if context is None or not others or len(context.input_ids) != len(request.input_ids):
            continue
        ids, other = list(context.input_ids), rng.choice(others)
        places = [k for k, own in enumerate(request.input_ids) if own != ids[k]]
        if len(places) == num:
            for number, place in enumerate(places):
                ids[place] = other[number % len(other)]
            changed.append(replace(request, context=replace(context, input_ids=tuple(ids))))
    return changed


def _slot(instructions: str, rows: Iterable[tuple[Any, Any]]) -> Slot:
    examples = [WorkedExample({"input": given}, {"output": gold}) for given, gold in rows]
    signature = dspy.make_signature("input -> output", instructions)
    return Slot("self", signature, TemplateAdapter(), tuple(examples[:NUM_EXAMPLES]))
