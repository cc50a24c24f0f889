"""The words of a text in any script.

Scripts that put no space between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese, Tibetan) have
no boundary that a program without a dictionary could find: each of their characters, with its
combining marks, counts as a word here. All other scripts are cut at what is no letter, mark or
digit, so that Tamil or Devanagari vowel signs stay inside of their words.
"""

from collections.abc import Sequence
from typing import Any

import regex

_UNSPACED = (
    r"\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Yi}"
    r"\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}"
)
_CHARACTER = rf"[[{_UNSPACED}]&&[\p{{L}}\p{{N}}]][\p{{M}}\u30fc\u3005]*"
_SPACED = rf"[[\w\p{{M}}\u200d]--[{_UNSPACED}]]"
_OTHER_PUNCTUATION = regex.compile(r"(?V1)[\p{P}--\p{ASCII}]")
_NO_WORD = regex.compile(r"[^\w\p{M}\s]|_")

WORD = regex.compile(rf"(?V1){_CHARACTER}|{_SPACED}+")
WORD_OR_DECIMAL = regex.compile(rf"(?V1)\d+\.\d+|{_CHARACTER}|{_SPACED}+")
TOKEN = regex.compile(rf"(?V1)\s*(?:{_CHARACTER}|{_SPACED}+|[^\s])|\s+$")
"""A word or a single other character, with the white space before it."""

_PHRASE = 8  # four words, or eight characters of an unspaced script


def words_of(text: str) -> list[str]:
    """The words in lower case, in order."""
    return WORD.findall(text.lower())


def folded(text: str) -> str:
    """The words in lower case with a space between two; a text without words as it is."""
    return " ".join(words_of(text)) if WORD.search(text) else text.strip()


def squashed(text: str) -> tuple[str, tuple[int, ...]]:
    """Letters and digits in lower case, and the place that each has in the text."""
    found = [(low, place) for place, c in enumerate(text) if c.isalnum() for low in c.lower()]
    return "".join(low for low, _ in found), tuple(place for _, place in found)


def phrases_of(text: str) -> set[tuple[str, ...]]:
    """Every four words in a row, or as many as are as long: two characters count as a word."""
    words = words_of(text)
    weights = [1 if is_character(word) else 2 for word in words]
    found: set[tuple[str, ...]] = set()
    for start in range(len(words)):
        weight = 0
        for end in range(start, len(words)):
            weight += weights[end]
            if weight >= _PHRASE:
                found.add(tuple(words[start : end + 1]))
                break
    return found


def is_character(word: str) -> bool:
    """Whether a word is one character of a script without spaces."""
    return _is_unspaced(word[:1])


def without_punctuation(text: str) -> str:
    """The text with spaces in place of punctuation, ASCII's left as it is."""
    return _OTHER_PUNCTUATION.sub(" ", text)


def bare(text: str) -> str:
    """The words in lower case without any other characters, articles kept."""
    return " ".join(_NO_WORD.sub("", text.casefold()).split())


def find_phrase(phrase: str, text: str) -> Any | None:
    """The match of a phrase in a text, in any case and as whole words; None where there is none.

    A number is not found in another (3 in 3.5). Between characters of a script without spaces every
    place is the end of a word.
    """
    words = phrase.split()
    if not words:
        return None
    before = "" if _is_unspaced(words[0][:1]) else r"(?<![\w\p{M}])(?<!\d[.,])"
    after = r"(?!\p{M})" if _is_unspaced(words[-1][-1:]) else r"(?![\w\p{M}])(?![.,]\d)"
    pattern = rf"{before}(?:{joined(words)}){after}"
    return regex.search(pattern, text, regex.IGNORECASE | regex.VERSION1)


def joined(words: Sequence[str]) -> str:
    """A pattern of these words with any white space between them."""
    return r"\s+".join(regex.escape(word, special_only=False) for word in words)


def _is_unspaced(character: str) -> bool:
    return regex.fullmatch(rf"(?V1)[{_UNSPACED}]", character) is not None
