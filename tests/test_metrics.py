import datetime
import enum
import logging
from dataclasses import dataclass

import dspy
import pydantic
import pytest
from doubles import WordDenoiser, rule_lm
from hypothesis import given
from hypothesis import strategies as st

from dspy_diffusion_infill.optimizer.diffusion_infill import DiffusionInfill
from dspy_diffusion_infill.optimizer.metrics import ExactMatch, is_same, labelled_fields
from dspy_diffusion_infill.programs import output_fields
from dspy_diffusion_infill.template_adapter import TemplateAdapter

EQUAL = [
    ("The  Eiffel Tower!", "eiffel tower"),
    ("yes", "Yes."),
    ("well-known", "wellknown"),
    ("2024-01-05", "2024/01/05"),
    ("v1.2.3", "V123"),
    ("café", "cafe\u0301"),
    ("5", "5.0"),
    ("1,000", "1000"),
    ("-5", "\N{MINUS SIGN}5"),
    ("+5", "5."),
    (".5", "0.50"),
    ("1e3", "1000"),
    ("$5", "5"),
    ("-3.5 degrees", "\N{MINUS SIGN}3.5 Degrees."),
    ("A", "a."),
    ("A", "(A)"),
    ("+", " + "),
    ("", " "),
]
DIFFERENT = [
    ("-5", "5"),
    ("3.5", "35"),
    (".5", "5"),
    ("1e-5", "1e5"),
    ("12345678901234567890", "12345678901234567891"),
    ("-5 degrees", "5 degrees"),
    ("-$5 off", "$5 off"),
    ("3.5 kg", "35 kg"),
    (".5 kg", "5 kg"),
    ("A", "the"),
    ("A", "An"),
    ("A", "a cat"),
    ("the", ""),
    ("+", "-"),
    ("...", ""),
    ("positive", "negative"),
]


@pytest.mark.parametrize(("gold", "answer"), EQUAL)
def test_what_differs_in_writing_only_is_the_same(gold, answer):
    assert is_same(gold, answer)
    assert is_same(answer, gold)


@pytest.mark.parametrize(("gold", "answer"), DIFFERENT)
def test_other_numbers_letters_and_signs_are_not_the_same(gold, answer):
    assert not is_same(gold, answer)
    assert not is_same(answer, gold)


@given(st.text(max_size=20))
def test_a_text_is_the_same_as_itself_with_space_around(text):
    assert is_same(text, f" {text}\n")


@given(st.decimals(-(10**9), 10**9, places=6), st.decimals(-99, 99, places=2))
def test_numbers_are_the_same_where_they_are_equal(a, b):
    assert is_same(str(a), f"{a:f}")
    assert is_same(str(a), str(b)) == (a == b)


ROW = dspy.Example(text="a", clue="b", colour="Red").with_inputs("text")


def score(row: dspy.Example, prediction: object, *fields: str) -> float:
    return ExactMatch(fields)(row, prediction)


def test_every_labelled_field_that_the_prediction_carries_must_be_right():
    both = dspy.Prediction(clue="b", colour="red")
    assert score(ROW, both, "clue", "colour") == 1.0
    assert score(ROW, dspy.Prediction(clue="c", colour="red"), "clue", "colour") == 0.0


def test_a_labelled_middle_field_that_the_program_does_not_return_does_not_count():
    assert score(ROW, dspy.Prediction(colour="red"), "clue", "colour") == 1.0
    assert score(ROW, dspy.Prediction(colour="blue"), "clue", "colour") == 0.0


def test_a_prediction_without_any_of_the_fields_scores_nothing():
    assert score(ROW, dspy.Prediction(other="red"), "clue", "colour") == 0.0
    assert score(ROW, None, "colour") == 0.0


def test_a_field_may_be_named_like_a_method_of_dspys_predictions():
    row = dspy.Example(text="a", labels="x").with_inputs("text")
    assert score(row, dspy.Prediction(labels="x"), "labels") == 1.0
    assert score(row, dspy.Prediction(other="x"), "labels") == 0.0


def test_programs_may_return_dicts_and_objects():
    assert score(ROW, {"colour": "red"}, "colour") == 1.0
    assert score(ROW, type("Answer", (), {"colour": "red"})(), "colour") == 1.0


def test_a_row_that_labels_nothing_is_refused_and_no_success():
    row = dspy.Example(text="a", mood="b").with_inputs("text")
    with pytest.raises(ValueError, match=r"'mood': 'b'.* labels none of \['colour'\]"):
        score(row, dspy.Prediction(colour="red"), "colour")


def program() -> dspy.Module:
    class Steps(dspy.Module):
        def __init__(self):
            super().__init__()
            self.find = dspy.Predict("text -> clue")
            self.name = dspy.Predict("clue -> colour")

    return Steps()


def labelled(**data: list[dspy.Example]) -> tuple[str, ...]:
    return labelled_fields(output_fields(program()), data)


def test_labelled_fields_are_the_programs_outputs_that_examples_label():
    assert labelled(trainset=[ROW]) == ("clue", "colour")
    assert labelled(trainset=[ROW.without("clue")]) == ("colour",)
    assert labelled(valset=[ROW.without("clue", "colour")]) == ()


def test_one_row_without_a_label_among_labelled_ones_is_refused_by_its_name():
    bare = ROW.without("clue", "colour")
    with pytest.raises(ValueError, match=r"trainset\[1\]: .*leave it out, or pass metric="):
        labelled(trainset=[ROW, bare])
    with pytest.raises(ValueError, match=r"valset\[0\]: the example"):
        labelled(trainset=[ROW, ROW], valset=[bare])


def test_exact_match_over_nothing_is_refused():
    with pytest.raises(ValueError, match="pass metric="):
        ExactMatch(())


@pytest.mark.parametrize(("metric", "said"), [(None, True), (lambda gold, answer: 1.0, False)])
def test_the_log_says_which_metric_is_used_where_none_is_given(metric, said, caplog):
    lm, _ = rule_lm(lambda prompt: "red")
    student = dspy.Predict(dspy.Signature("text -> colour", "Read it and tell us the colour."))
    row = dspy.Example(text="it is red", colour="Red").with_inputs("text")
    optimizer = DiffusionInfill(
        metric, WordDenoiser(), guidance=None, max_metric_calls=1, display_progress=False
    )
    with dspy.context(lm=lm, adapter=TemplateAdapter()), caplog.at_level(logging.INFO):
        optimizer.compile(student, [row])
    message = "no metric was given: normalised exact match over colour"
    assert (message in caplog.messages) == said


def test_a_row_without_a_label_is_refused_before_any_call():
    lm, engine = rule_lm(lambda prompt: "red")
    student = dspy.Predict(dspy.Signature("text -> colour", "Read it and tell us the colour."))
    rows = [
        dspy.Example(text="it is red", colour="red").with_inputs("text"),
        dspy.Example(text="it is blue", color="blue").with_inputs("text"),
    ]
    optimizer = DiffusionInfill(None, WordDenoiser(), guidance=None, display_progress=False)
    with (
        dspy.context(lm=lm, adapter=TemplateAdapter()),
        pytest.raises(ValueError, match=r"'color': 'blue'.* labels none of \['colour'\]"),
    ):
        optimizer.compile(student, rows)
    assert engine.prompts == []


# Typed values and other scripts


class Colour(enum.Enum):
    RED = "rot"
    ONE = 1


class Place(pydantic.BaseModel):
    city: str
    rooms: float = 1
    tags: list[str] = []


@dataclass
class Point:
    x: float
    y: float = 0.0


SAME_VALUES = {
    "enum by value": ("rot", Colour.RED),
    "enum by name": ("RED", Colour.RED),
    "enum of a number": (1, Colour.ONE),
    "enum and enum": (Colour.RED, Colour.RED),
    "model": ({"city": "Rome", "rooms": 1}, Place(city="rome.")),
    "model without its defaults": ({"city": "Rome"}, Place(city="Rome")),
    "models": (Place(city="Rome"), Place(city="Rome", rooms=1.0)),
    "model as JSON": ('{"city": "Rome", "rooms": 2}', Place(city="Rome", rooms=2)),
    "dataclass": ({"x": 1, "y": 0}, Point(1.0)),
    "numbers in lists": ([1, 2], [1.0, 2.0]),
    "a tuple": ([1, 2], (1, 2)),
    "texts in lists": (["The cat", "dog."], ["cat", "Dog"]),
    "lists in lists": ([[1], ["a", 2]], [[1.0], ["A", "2"]]),
    "a list as in a table": ("A, C", ["A", "C"]),
    "a list as JSON": ('["A", "C"]', ["A", "C"]),
    "dicts": ({"a": 1, "b": ["x"]}, {"b": ["X."], "a": 1.0}),
    "keys that are numbers": ({"1": "a"}, {1: "a"}),
    "sets": ({"a", "b"}, {"B", "A"}),
    "a list and a set": (["b", "a"], {"a", "b"}),
    "a date": ("2024-01-02", datetime.date(2024, 1, 2)),
    "a bool": ("true", True),
    "None": (None, None),
}
OTHER_VALUES = {
    "another member": ("RED", Colour.ONE),
    "another city": ({"city": "Rome"}, Place(city="Oslo")),
    "a field that is no default": ({"city": "Rome"}, Place(city="Rome", rooms=2)),
    "a list that lacks an option": (["A", "C"], ["C"]),
    "options in a text": ("A, C", "C"),
    "an option more": ("C", "A, C"),
    "another order": ([1, 2], [2, 1]),
    "an item twice": ({"a", "b"}, ["a", "a"]),
    "a dict with another key": ({"a": 1}, {"b": 1}),
    "a list for a text": ("A, C", ["C"]),
    "a mapping for a list": ([1], {"a": 1}),
    "None for a list": ([1], None),
    "a bool": ("false", True),
}


@pytest.mark.parametrize("name", SAME_VALUES)
def test_typed_values_are_the_same_by_element(name):
    gold, answer = SAME_VALUES[name]
    assert is_same(gold, answer) and is_same(answer, gold)


@pytest.mark.parametrize("name", OTHER_VALUES)
def test_typed_values_that_differ_are_not_the_same(name):
    gold, answer = OTHER_VALUES[name]
    assert not is_same(gold, answer) and not is_same(answer, gold)


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("好评", "好评。"),
        ("東京", "「東京」"),
        ("अच्छा", "अच्छा।"),
        ("نعم", "نعم؟"),
        ("ya", "¡Ya!"),
    ],
)
def test_punctuation_of_all_scripts_is_none_of_the_answer(gold, answer):
    assert is_same(gold, answer)


@pytest.mark.parametrize(
    ("gold", "answer"), [("นี้", "นา"), ("கி", "கு"), ("हाँ", "हो"), ("好评", "差评")]
)
def test_words_that_differ_in_their_vowel_signs_are_not_the_same(gold, answer):
    assert not is_same(gold, answer)
