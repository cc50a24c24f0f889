from dataclasses import replace

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_diffusion_infill.contexts import (
    CLOSE,
    OPEN,
    Slot,
    WorkedExample,
    ever_smaller,
    indentation,
    is_stated_once,
    mark_window,
    render_messages,
    shorten_longest_value,
)
from dspy_diffusion_infill.template_adapter import TemplateAdapter
from dspy_diffusion_infill.windows import Piece, Window

TEXT = "Name the capital.\nBe brief, please."
EXAMPLES = tuple(
    WorkedExample({"country": country}, {"capital": capital})
    for country, capital in [("France", "Paris"), ("Peru", "Lima"), ("Chad", "N'Djamena")]
)
ADAPTERS = [dspy.ChatAdapter(), dspy.JSONAdapter(), dspy.XMLAdapter(), TemplateAdapter()]


def slot(adapter: dspy.Adapter, instructions: str = TEXT) -> Slot:
    signature = dspy.Signature("country -> capital", instructions)
    return Slot("p", signature, adapter, EXAMPLES)


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda a: type(a).__name__)
def test_the_window_is_found_once_in_what_every_adapter_renders(adapter):
    window = Window((Piece(5, 16, 3),))
    messages = render_messages(slot(adapter), mark_window(TEXT, window), EXAMPLES)
    assert is_stated_once(messages, window)
    text = "".join(message["content"] for message in messages)
    assert f"Name {OPEN}the capital{CLOSE}." in text


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda a: type(a).__name__)
def test_contexts_are_the_programs_own_messages_and_the_gold_response(adapter):
    signature = slot(adapter).signature
    messages = render_messages(slot(adapter), TEXT, EXAMPLES)
    demos = [example.as_demo() for example in EXAMPLES[:-1]]
    assert messages[:-1] == adapter.format(signature, demos, dict(EXAMPLES[-1].inputs))
    assert messages[-1]["role"] == "assistant"
    assert "N'Djamena" in messages[-1]["content"]


def test_a_template_that_repeats_the_instructions_shows_itself():
    text = "Capital of {country}, in one word:"
    window = Window((Piece(23, 33, 3),))
    messages = render_messages(slot(TemplateAdapter(), text), mark_window(text, window), EXAMPLES)
    assert not is_stated_once(messages, window)
    messages = render_messages(
        slot(TemplateAdapter(), text), mark_window(text, window), EXAMPLES[:1]
    )
    assert is_stated_once(messages, window)


def test_the_indentation_that_chat_adapter_adds_is_seen():
    messages = render_messages(slot(dspy.ChatAdapter()), TEXT, EXAMPLES[:1])
    assert indentation(messages, TEXT) == " " * 8
    messages = render_messages(slot(TemplateAdapter()), TEXT, EXAMPLES[:1])
    assert indentation(messages, TEXT) == ""


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda a: type(a).__name__)
def test_unlabelled_output_fields_are_left_out_of_the_response(adapter):
    signature = dspy.Signature("country -> reasoning, capital", TEXT)
    place = Slot("p", signature, adapter, EXAMPLES)
    response = render_messages(place, TEXT, EXAMPLES[:1])[-1]["content"]
    assert "Paris" in response
    assert "capital" in response.lower()
    assert "reasoning" not in response.lower()


def test_an_answer_without_reasoning_does_not_pass_for_the_reasoning():
    """The prompt of a chain of thought ends with "Reasoning:", whatever the examples label."""
    place = replace(slot(TemplateAdapter()), signature=cot_signature())
    *prompt, response = render_messages(place, TEXT, EXAMPLES[:1])
    assert prompt == TemplateAdapter().format(cot_signature(), [], {"country": "France"})
    assert prompt[-1]["content"].endswith("\nReasoning:")
    assert response["content"] == "Capital: Paris"


def test_a_reasoning_that_is_known_follows_the_prompt():
    place = replace(slot(TemplateAdapter()), signature=cot_signature())
    worked = WorkedExample({"country": "Peru"}, {"reasoning": "On the coast.", "capital": "Lima"})
    response = render_messages(place, TEXT, [worked])[-1]
    assert response["content"] == "On the coast.\nCapital: Lima"


def cot_signature() -> type[dspy.Signature]:
    program = dspy.ChainOfThought(dspy.Signature("country -> capital", TEXT))
    return program.predict.signature


def test_instructions_that_hold_the_marking_characters_are_refused():
    with pytest.raises(ValueError, match=r"U\+FDD0"):
        mark_window(f"a{OPEN}b", Window((Piece(0, 1, 1),)))


def test_examples_go_first_then_demos_then_characters_and_one_example_stays():
    examples = tuple(WorkedExample({"country": k * 200}, {"capital": k}) for k in "abc")
    demos = ({"country": "x", "capital": "y"}, {"country": "v", "capital": "w"})
    whole = replace(slot(TemplateAdapter()), examples=examples, demos=demos)
    steps = list(ever_smaller(whole))
    assert steps[0] == (whole, "")
    assert [(len(s.examples), len(s.demos)) for s, _ in steps[1:5]] == [
        (2, 2),
        (1, 2),
        (1, 1),
        (1, 0),
    ]
    assert [loss for _, loss in steps[1:]] == (
        ["examples are left out"] * 2
        + ["the program's demos are left out"] * 2
        + ["values are cut"] * 2
    )
    assert steps[4][0].examples == examples[-1:]
    assert len(steps[-1][0].examples[0].inputs["country"]) == 64
    assert all(smaller.signature is whole.signature for smaller, _ in steps)


def test_the_longest_value_is_halved_and_short_ones_are_left():
    examples = [WorkedExample({"text": "x" * 400, "hint": "y" * 20}, {"label": "z"})]
    shorter = shorten_longest_value(examples, keep=64)
    assert shorter is not None
    assert shorter[0].inputs["text"] == "x" * 198 + " …"
    assert shorter[0].inputs["hint"] == "y" * 20
    assert shorten_longest_value([WorkedExample({"hint": "y" * 20}, {})], keep=64) is None


@given(lengths=st.lists(st.integers(0, 500), min_size=1, max_size=4), keep=st.integers(2, 80))
def test_shortening_comes_to_an_end_at_what_is_kept(lengths, keep):
    examples = [WorkedExample({"text": "x" * length}, {}) for length in lengths]
    total = sum(lengths)
    while (shorter := shorten_longest_value(examples, keep=keep)) is not None:
        examples, before = shorter, total
        total = sum(len(example.inputs["text"]) for example in examples)
        assert total < before
    for length, example in zip(lengths, examples, strict=True):
        assert min(length, keep) == len(example.inputs["text"])
