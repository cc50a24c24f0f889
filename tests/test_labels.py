"""What a label is, said once."""

import enum
from collections import Counter

from dspy_diffusion_infill.labels import are_labels, find_labels, label_texts, labels_of


class Tone(enum.Enum):
    GOOD = "gut"
    BAD = "schlecht"


def test_labels_are_at_most_twelve_short_values_that_repeat():
    assert find_labels([{"a": "x"}, {"a": "y"}] * 2) == {"a": ("x", "y")}
    assert find_labels([{"a": str(k)} for k in range(8)]) == {}
    assert find_labels([{"a": str(k % 13)} for k in range(52)]) == {}
    assert find_labels([{"a": "x" * 41}] * 4) == {}
    assert are_labels(Counter({"x": 2})) and not are_labels(Counter({"x": 1, "y": 1}))


def test_labels_are_the_texts_that_an_lm_writes():
    rows = [{"a": Tone.GOOD}, {"a": Tone.BAD}] * 2
    assert find_labels(rows) == {"a": ("gut", "schlecht")}
    assert find_labels([{"a": True}, {"a": False}] * 2) == {"a": ("False", "True")}
    assert find_labels([{"a": 1}, {"a": 2}] * 2) == {"a": ("1", "2")}


def test_of_a_list_each_element_is_a_label():
    rows = [{"a": ["x", "y"]}, {"a": ["y"]}, {"a": []}, {"a": ["x", Tone.GOOD, Tone.GOOD]}]
    assert find_labels(rows) == {"a": ("gut", "x", "y")}
    assert label_texts({"b", "a"}) == ("a", "b")


def test_rows_of_equal_labels_are_equal_and_rare_labels_are_none():
    labels = labels_of([{"a": "x"}, {"a": "y"}] * 3)
    assert labels[0] == labels[2] != labels[1]
    assert len(set(labels_of([{"a": "x"}, {"a": "x"}, {"a": "x"}, {"a": "y"}]))) == 1


def test_values_of_other_types_are_other_labels():
    labels = labels_of([{"a": 1}] * 3 + [{"a": "1"}] * 3)
    assert len(set(labels)) == 2


def test_lists_are_compared_as_a_whole():
    labels = labels_of([{"a": ["x", "y"]}] * 3 + [{"a": ["y"]}] * 3)
    assert len(set(labels)) == 2
