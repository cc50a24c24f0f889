import dspy
import pytest

from dspy_diffusion_infill.adapters import TemplateAdapter
from dspy_diffusion_infill.contexts import (
    CLOSE,
    OPEN,
    Slot,
    WorkedExample,
    indentation,
    is_stated_once,
    mark_window,
    render_messages,
    shorten_longest_value,
)
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


def test_unlabelled_output_fields_are_left_out_of_the_response():
    signature = dspy.Signature("country -> reasoning, capital", TEXT)
    place = Slot("p", signature, dspy.ChatAdapter(), EXAMPLES)
    response = render_messages(place, TEXT, EXAMPLES[:1])[-1]["content"]
    assert "Paris" in response
    assert "reasoning" not in response


def test_instructions_that_hold_the_marking_characters_are_refused():
    with pytest.raises(ValueError, match=r"U\+E000"):
        mark_window(f"a{OPEN}b", Window((Piece(0, 1, 1),)))


def test_the_longest_value_is_halved_and_short_ones_are_left():
    examples = [WorkedExample({"text": "x" * 400, "hint": "y" * 20}, {"label": "z"})]
    shorter = shorten_longest_value(examples, keep=64)
    assert shorter is not None
    assert len(shorter[0].inputs["text"]) == 202
    assert shorter[0].inputs["hint"] == "y" * 20
    assert shorten_longest_value([WorkedExample({"hint": "y" * 20}, {})], keep=64) is None
