import pytest
from edit_cases import PLACES, leaks_of_a_compile

from dspy_diffusion_infill.contexts import WorkedExample
from dspy_diffusion_infill.infiller.leaks import LeakGuard, Likeness

ROWS = (
    WorkedExample({"text": "the parcel for Zwiebelfisch came late again"}, {"label": "bad"}, row=0),
    WorkedExample(
        {"text": "mail jo@vexler.org or call +49 170 555 1234"}, {"label": "good"}, row=1
    ),
    WorkedExample({"text": "ask for order kestrel7f3a9c"}, {"label": "good"}, row=2),
)
GUARD = LeakGuard(ROWS, (("bad", "good"),))


def kind(text: str, original: str = "", guard: LeakGuard = GUARD) -> str | None:
    found = guard.find(text, original)
    return None if found is None else found.kind


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("say the parcel for", None),
        ("the parcel for zwei came", None),
        ("Came late again? Say bad or good.", None),
        ("the parcel, came late", None),
        ("when zwiebelfisch is meant", "name"),
        ("when ZWIE BELFISCH is meant", "name"),
        ("when Zwiebelfosch is meant", "name"),
        ("write to jo @ vexler . org", "mail"),
        ("call 49-170-5551234 now", "number"),
        ("call 49-170-5551284 now", "number"),
        ("call 555", None),
        ("it is Kestrel-7F3A9C", "code"),
        ("it is kestrel7f3b9c", "code"),
        ("it is a kestrel", None),
        ("mail jo vexler org or call", "phrase"),
    ],
)
def test_copies_and_near_copies_are_found(text, expected):
    assert kind(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("on some evenings the river froze", "phrase"),
        ("on some evenimgs the river froze", "near copy"),
        ("onsome eve nings theriver froze", "near copy"),
        ("on evenings a river froze", None),
    ],
)
def test_phrases_are_found_with_slips_and_whatever_the_spaces(text, expected):
    guard = LeakGuard((WorkedExample({"text": "when on some evenings the river froze over"}, {}),))
    assert kind(text, guard=guard) == expected


def test_a_short_value_is_found_with_a_slip_too():
    guard = LeakGuard((WorkedExample({"word": "elephant"}, {"plural": 42.5}),))
    assert kind("as elephamt", guard=guard) == "value"
    assert kind("as elegant", guard=guard) is None
    assert kind("such as 42.5", guard=guard) == "value"


def test_what_the_original_says_may_stay():
    text = "Zwiebelfisch asks: the parcel for Zwiebelfisch"
    assert kind(text + ", please", original=text) is None
    assert kind(text + " kestrel7f3a9c", original=text) == "code"


def test_words_that_the_old_text_already_took_from_an_example_may_stay():
    guard = LeakGuard(
        (WorkedExample({"text": "the staff were so kind to us"}, {"label": "positive"}),)
    )
    assert kind("say the staff were so kind", "judge it", guard) == "phrase"
    assert kind("the staff were so kind", "the staff were so kind, or?", guard) is None


def test_copies_inside_of_lists_and_models_are_copies():
    nested = {"pages": [{"text": "the old mill by the river"}]}
    guard = LeakGuard((WorkedExample(nested, {"answer": "x"}),))
    assert kind("see the old mill by", guard=guard) == "phrase"
    assert kind("see the new mill by", guard=guard) is None


@pytest.mark.parametrize(
    ("value", "copy", "other"),
    [
        ("今天的天气真是非常好", "请看今天的天气真是非常", "请看明天的天气"),
        ("この映画はとても面白かった", "「この映画はとても面白", "この本は"),
        ("இந்த படம் மிகவும் நன்றாக இருந்தது", "சொல் இந்த படம் மிகவும் நன்றாக", "இந்த படம் நன்று"),
    ],
)
def test_copies_are_found_in_any_script(value, copy, other):
    guard = LeakGuard((WorkedExample({"text": value}, {"label": "x"}),))
    assert kind(copy, guard=guard) is not None
    assert kind(other, guard=guard) is None


def test_a_likeness_names_the_row_and_holds_none_of_its_other_words():
    found = GUARD.find("send Zwiebelfosch a box", "")
    assert found == Likeness(0, "text", "Zwiebelfosch", 0.917, "name")
    assert GUARD.nearest("the parcel came early") == Likeness(
        0, "text", "the parcel came early", pytest.approx(0.76, abs=0.1)
    )
    assert LeakGuard(()).nearest("the parcel") is None


@pytest.mark.parametrize(
    "text", ["say the ordqr of last", "say the rder of last", "the qrder of last"]
)
def test_a_slip_in_a_word_of_five_letters_is_one(text):
    guard = LeakGuard((WorkedExample({"text": "what the order of last week cost"}, {}),))
    assert kind(text, guard=guard) == "near copy"
    assert kind("say the odour of last", guard=guard) is None


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("place", PLACES)
def test_a_canary_in_a_row_or_demo_never_comes_out(place, seed):
    """The denoiser puts it, or a disguise, into most proposals, and every trial is kept."""
    leaks, num_tried, _ = leaks_of_a_compile(seed, place)
    assert num_tried > 1 and leaks == []


@pytest.mark.parametrize("place", PLACES)
def test_canaries_come_out_where_the_guard_is_off(place):
    assert any(leaks_of_a_compile(seed, place, leaks="off")[0] for seed in range(2))
