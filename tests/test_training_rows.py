import gc
import random
import weakref

import dspy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import byte_tokenizer

from dspy_diffusion_infill.contexts import CLOSE, OPEN
from dspy_diffusion_infill.denoisers import Encoding
from dspy_diffusion_infill.template_adapter import TemplateAdapter
from dspy_diffusion_infill.training.rows import (
    Group,
    Row,
    adapter_row,
    group_by_instructions,
    pair,
    tokenize_row,
    with_adapter,
    with_eos_padding,
    with_worked_examples,
)

TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF), min_size=1, max_size=30)
WORDS = TEXT.filter(lambda text: bool(text.strip()))


class Coder:
    """The text half of a denoiser, on the byte tokenizer."""

    def __init__(self) -> None:
        self.tokenizer = byte_tokenizer()

    def encode(self, text):
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return Encoding(tuple(encoded["input_ids"]), tuple(encoded["offset_mapping"]))

    def render(self, messages):
        return self.tokenizer.apply_chat_template(messages, tokenize=False)


CODER = Coder()


def text_of(tokens, flags) -> str:
    return CODER.tokenizer.decode([i for i, flag in zip(tokens, flags, strict=True) if flag])


@settings(deadline=None)
@given(WORDS, WORDS)
def test_exactly_the_turns_are_maskable_and_the_response_ends_its_turn(prompt, response):
    tokens = tokenize_row(pair(prompt, response), CODER)
    response = response.strip()
    assert text_of(tokens.input_ids, tokens.is_response) == response + "<|im_end|>"
    assert text_of(tokens.input_ids, tokens.maskable) == prompt.strip() + response + "<|im_end|>"


@pytest.mark.parametrize("content", ["user", "assistant\nuser", "<|im_start|>", "im_end"])
def test_content_that_looks_like_a_marker_is_found_where_it_stands(content):
    tokens = tokenize_row(pair(content, "yes"), CODER)
    assert text_of(tokens.input_ids, tokens.maskable) == content + "yes<|im_end|>"


def test_instructions_are_the_preferred_span():
    tokens = tokenize_row(pair("Name it.\n\nInput: x", "y", instructions="Name it."), CODER)
    [(first, last)] = tokens.preferred
    assert CODER.tokenizer.decode(tokens.input_ids[first:last]) == "Name it."


def test_a_long_row_is_cut_at_its_end():
    whole = tokenize_row(pair("a" * 50, "b" * 50), CODER)
    cut = tokenize_row(pair("a" * 50, "b" * 50), CODER, max_length=80)
    assert cut.input_ids == whole.input_ids[:80]
    assert len(cut.maskable) == len(cut.is_response) == 80
    assert cut.is_cut and not whole.is_cut
    assert not tokenize_row(pair("a" * 50, "b" * 50), CODER, max_length=10_000).is_cut


@given(st.integers(1, 40))
def test_padding_reaches_a_multiple_and_counts_as_response(multiple):
    tokens = tokenize_row(pair("Say a.", "a"), CODER)
    padded = with_eos_padding(tokens, eos_id=7, multiple=multiple)
    added = len(padded.input_ids) - len(tokens.input_ids)
    assert 0 <= added < multiple
    assert len(padded.input_ids) % multiple == 0
    assert padded.input_ids[len(tokens.input_ids) :] == [7] * added
    assert padded.is_response == tokens.is_response + [True] * added
    assert padded.maskable == tokens.maskable + [True] * added


GROUP = Group("Add the numbers.", tuple((f"Input: {k} 1\nOutput:", str(k + 1)) for k in range(9)))


def test_worked_examples_state_the_instructions_once_and_leave_the_last_answer_open():
    row = with_worked_examples(GROUP, random.Random(0), max_examples=3)
    blocks = row.prompt.split("\n\n")
    assert blocks[0] == GROUP.instructions
    assert row.prompt.count(GROUP.instructions) == 1
    assert blocks[-1].endswith("Output:")
    assert dict(GROUP.examples)[blocks[-1]] == row.response
    assert row.instructions == (GROUP.instructions,)


def test_answered_examples_may_stand_before_the_instructions():
    after = with_worked_examples(GROUP, random.Random(0), max_examples=3)
    before = with_worked_examples(GROUP, random.Random(0), max_examples=3, examples_first=True)
    instructions, *answered, last = after.prompt.split("\n\n")
    assert len(answered) >= 1
    assert before.prompt.split("\n\n") == [*answered, instructions, last]
    assert (before.response, before.instructions) == (after.response, after.instructions)
    [(first, end)] = tokenize_row(before, CODER).preferred
    ids = tokenize_row(before, CODER).input_ids
    assert CODER.tokenizer.decode(ids[first:end]) == GROUP.instructions


@pytest.mark.parametrize("render", [with_worked_examples, with_adapter])
def test_a_row_that_does_not_fit_loses_its_last_examples_and_no_other_draw_changes(render):
    rng, other = random.Random(5), random.Random(5)  # draws three examples
    whole = render(GROUP, rng, max_examples=3)
    limit = len(tokenize_row(whole, CODER).input_ids) - 1

    def fits(row: Row) -> bool:
        return len(tokenize_row(row, CODER).input_ids) <= limit

    fewer = render(GROUP, other, max_examples=3, fits=fits)
    assert fits(fewer) and fewer.response
    assert len(str(fewer.turns)) < len(str(whole.turns))
    assert rng.random() == other.random()
    one = render(GROUP, random.Random(5), max_examples=3, fits=lambda row: False)
    assert one == render(Group(GROUP.instructions, (example_of(one),)), random.Random(0))


def example_of(row: Row) -> tuple[str, str]:
    """The example of GROUP whose input a row asks about."""
    return next((q, a) for q, a in GROUP.examples if q.split("\n")[0][7:] in row.prompt)


def test_a_coder_that_is_not_used_any_more_is_freed():
    coder = Coder()
    seen = weakref.ref(coder)
    tokenize_row(pair("a", "b"), coder)
    del coder
    gc.collect()
    assert seen() is None


def test_groups_are_found_again_in_the_rows_that_they_make():
    rows = [with_worked_examples(GROUP, random.Random(k)) for k in range(20)]
    lone = pair("Just one question?", "yes")
    groups, rest = group_by_instructions([*rows, lone])
    assert rest == [lone]
    assert [group.instructions for group in groups] == [GROUP.instructions]
    assert set(groups[0].examples) == set(GROUP.examples)


def test_adapter_rows_are_what_the_adapter_sends():
    row = with_adapter(GROUP, random.Random(1), max_examples=3)
    signature = dspy.make_signature("input -> output", GROUP.instructions)
    adapter = dspy.ChatAdapter()
    users = [content for role, content in row.turns if role == "user"]
    demos = [
        {"input": content.split("]]\n")[1].split("\n")[0], "output": None} for content in users
    ]
    assert row.turns[0][0] == "system"
    assert GROUP.instructions in row.turns[0][1]
    answer = {"output": str(int(demos[-1]["input"].split()[0]) + 1)}
    assert row.response == adapter.format_assistant_message_content(signature, answer).strip()


def test_a_dspy_example_becomes_a_row():
    signature = dspy.make_signature("question -> answer", "Answer in one word.")
    example = dspy.Example(question="Colour of snow?", answer="white")
    row = adapter_row(signature, example.with_inputs("question"), adapter=dspy.ChatAdapter())
    assert "Colour of snow?" in row.prompt
    assert "white" in row.response
    assert "Colour of snow?" not in row.response
    assert isinstance(row, Row)
    assert row.instructions == ("Answer in one word.",)


TWO_LINES = "Read the review.\nSay whether it is good."
SHOWN = {"review": "The soup was cold.", "label": "bad"}
ADAPTERS = {
    "chat": dspy.ChatAdapter(),
    "json": dspy.JSONAdapter(),
    "xml": dspy.XMLAdapter(),
    "template": TemplateAdapter(),
}


@pytest.mark.parametrize("adapter", ADAPTERS.values(), ids=ADAPTERS)
def test_instructions_of_several_lines_are_found_and_the_response_ends_its_turn(adapter):
    signature = dspy.make_signature("review -> label", TWO_LINES)
    tokens = tokenize_row(adapter_row(signature, SHOWN, adapter=adapter), CODER)
    [(first, last)] = tokens.preferred
    found = CODER.tokenizer.decode(tokens.input_ids[first:last])
    assert [line.strip() for line in found.splitlines()] == TWO_LINES.splitlines()
    assert text_of(tokens.input_ids, tokens.is_response).endswith("<|im_end|>")
    assert "bad" in text_of(tokens.input_ids, tokens.is_response)
    assert not any(mark in CODER.tokenizer.decode(tokens.input_ids) for mark in (OPEN, CLOSE))


def test_what_stands_around_a_placeholder_is_what_an_optimizer_would_rewrite():
    signature = dspy.make_signature("review -> label", "Take this:\n{review}.\nSay if it is good.")
    row = adapter_row(signature, SHOWN, adapter=TemplateAdapter())
    assert row.prompt == "Take this:\nThe soup was cold..\nSay if it is good."
    assert row.instructions == ("Take this:", ".\nSay if it is good.")
    tokens = tokenize_row(row, CODER)
    found = [CODER.tokenizer.decode(tokens.input_ids[a:b]) for a, b in tokens.preferred]
    assert found == list(row.instructions)


def test_rows_with_more_turns_than_a_prompt_and_its_response_keep_them():
    turns = [pair(f"Add 1.\n\nInput: {k}\nOutput:", str(k + 1)).turns for k in range(4)]
    system = ("system", "Be brief.")
    assert len(group_by_instructions([Row(t) for t in turns])[0]) == 1
    rows = [Row((system, *t)) for t in turns]
    assert group_by_instructions(rows) == ([], rows)
