import math

import pytest

from dspy_diffusion_infill.infiller.bounds import Bounds

OLD = "one two three four five six seven eight nine ten"


def reason(new: str, **bounds) -> str | None:
    return Bounds(**bounds).reason_against(new, OLD, lambda text: len(text.split()))


@pytest.mark.parametrize(
    ("new", "expected"),
    [
        (OLD.replace("two", "2").replace("nine", "9"), None),
        (OLD.upper() + "!", None),  # case and punctuation are no words
        (OLD.removeprefix("one two "), None),
        ("zero and " + OLD, None),
        (OLD.removeprefix("one two three "), "edited_too_much"),
        ("zero " + OLD.replace("two", "2").replace("nine", "9"), "edited_too_much"),
    ],
)
def test_the_fraction_counts_words_changed_inserted_and_deleted(new, expected):
    assert reason(new, max_edit_fraction=0.2) == expected


def test_tokens_are_bounded_in_number_and_as_a_multiple():
    longer = OLD + " eleven twelve"
    assert reason(longer, max_instruction_tokens=12, max_growth=1.2) is None
    assert reason(longer, max_instruction_tokens=11) == "too_long"
    assert reason(longer, max_growth=1.19) == "grew_too_much"
    assert reason("one", max_instruction_tokens=1, max_growth=1) is None


@pytest.mark.parametrize(
    ("bounds", "error", "message"),
    [
        ({"max_edit_fraction": 0}, ValueError, "above 0 and at most 1, .*got max_edit_fraction=0"),
        ({"max_edit_fraction": 1.01}, ValueError, "at most 1"),
        ({"max_edit_fraction": "all"}, TypeError, "got max_edit_fraction='all'"),
        ({"max_edit_fraction": True}, TypeError, "got max_edit_fraction=True"),
        ({"max_instruction_tokens": 0}, ValueError, "max_instruction_tokens must be at least 1"),
        ({"max_instruction_tokens": 1.5}, TypeError, "a whole number of tokens or None"),
        ({"max_growth": 0.9}, ValueError, "a finite factor of at least 1, .*got max_growth=0.9"),
        ({"max_growth": math.inf}, ValueError, "a finite factor"),
        ({"max_growth": math.nan}, ValueError, "a finite factor"),
    ],
)
def test_a_bound_out_of_range_is_refused(bounds, error, message):
    with pytest.raises(error, match=message):
        Bounds(**bounds)
