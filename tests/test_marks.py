import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_diffusion_infill.marks import read_marks


def test_marks_are_taken_out_and_what_they_mark_is_told():
    marked = read_marks("Say [[keep]] never lie [[/keep]]and [[infill:4]], [[keep]]ok[[/keep]].")
    assert marked.text == "Say  never lie and , ok."
    assert marked.kept == ("never lie", "ok")
    assert marked.places == ((19, 4),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a [[keep]]b", r"\[\[keep\]\] before 'b' must have a \[\[/keep\]\] after it"),
        ("a[[/keep]] b", r"\[\[/keep\]\] after 'a' must have a \[\[keep\]\] before it"),
        (
            "[[keep]]a[[keep]]b[[/keep]][[/keep]]",
            r"before 'a' must have a \[\[/keep\]\] .*cannot be nested",
        ),
        ("[[keep]] \n[[/keep]]", "must hold text, got none"),
        ("[[keep]]a [[infill:2]][[/keep]]", r"\[\[infill:2\]\] must stand outside"),
        ("a [[infill:0]]", "must ask for at least 1 token"),
    ],
)
def test_marks_that_do_not_fit_together_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        read_marks(text)


@given(st.text("ab[]keinfl:1/ \n"))
def test_a_text_without_marks_stays_what_it_is(text):
    if "[[keep]]" not in text and "[[/keep]]" not in text and "[[infill:" not in text:
        assert read_marks(text).text == text
