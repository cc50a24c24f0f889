"""Single values, refused in one wording."""

import re

import pytest

from dspy_diffusion_infill.value_checks import broken_character, check_flag, check_whole
from dspy_diffusion_infill.windows import Prefix


@pytest.mark.parametrize("value", [True, 2.0, "2", None])
def test_what_is_no_whole_number_is_a_type_error(value):
    with pytest.raises(TypeError, match=re.escape(f"n must be a whole number, got n={value!r}")):
        check_whole("n", value)


def test_the_range_the_unit_and_none():
    check_whole("n", -3)
    check_whole("n", 0, least=0)
    check_whole("n", None, least=1, optional=True)
    with pytest.raises(ValueError, match="n must be at least 1, got n=0"):
        check_whole("n", 0, least=1)
    with pytest.raises(TypeError, match="n must be a whole number of tokens or None, got n='x'"):
        check_whole("n", "x", unit="tokens", optional=True)


def test_a_flag_is_true_or_false():
    assert check_flag("f", False) is False
    with pytest.raises(TypeError, match="f must be True or False, got f=1"):
        check_flag("f", 1)


def test_a_prefix_is_counted_in_whole_tokens():
    with pytest.raises(TypeError, match=r"mask must be a whole number of tokens, got mask=2\.5"):
        Prefix(2.5)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("text", ["", "plain", "caf\u00e9 \N{GRINNING FACE}"])
def test_a_whole_text_is_not_broken(text):
    assert broken_character(text) is None


@pytest.mark.parametrize(("text", "half"), [("a\ud83d", r"\ud83d"), ("\ude00b", r"\ude00")])
def test_half_of_a_character_is_named(text, half):
    assert (broken_character(text) or "").startswith(f"holds {half}, half of a surrogate pair")
