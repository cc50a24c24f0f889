import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_diffusion_infill.protection import merge_spans
from dspy_diffusion_infill.windows import (
    Piece,
    Prefix,
    SlidingWindow,
    Window,
    free_runs,
    take_marks,
)

TEXT = st.text(alphabet="ab {}\n.", min_size=1, max_size=80)


def word_offsets(text: str) -> list[tuple[int, int]]:
    return [match.span() for match in re.finditer(r"\s*\S+|\s+", text)]


@st.composite
def texts_with_protection(draw: st.DrawFn) -> tuple[str, list[tuple[int, int]]]:
    text = draw(TEXT)
    ends = st.integers(0, len(text))
    spans = draw(st.lists(st.tuples(ends, ends), max_size=3))
    return text, merge_spans((min(s), max(s)) for s in spans)


@given(texts_with_protection(), st.integers(1, 6), st.data())
def test_windows_cover_every_free_position_and_no_protected_one(case, window, data):
    text, protected = case
    stride = data.draw(st.integers(1, window))
    offsets = word_offsets(text)
    windows = SlidingWindow(window=window, stride=stride, mask=window).windows(
        text, offsets, protected
    )
    covered = {c for w in windows for c in range(w.start, w.end)}
    free = {c for run in free_runs(text, offsets, protected) for a, b in run for c in range(a, b)}
    assert covered == free
    assert not covered & {c for start, end in protected for c in range(start, end)}


@given(TEXT, st.integers(1, 5))
def test_no_window_has_more_tokens_than_asked(text, window):
    offsets = word_offsets(text)
    for found in SlidingWindow(window=window, stride=1, mask=3).windows(text, offsets, []):
        inside = [span for span in offsets if found.start <= span[0] and span[1] <= found.end]
        assert 1 <= len(inside) <= window
        assert found.num_masks == max(1, round(3 * len(inside) / window))


@given(TEXT, st.data())
def test_text_outside_the_window_is_kept_to_the_character(text, data):
    places = sorted(data.draw(st.lists(st.integers(0, len(text)), min_size=4, max_size=4)))
    window = Window((Piece(places[0], places[1], 2), Piece(places[2], places[3], 3)))
    new = window.splice(text, ["<one>", "<two>"])
    before, middle, after = text[: places[0]], text[places[1] : places[2]], text[places[3] :]
    assert new == f"{before}<one>{middle}<two>{after}"
    moved = window.after_splice(["<one>", "<two>"])
    assert [new[p.start : p.end] for p in moved.pieces] == ["<one>", "<two>"]


def test_mask_may_differ_from_window():
    text = "one two three four five six seven eight"
    (window,) = SlidingWindow(window=8, stride=4, mask=12).windows(text, word_offsets(text), [])
    assert (window.start, window.end, window.num_masks) == (0, len(text), 12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "window must be at least 1, got window=0"),
        ({"mask": 0}, "mask must be at least 1, got mask=0"),
        ({"stride": 12}, "stride must be in 1..window=8, got stride=12"),
        ({"stride": 0}, "stride must be in 1..window=8, got stride=0"),
    ],
)
def test_numbers_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        SlidingWindow(**options)


def test_prefix_takes_out_the_first_tokens_and_stops_before_protected_text():
    text = "Solve the problem. Q: {question}"
    offsets = word_offsets(text)
    (window,) = Prefix(128).windows(text, offsets, [(19, len(text))])
    assert text[window.start : window.end] == "Solve the problem."
    assert window.num_masks == 128


def test_prefix_with_an_empty_window_puts_masks_in_front():
    (window,) = Prefix(128, window=0).windows("Q: {question}", word_offsets("Q: {question}"), [])
    assert (window.start, window.end, window.num_masks) == (0, 0, 128)


def test_prefix_of_protected_text_is_no_window():
    assert Prefix(4).windows("{a} b", word_offsets("{a} b"), [(0, 3)]) == []


def test_marks_are_taken_out_and_their_places_kept():
    text, window = take_marks("[[infill:24]]\nScore 1: [[infill:5]]\nScore 2: bad")
    assert text == "\nScore 1: \nScore 2: bad"
    assert window is not None
    assert window.splice(text, ["Rate it.", "worst"]) == "Rate it.\nScore 1: worst\nScore 2: bad"
    assert window.num_masks == 29


def test_a_text_without_marks_has_no_marked_window():
    assert take_marks("plain [text]") == ("plain [text]", None)


def test_a_mark_for_no_token_is_refused():
    with pytest.raises(ValueError, match=r"\[\[infill:0\]\] must ask for at least 1 token"):
        take_marks("a [[infill:0]]")
