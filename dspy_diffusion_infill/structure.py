"""What looks like structure in a text: code, tables, JSON, tags, addresses, numbers with units.

Prose around it can be reworded; a changed brace, unit or link makes it wrong.
"""

import json
from collections.abc import Iterator
from typing import Literal

import regex
from markdown_it import MarkdownIt

Structure = Literal["code", "table", "json", "tag", "url", "number"]

# Without HTML blocks, in which Markdown knows no code; prompts put code between tags.
_MARKDOWN = MarkdownIt("zero").enable(["fence", "table", "list", "blockquote"])
_BLOCKS: dict[str, Structure] = {"fence": "code", "table_open": "table"}
_OPENING = regex.compile(r"\{|\[(?:\s*\[)*")
_LINE_END = regex.compile(r"\r\n?|\n|\Z")  # as markdown-it counts lines

_NAME = r"[\p{L}_][\w.:-]*"
_TAG = regex.compile(
    rf"""</?{_NAME}(?:\s+{_NAME}(?:\s*=\s*(?:"[^"<>]*"|'[^'<>]*'|[^\s"'<>=]+))?)*+\s*/?>|<!--.*?-->""",
    regex.DOTALL,
)
# In running text a full stop after an address is not part of it, nor is a bracket around it.
_URL = regex.compile(
    r"(?<![A-Za-z0-9])(?:[a-z][a-z0-9+.-]{1,15}://|www\.|mailto:)"
    r"(?:\([^\s()<>]*\)|[^\s()<>\[\]{}\"`\u3000-\u303f\uff00-\uffef])+(?<![.,;:!?'\"*_])",
    regex.IGNORECASE,
)

_CODES = r"USD|EUR|GBP|JPY|CNY|INR|CHF|CAD|AUD|KRW|BRL"
_SYMBOLS = (  # as written, in their own case
    r"km/h|m/s|[nµμmcdk]?m[²³23]?|[mkµμ]?g|[mcd]?[lL]|[nµμm]?s|h|min|hr?s?|mph|fps|rpm|"
    r"ft|yd|mi|lbs?|oz|ha|[kMGT]?Hz|[KkMGTP]i?B|[kMG]?bit/s|[kMG]bps|[mk]?V|[mkMG]?W|[kMG]?Wh|"
    r"mAh|k?cal|k?J|[hk]?Pa|dB|px|pt|dpi|" + _CODES
)
_NAMES = (  # in any case
    r"(?:nano|micro|milli|centi|kilo|mega|giga)?(?:met(?:er|re)|gram|second|lit(?:er|re)|watt|"
    r"hertz|byte|calorie)s?|minutes?|hours?|days?|weeks?|months?|years?|inch(?:es)?|feet|foot|"
    r"yards?|miles?|pounds?|ounces?|tons?|tonnes?|degrees?|percent|per\ cent|kelvin|celsius|"
    r"fahrenheit|dollars?|euros?|cents?|pixels?|volts?"
)
_UNSPACED = (
    r"公里|千米|厘米|毫米|米|公斤|千克|克|吨|升|元|円|秒|分钟|小时|時間|天|日|周|年|度|人民币"
)
_DIGITS = r"(?:\d+(?:[.,\u00a0\u202f']\d+)*|[.,]\d+)"
_GAP = r"[ \u00a0\u2009\u202f-]?"
_NUMBER = regex.compile(
    rf"""(?<![A-Za-z0-9_])(?<!\d[.,])(?!\d{{4}}s\b)(?:
        (?:[A-Z]{{0,3}}\p{{Sc}}|\b(?:{_CODES})){_GAP}{_DIGITS}(?:{_GAP}(?:[kKMB]|[mb]n|[mbtr]+illion)\b)?
      | [-+\u2212±]?{_DIGITS}(?:{_GAP}[-\u2013\u2014/x\u00d7]{_GAP}{_DIGITS})?{_GAP}(?:
            \p{{Sc}} | [%‰] | °\s?[CFK]?(?![A-Za-z])
          | (?:{_SYMBOLS})(?![\p{{Latin}}\d_]) | (?i:{_NAMES})(?![\p{{Latin}}\d_]) | {_UNSPACED})
    )""",
    regex.VERBOSE,
)


def find_structure(text: str) -> Iterator[tuple[Structure, int, int]]:
    """The (kind, start, end) of everything in a text that looks like structure.

    Passages may overlap: a table can hold numbers.

    - ``code`` and ``table``: fenced code and tables of GitHub's Markdown, in lists and quotes too;
      a fence that is never closed goes to the end, as in Markdown.
    - ``json``: objects, and lists that are not empty, that ``json`` can read.
    - ``tag``: opening, closing and empty XML tags, and comments; not what stands between them.
    - ``url``: with a scheme or ``www.``.
    - ``number``: with a unit of measure, time or money beside it ("5 km", "20 %", "$5"); a count
      ("3 sentences") is none.
    """
    yield from _blocks(text)
    yield from _json(text)
    patterns: dict[Structure, regex.Pattern[str]] = {"tag": _TAG, "url": _URL, "number": _NUMBER}
    for kind, pattern in patterns.items():
        for match in pattern.finditer(text):
            yield kind, match.start(), match.end()


def _blocks(text: str) -> Iterator[tuple[Structure, int, int]]:
    if not regex.search(r"```|~~~|\|", text):
        return
    starts = [0, *(match.end() for match in _LINE_END.finditer(text))]
    for token in _MARKDOWN.parse(text):
        if (kind := _BLOCKS.get(token.type)) and token.map:
            first, last = token.map
            yield kind, starts[first], starts[min(last, len(starts) - 1)]


def _json(text: str) -> Iterator[tuple[Structure, int, int]]:
    position = 0
    while opening := _OPENING.search(text, position):
        position = opening.end()
        # Of many brackets in a row the first and the last: to try each would take for ever.
        for start in dict.fromkeys((opening.start(), opening.end() - 1)):
            if end := _end_of_json(text, start):
                yield "json", start, end
                position = end
                break


def _end_of_json(text: str, start: int) -> int | None:
    """Where the object or list ends that begins here; None where ``json`` reads none."""
    try:
        value, end = json.JSONDecoder().raw_decode(text, start)
    except (ValueError, RecursionError):
        return None
    return None if value == [] else end
