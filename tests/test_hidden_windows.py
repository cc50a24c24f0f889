import json

import dspy
import pytest
from doubles import WordDenoiser

from dspy_diffusion_infill.contexts import Slot, WorkedExample
from dspy_diffusion_infill.errors import DataError
from dspy_diffusion_infill.infiller.hidden_windows import (
    bundled_task,
    hidden_windows,
    read_task,
    with_other_text,
)
from dspy_diffusion_infill.template_adapter import TemplateAdapter

TASK = {"human_instructions": ["Name the day."], "train": [{"input": "1", "outputs": ["Mo"]}] * 3}


def slot(instructions: str) -> Slot:
    signature = dspy.Signature("input -> output", instructions)
    examples = tuple(WorkedExample({"input": "1"}, {"output": day}) for day in ("Mo", "Tu"))
    return Slot("self", signature, TemplateAdapter(), examples)  # type: ignore[arg-type]


def test_windows_hide_their_own_tokens_in_a_context_that_is_shared():
    denoiser, text = WordDenoiser(), " ".join(f"w{number}" for number in range(30))
    requests = hidden_windows(denoiser, [slot(text)] * 2, num_windows=3, seed=0)
    assert len(requests) == 2 * 3
    for request in requests:
        assert request.context is not None
        assert list(request.input_ids).count(denoiser.mask_id) == len(request.targets) == 8
        targets = iter(request.targets)
        whole = [next(targets) if k == denoiser.mask_id else k for k in request.input_ids]
        shown = denoiser.decode(whole)
        assert shown == denoiser.decode(request.context.input_ids)
    assert requests[:3] == requests[3:]


def test_a_context_can_hold_the_text_of_another_window():
    denoiser, text = WordDenoiser(), " ".join(f"w{number}" for number in range(30))
    requests = hidden_windows(denoiser, [slot(text)], num_windows=3, seed=0)
    changed = with_other_text(requests, seed=0)
    by_text = {tuple(one.input_ids): one for one in requests}
    assert len(changed) == 2  # the context of the first window is cut into other words
    for other in changed:
        own = by_text[tuple(other.input_ids)]
        assert other.context is not None and own.context is not None
        pairs = zip(own.context.input_ids, other.context.input_ids, strict=True)
        places = [k for k, (before, after) in enumerate(pairs) if before != after]
        assert places == [k for k, one in enumerate(own.input_ids) if one == denoiser.mask_id]
        kept = [other.context.input_ids[k] for k in places]
        assert kept in [list(one.targets) for one in requests if one != own]
    assert with_other_text(requests, seed=0) == changed
    assert with_other_text(requests[:1], seed=0) == []


def test_a_task_gives_its_first_instructions_and_rows(tmp_path):
    file = tmp_path / "t.json"
    file.write_text(json.dumps(TASK))
    found = read_task(file)
    assert found.signature.instructions == "Name the day."
    assert [one.outputs for one in found.examples] == [{"output": "Mo"}] * 3
    assert len(bundled_task().examples) == 16


@pytest.mark.parametrize("text", ["no json", "{}", '{"human_instructions": [], "train": []}'])
def test_a_file_that_is_no_task_is_refused(tmp_path, text):
    file = tmp_path / "t.json"
    file.write_text(text)
    with pytest.raises(DataError, match=r"t\.json must be"):
        read_task(file)
