"""Details that tell of one person or thing, found by pattern: names, mails, numbers, codes."""

from collections.abc import Iterator, Sequence
from typing import Literal

import regex

DetailKind = Literal["name", "mail", "number", "code"]

_MAIL = regex.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
_NUMBER = regex.compile(r"\+?\(?\d+\)?(?:[ .-]?\(?\d+\)?|,\d{3}(?!\d))*")
_CODE = regex.compile(r"\b(?=\w*\d)(?=\w*\p{L})\w{6,}\b")
_CAPITALISED = r"\p{Lu}[\p{L}\p{M}'\u2019-]+"
_NAME = regex.compile(rf"\b{_CAPITALISED}(?: {_CAPITALISED})*")
_WORD = regex.compile(r"\b\p{L}[\p{L}\p{M}'\u2019-]+")
_SENTENCE_STARTS = frozenset('.!?:\n"“„«([*•-')

_FEWEST_DIGITS = 4
_SHORTEST_NAME = 4  # letters
_MOST_CAPITALISED = 0.35  # of the words inside of sentences; above it (German) it tells nothing


def find_details(texts: Sequence[str]) -> list[list[tuple[DetailKind, str]]]:
    """The details of each text.

    - ``mail``: an address.
    - ``number``: of at least four digits, in groups or not.
    - ``code``: a word of letters and digits, at least six characters.
    - ``name``: a word with a capital inside of a sentence, of at least four letters, which no text
      has in lower case; and several such words in a row. Where every third word has a capital, as
      in German, only the latter.
    """
    words = [[(m.start(), m[0]) for m in _WORD.finditer(text)] for text in texts]
    inside = {
        word
        for text, own in zip(texts, words, strict=True)
        for start, word in own
        if not _begins(text, start)
    }
    has_single = sum(w[0].isupper() for w in inside) <= _MOST_CAPITALISED * len(inside)
    common = {word for own in words for _, word in own if word[0].islower()}
    return [[*_numbers_and_codes(text), *_names(text, common, has_single)] for text in texts]


def _numbers_and_codes(text: str) -> Iterator[tuple[DetailKind, str]]:
    for match in _MAIL.finditer(text):
        yield "mail", match[0]
    for match in _NUMBER.finditer(text):
        if sum(c.isdigit() for c in match[0]) >= _FEWEST_DIGITS:
            yield "number", match[0]
    for match in _CODE.finditer(text):
        yield "code", match[0]


def _names(text: str, common: set[str], has_single: bool) -> Iterator[tuple[DetailKind, str]]:
    for match in _NAME.finditer(text):
        words = match[0].split(" ")
        # Any word has a capital at the beginning of a sentence.
        if _begins(text, match.start()) and (len(words) == 1 or words[0].lower() in common):
            words = words[1:]
        if len(words) > 1:
            yield "name", " ".join(words)
        for word in words if has_single else ():
            if len(word) >= _SHORTEST_NAME and word.lower() not in common:
                yield "name", word


def _begins(text: str, place: int) -> bool:
    """Whether a sentence begins at a place."""
    before = text[:place].rstrip(" \t\r")
    return not before or before[-1] in _SENTENCE_STARTS
