"""The windows that an adaptive search looks at, level by level."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_diffusion_infill.optimizer.neighbourhoods import NUM_LEVELS, MaskableText, neighbourhood
from dspy_diffusion_infill.protection import merge_spans
from dspy_diffusion_infill.windows import Prefix, SlidingWindow

BASE = SlidingWindow(window=2, stride=1, mask=2)
WORDS = "one two three four five six"


def as_text(instructions: str, *protected: str) -> MaskableText:
    offsets = [match.span() for match in re.finditer(r"\s*\S+|\s+", instructions)]
    spans = [
        match.span() for one in protected for match in re.finditer(re.escape(one), instructions)
    ]
    return MaskableText(instructions, offsets, merge_spans(spans))


def pieces(text: MaskableText, level: int) -> list[list[tuple[str, int]]]:
    """What each window takes out, and the masks that it puts in."""
    return [
        [(text.instructions[p.start : p.end], p.num_masks) for p in window.pieces]
        for window in neighbourhood(text, (BASE,), level)
    ]


def test_the_first_level_is_the_users_own_schemes():
    text = as_text("one two three")
    assert pieces(text, 0) == [[("one two", 2)], [(" two three", 2)]]
    both = neighbourhood(text, (BASE, Prefix(1)), 0)
    assert len(both) == 3


def test_the_second_level_has_more_masks_and_new_text_at_both_ends():
    found = pieces(as_text("one two three"), 1)
    assert found == [[("one two", 4)], [(" two three", 4)], [("", 2)], [("", 2)]]


def test_nothing_is_put_in_beside_protected_ends():
    assert [p for p in pieces(as_text("Say it. Answer:", "Answer:"), 1) if p[0][0] == ""] == [
        [("", 2)]
    ]
    assert not [p for p in pieces(as_text("{a} say {b}", "{a}", "{b}"), 1) if p[0][0] == ""]


def test_the_third_level_is_wider_and_has_two_windows_at_once():
    found = pieces(as_text(WORDS), 2)
    assert [("one two three four", 4)] in found
    assert [("one two", 2), (" five six", 2)] in found
    assert all(len(one) <= 2 for one in found)


def test_the_last_level_is_every_free_run_as_a_whole():
    found = pieces(as_text("one two {x} three four five six seven", "{x}"), NUM_LEVELS - 1)
    assert found == [
        [("one two", 4)],
        [("one two", 4)],
        [(" three four five six seven", 5)],
        [(" three four five six seven", 10)],
    ]


def test_a_scheme_of_the_users_own_has_no_wider_levels():
    text = as_text(WORDS)
    assert [len(neighbourhood(text, (Prefix(2),), k)) for k in range(NUM_LEVELS)] == [1, 0, 0, 0]


@given(st.text(alphabet="ab {}\n.", min_size=1, max_size=60), st.integers(0, NUM_LEVELS - 1))
def test_no_level_touches_protected_text(instructions, level):
    braces = [match.span() for match in re.finditer(r"\{[^{}]*\}", instructions)]
    plain = as_text(instructions)
    text = MaskableText(plain.instructions, plain.offsets, merge_spans(braces))
    for window in neighbourhood(text, (BASE,), level):
        for piece in window.pieces:
            assert not any(piece.start < end and start < piece.end for start, end in braces)
            assert piece.num_masks >= 1


@pytest.mark.parametrize("level", range(NUM_LEVELS))
def test_all_of_a_text_protected_leaves_no_window(level):
    assert pieces(as_text("keep this", "keep this"), level) == []
