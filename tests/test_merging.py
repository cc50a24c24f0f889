"""Three-way merges: the edits of two texts on the one that both were made from."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_diffusion_infill.merging import Change, changes_between, merged, merged_texts

BASE = "Read the text, then name the colour."


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        # different places
        (
            "Study the text, then name the colour.",
            "Read the text, then name the exact colour.",
            "Study the text, then name the exact colour.",
        ),
        # an insertion at each end
        (f"First: {BASE}", f"{BASE} One word.", f"First: {BASE} One word."),
        # one text has no edit
        (BASE, "Name the colour.", "Name the colour."),
        # both have the same edit, and one has another
        (
            "Study the text, then name the colour.",
            "Study the text, then name the tone.",
            "Study the text, then name the tone.",
        ),
        # the same place in two ways
        ("Study the text, then name the colour.", "Skim the text, then name the colour.", None),
        # edits that touch: nobody knows which comes first
        (
            "Read every text, then name the colour.",
            "Read the letter, then name the colour.",
            None,
        ),
    ],
)
def test_edits_of_different_places_are_merged(one, other, expected):
    assert merged(BASE, one, other) == expected
    assert merged(BASE, other, one) == expected


@given(st.text("ab \n", max_size=12), st.text("ab \n", max_size=12))
def test_a_text_that_has_no_edit_adds_nothing(base, one):
    assert merged(base, base, one) == one == merged(base, one, base) == merged(base, one, one)


@given(st.text("ab. \n", max_size=12), st.text("ab. \n", max_size=12))
def test_changes_make_the_new_text_of_the_old_one(old, new):
    made = old
    for change in reversed(changes_between(old, new)):
        made = made[: change.start] + change.new + made[change.end :]
    assert made == new


def test_changes_stand_at_words_in_order():
    changes = changes_between(BASE, "Study the text, then name the exact colour.")
    assert changes == [Change(0, 4, "Study"), Change(28, 28, " exact")]


def test_several_texts_are_merged_or_none_is():
    base = {"find": "Find a clue here", "name": BASE}
    one = {**base, "find": "Find the clue here"}
    other = {**base, "name": f"{BASE} One word."}
    assert merged_texts(base, one, other) == {"find": one["find"], "name": other["name"]}
    assert merged_texts(base, one, {**base, "find": "Find no clue here"}) is None
