"""What the template adapter reads out of a reply, and how it writes gold outputs."""

import re
from typing import Literal

import dspy
import pytest
from dspy.utils.exceptions import AdapterParseError
from hypothesis import given
from hypothesis import strategies as st
from test_template_adapter import JUDGE, SCORE, plural, prompts, sentiment

from dspy_diffusion_infill.template_adapter import TemplateAdapter, first_label

# What comes back


def test_one_output_field_takes_the_whole_completion():
    assert TemplateAdapter().parse(plural(), " dogs\nand cats\n") == {"plural": "dogs\nand cats"}


@pytest.mark.parametrize("completion", ["", " \n"])
def test_an_empty_completion_is_a_parse_error(completion):
    with pytest.raises(AdapterParseError, match="plural"):
        TemplateAdapter().parse(plural(), completion)


@pytest.mark.parametrize(
    ("completion", "label"),
    [
        ("The sentiment is negative.", "negative"),
        ("POSITIVE", "positive"),
        ("**positive**, not negative", "positive"),
        ('"Negative"', "negative"),
    ],
)
def test_a_literal_takes_the_first_label_that_is_named(completion, label):
    signature = sentiment(Literal["positive", "negative"])
    assert TemplateAdapter().parse(signature, completion) == {"label": label}


def test_a_completion_without_label_is_a_parse_error_that_names_it():
    with pytest.raises(AdapterParseError, match=r"'A positively odd text\.' names none of \['pos"):
        TemplateAdapter().parse(
            sentiment(Literal["positive", "negative"]), "A positively odd text."
        )


@pytest.mark.parametrize(
    ("text", "labels", "expected"),
    [
        ("not the same", ("same", "not the same"), "not the same"),
        ("It is not the same", ("not", "not the same"), "not the same"),
        ("the same, not not the same", ("same", "not the same"), "same"),
        ("not\nthe  same", ("same", "not the same"), "not the same"),
        ("us or US", ("US", "us"), "us"),
        ("score 3.5, so 4", (3, 4), 4),
        ("C++ wins", ("C", "C++"), "C++"),
    ],
)
def test_first_label(text, labels, expected):
    assert first_label(text, labels) == expected


@given(st.sampled_from(["alpha", "beta gamma", "7", "c++"]), st.text("xyz \n.", max_size=20))
def test_a_label_alone_is_always_found(label, around):
    labels = ("alpha", "beta gamma", "7", "c++")
    assert first_label(f"{around} {label} {around}", labels) == label


@pytest.mark.parametrize(
    ("kind", "completion", "value"),
    [
        (int, " 42 ", 42),
        (float, "4.2", 4.2),
        (bool, "True", True),
        (list[str], '["a", "b"]', ["a", "b"]),
        (Literal[1, 2], "It is 2.", 2),
    ],
)
def test_typed_fields_are_read(kind, completion, value):
    assert TemplateAdapter().parse(sentiment(kind), completion) == {"label": value}


def test_a_value_of_the_wrong_type_is_a_parse_error():
    with pytest.raises(AdapterParseError, match="Field 'label'"):
        TemplateAdapter().parse(sentiment(int), "many")


def test_several_fields_are_read_from_their_lines():
    signature = dspy.Signature("question -> reasoning, answer: int", "Solve it.")
    expected = {"reasoning": "One and one.\nSo two.", "answer": 2}
    for completion in (
        " One and one.\nSo two.\nAnswer: 2",
        "Reasoning: One and one.\nSo two.\n\n**Answer:** 2\nAnswer: 3",
        "ANSWER: 2\nreasoning: One and one.\nSo two.",
    ):
        assert TemplateAdapter().parse(signature, completion) == expected
    with pytest.raises(AdapterParseError, match=r"\['answer'\]"):
        TemplateAdapter().parse(signature, "No idea.")


def test_an_optional_field_may_be_absent():
    signature = dspy.Signature("question -> answer, source: str | None", "Solve it.")
    assert TemplateAdapter().parse(signature, "2") == {"answer": "2", "source": None}


# Patterns


def judge() -> type[dspy.Signature]:
    return dspy.Signature("text -> feedback, score: int", "Judge {text}.")


def test_a_pattern_gives_the_fields():
    adapter = TemplateAdapter(pattern=re.compile(SCORE, re.DOTALL), response=JUDGE)
    parsed = adapter.parse(judge(), "Fine.\nGood. [RESULT] 4")
    assert parsed == {"feedback": "Fine.\nGood.", "score": 4}
    with pytest.raises(AdapterParseError, match="was not found"):
        adapter.parse(judge(), "Fine.")


def test_a_pattern_needs_named_groups():
    with pytest.raises(ValueError, match="named groups"):
        TemplateAdapter(pattern=r"(\d)")


def test_a_pattern_without_group_for_a_field_is_an_error_before_the_call():
    with pytest.raises(ValueError, match=r"\(\?P<feedback>"):
        TemplateAdapter(pattern=r"(?P<score>\d)").format(judge(), [], {"text": "x"})


def test_gold_outputs_that_the_pattern_cannot_find_need_a_response_template():
    outputs = {"feedback": "Good.", "score": 4}
    with pytest.raises(ValueError, match=r"response=\.\.\."):
        TemplateAdapter(pattern=SCORE).format_assistant_message_content(judge(), outputs)
    adapter = TemplateAdapter(pattern=SCORE, response=JUDGE)
    text = adapter.format_assistant_message_content(judge(), outputs)
    assert text == "Feedback: Good. [RESULT] 4"


# Gold responses


words = st.text("abc de.\n", min_size=1).map(str.strip).filter(bool)


@given(reasoning=words, answer=words)
def test_a_gold_response_is_parsed_back(reasoning, answer):
    adapter = TemplateAdapter()
    outputs = {"reasoning": reasoning, "answer": answer}
    for instructions in ("Solve it.", "Solve {question}"):
        signature = dspy.Signature("question -> reasoning, answer", instructions)
        text = adapter.format_assistant_message_content(signature, outputs)
        assert adapter.parse(signature, text) == outputs
    text = adapter.format_assistant_message_content(plural(), {"plural": answer})
    assert (text, adapter.parse(plural(), text)) == (answer, {"plural": answer})


def test_a_missing_gold_output_is_left_out_and_the_others_keep_their_names():
    signature = dspy.Signature("question -> reasoning, answer: int", "Solve it.")
    adapter = TemplateAdapter()
    assert prompts(adapter, signature, [], {"question": "1+1"})[0].endswith("\nReasoning:")
    assert adapter.format_assistant_message_content(signature, {"answer": 2}) == "Answer: 2"
    assert adapter.format_assistant_message_content(signature, {"reasoning": "Add."}) == "Add."
    asks_for_the_answer = signature.with_instructions("Solve it.\n\n{question}\nAnswer:")
    text = adapter.format_assistant_message_content(asks_for_the_answer, {"answer": 2})
    assert text == "2"


def test_a_missing_gold_output_leaves_its_place_in_the_response_template_empty():
    adapter = TemplateAdapter(pattern=SCORE, response=JUDGE)
    text = adapter.format_assistant_message_content(judge(), {"score": 4})
    assert text == "Feedback:  [RESULT] 4"


def test_no_gold_output_at_all_is_an_error():
    with pytest.raises(ValueError, match="field 'plural' has no value"):
        TemplateAdapter().format_assistant_message_content(plural(), {})
    with pytest.raises(ValueError, match="field 'feedback' has no value"):
        TemplateAdapter(pattern=SCORE, response=JUDGE).format_assistant_message_content(judge(), {})
