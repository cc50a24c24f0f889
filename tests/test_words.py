"""Words of any script; of ASCII text, what the plain pattern gives."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_diffusion_infill.template_adapter import first_label
from dspy_diffusion_infill.words import find_phrase, folded, phrases_of, words_of

ASCII = st.text(st.characters(max_codepoint=127), max_size=60)


@given(ASCII)
def test_of_ascii_text_the_words_are_what_they_always_were(text):
    old = re.findall(r"\w+", text.lower())
    assert words_of(text) == old
    assert folded(text) == (" ".join(old) if old else text.strip())
    grams = {tuple(old[k : k + 4]) for k in range(len(old) - 3)}
    assert phrases_of(text) == grams


@given(st.sampled_from(["not", "a b", "3", "x+"]), ASCII)
def test_of_ascii_text_a_phrase_is_found_where_it_always_was(phrase, text):
    words = r"\s+".join(map(re.escape, phrase.split()))
    old = re.search(rf"(?<!\w)(?<!\d[.,])(?:{words})(?!\w)(?![.,]\d)", text, re.IGNORECASE)
    new = find_phrase(phrase, text)
    assert (old and old.span()) == (new and new.span())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("这是好评吗？", ["这", "是", "好", "评", "吗"]),
        ("ラーメンです。", ["ラー", "メ", "ン", "で", "す"]),
        ("นี่คือ", ["นี่", "คื", "อ"]),
        ("இது நல்ல படம்", ["இது", "நல்ல", "படம்"]),
        ("यह अच्छा है।", ["यह", "अच्छा", "है"]),
        ("هذا جيد، نعم؟", ["هذا", "جيد", "نعم"]),
        ("Cafe\u0301 ok", ["cafe\u0301", "ok"]),
    ],
)
def test_words_keep_their_marks_and_unspaced_scripts_go_by_characters(text, words):
    assert words_of(text) == words


def test_a_phrase_of_an_unspaced_script_is_eight_characters():
    assert phrases_of("今天天气很好啊") == set()
    assert phrases_of("今天天气很好啊吧") == {tuple("今天天气很好啊吧")}
    assert phrases_of("one two three 四五") == {("one", "two", "three", "四", "五")}


@pytest.mark.parametrize(
    ("text", "labels", "label"),
    [
        ("我认为这是好评。", ["差评", "好评"], "好评"),
        ("これは肯定的です", ["否定的", "肯定的"], "肯定的"),
        ("ความรู้สึกคือเชิงบวกครับ", ["เชิงลบ", "เชิงบวก"], "เชิงบวก"),
        ("இது எதிர்மறை ஆகும்", ["நேர்மறை", "எதிர்மறை"], "எதிர்மறை"),
        ("الجواب: سلبي.", ["إيجابي", "سلبي"], "سلبي"),
        ("The answer is not the same.", ["the same", "not the same"], "not the same"),
    ],
)
def test_labels_are_found_in_sentences_of_any_script(text, labels, label):
    assert first_label(text, labels) == label


@pytest.mark.parametrize(("text", "label"), [("நல்லது", "நல்ல"), ("3.5", "3"), ("cats", "cat")])
def test_a_label_inside_of_another_word_is_not_found(text, label):
    with pytest.raises(ValueError, match="names none of"):
        first_label(text, [label])
