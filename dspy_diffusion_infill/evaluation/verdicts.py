"""Reading a judge's verdict: the number that a completion ends with.

The forms are those that Prometheus's own parser accepts (``[RESULT] 3``, ``[RESULT] (3)``,
``[SCORE] 3``, ``Score: 3``, ``score of 3``, ``3/5``, ``3 out of 5``), and the decimals that
infilled rubrics draw (``[RESULT] 4.2``; the paper, J.3). The score must stand at the end: a
judge that goes on talking after it has not followed its prompt. A full stop may follow only what is
marked as a score (``[RESULT]``, ``[SCORE]``, ``Score:``): a sentence that ends with "a score of 5."
is prose, and may as well say that the response does not deserve it.
"""

import re
from dataclasses import dataclass
from typing import Literal

Problem = Literal["empty", "no score", "out of range"]

_NUMBER = r"[-+]?[0-9]+(?:\.[0-9]+)?"
_OPEN = r"[\s:*_`(\[]*"
_WORD = rf"\b(?:result|score)\b(?:\s+of\b)?{_OPEN}"
_MARK = rf"(?:\[\s*(?:result|score)\s*\]|\bscore\b[\s*_`]*:){_OPEN}"
_TOP = rf"\s*(?:\(\s*)?(?:/|out\s+of)\s*(?P<{{}}>{_NUMBER})"  # "/5", "out of 5"
_CLOSE = r"[\s)\]*_`]*\Z"
_CLOSE_OR_STOP = r"[\s.!)\]*_`\"'”\u2019]*\Z"
_VERDICT = re.compile(
    rf"{_MARK}(?:{_WORD})?(?P<marked>{_NUMBER})(?:{_TOP.format('marked_top')})?{_CLOSE_OR_STOP}"
    rf"|{_WORD}(?P<named>{_NUMBER})(?:{_TOP.format('named_top')})?{_CLOSE}"
    rf"|(?<![\w.,/-])(?P<bare>{_NUMBER}){_TOP.format('bare_top')}{_CLOSE}",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A completion as a score.

    Attributes:
        score: the number, in [low, high]; None where there is no readable one.
        problem: why there is none; None where there is one.
    """

    score: float | None
    problem: Problem | None = None


def read_verdict(text: str | None, *, low: float = 1, high: float = 5) -> Verdict:
    """The score that ``text`` ends with, or why it has none.

    Args:
        text: a judge's completion.
        low: the lowest score of the scale.
        high: the highest; ``3/5`` and ``3 out of 5`` count only where it is 5.

    Raises:
        ValueError: ``low`` is not below ``high``.
    """
    if not low < high:
        raise ValueError(f"low must be below high, got low={low} and high={high}")
    if text is None or not text.strip():
        return Verdict(None, "empty")
    found = _VERDICT.search(text)
    if found is None:
        return Verdict(None, "no score")
    score = float(found["marked"] or found["named"] or found["bare"])
    top = found["marked_top"] or found["named_top"] or found["bare_top"]
    if not low <= score <= high or (top is not None and float(top) != high):
        return Verdict(None, "out of range")
    return Verdict(score)


def parse_verdict(text: str | None, *, low: float = 1, high: float = 5) -> float | None:
    """The score that ``text`` ends with, in [low, high]; None where it has no readable one.

    Raises:
        ValueError: ``low`` is not below ``high``.
    """
    return read_verdict(text, low=low, high=high).score
