"""Values of any type are made shorter, and stay what they are."""

import enum

import dspy
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_diffusion_infill.contexts import (
    Slot,
    WorkedExample,
    ever_smaller,
    render_messages,
    shorten_longest_value,
)
from dspy_diffusion_infill.shortening import shorter, size_of


class Tone(enum.Enum):
    GOOD = "g" * 200


class Page(pydantic.BaseModel):
    title: str
    text: str
    rank: int = 0


VALUES = [
    "word " * 100,
    ["word " * 100] * 20,
    ["short"] * 300,
    {"a": "word " * 100, "b": "x"},
    {str(k): k for k in range(300)},
    [{"title": "a", "text": "word " * 500}] * 5,
    Page(title="a", text="word " * 200, rank=3),
    [Page(title="a", text="word " * 200)] * 8,
    dspy.History(messages=[{"question": "word " * 90, "answer": "b"}] * 30),
    {"word " * 20, "other " * 30},
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_every_step_is_shorter_and_of_the_same_type(value):
    steps = 0
    while (made := shorter(value, keep=64)) is not None:
        assert type(made) is type(value)
        assert size_of(made) < size_of(value)
        value, steps = made, steps + 1
    assert steps and size_of(value) <= 2 * 64 + 32


@pytest.mark.parametrize("value", [Tone.GOOD, 10**200, ("word",) * 100, None, b"x" * 500])
def test_what_cannot_be_shortened_without_changing_it_is_left(value):
    assert shorter(value, keep=64) is None


@given(st.text(min_size=65, max_size=500))
def test_a_text_is_halved_and_never_below_what_is_kept(text):
    made = shorter(text, keep=64)
    assert made.endswith(" …") and len(made) <= max(64, len(text) // 2)
    assert text.startswith(made[:-2])


def test_enums_and_numbers_inside_stay():
    value = {"tone": Tone.GOOD, "text": "word " * 100, "page": Page(title="x", text="y", rank=7)}
    made = shorter(value, keep=64)
    assert made["tone"] is Tone.GOOD and made["page"].rank == 7


def test_the_longest_value_of_all_examples_is_shortened_whatever_its_type():
    passages = ["passage " * 250] * 20
    first = WorkedExample({"question": "q " * 100, "passages": passages}, {"answer": "a"})
    second = WorkedExample({"question": "q", "passages": ["x"]}, {"answer": "b"})
    (one, other) = shorten_longest_value([first, second], keep=64)
    assert one.inputs["question"] == first.inputs["question"] and other == second
    assert len(one.inputs["passages"]) == 20
    assert all(len(passage) <= 1000 for passage in one.inputs["passages"])


@pytest.mark.parametrize("adapter", [dspy.ChatAdapter(), dspy.JSONAdapter()])
def test_a_retrieval_program_gets_short_enough_for_its_adapter(adapter):
    signature = dspy.Signature("question, passages: list[str], pages: list[dict] -> answer")
    inputs = {
        "question": "Where?",
        "passages": ["passage " * 250] * 20,
        "pages": [{"title": "t", "text": "page " * 400}] * 10,
    }
    slot = Slot("p", signature, adapter, (WorkedExample(inputs, {"answer": "Rome"}),))
    *_, (smallest, loss) = ever_smaller(slot)
    messages = render_messages(smallest, "Answer.", smallest.examples)
    assert sum(len(message["content"]) for message in messages) < 2500
    assert loss == "values are cut"
