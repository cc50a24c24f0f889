"""GSM8K: the number that a solution ends with, and exact match.

Both rules are those of EleutherAI's evaluation harness, with which the published figures were made:
*strict* wants ``#### 72``, *flexible* takes whatever its pattern matches last. Three dots at the
end of an answer are such a match, there as here: that answer has no number.
"""

import re
from typing import Any, Literal

import dspy

Rule = Literal["strict", "flexible"]
RULES: tuple[Rule, ...] = ("strict", "flexible")

_STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_NUMBER = re.compile(r"-?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)")


def gsm8k_answer(text: str, *, rule: Rule = "strict") -> str | None:
    """The answer of a solution as digits: no commas, no dollar signs, without one final dot.

    Args:
        text: a gold or a generated solution.
        rule: ``strict`` is what first follows ``#### ``; ``flexible`` the last match of
            ``(-?[$0-9.,]{2,})|(-?[0-9]+)``.

    Returns:
        A string that ``float`` takes, such as ``"72"`` or ``"-3.5"``; None where nothing matches,
        or what matches is no number.

    Raises:
        ValueError: unknown rule.
    """
    if rule == "strict":
        found = _STRICT.search(text)
        return None if found is None else _as_number(found[1])
    if rule == "flexible":
        matches = [match[0] for match in _FLEXIBLE.finditer(text)]
        return _as_number(matches[-1]) if matches else None
    raise ValueError(f"rule must be one of {RULES}, got {rule!r}")


def exact_match(
    example: dspy.Example, prediction: Any, trace: Any = None, *, rule: Rule = "flexible"
) -> float:
    """1.0 where the prediction's answer equals the gold one as a string, else 0.0."""
    gold = gsm8k_answer(example.answer)
    return float(gold is not None and gsm8k_answer(prediction.answer or "", rule=rule) == gold)


def _as_number(text: str) -> str | None:
    digits = text.replace(",", "").replace("$", "").removesuffix(".")
    return digits if _NUMBER.fullmatch(digits) else None
