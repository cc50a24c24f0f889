"""The metric that is used where none is given."""

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import dspy
from dspy.evaluate.metrics import normalize_text

from dspy_diffusion_infill.programs import signature_of

# "1,250.50", "-3", "+.5", "2e-3"; and the end of a sentence after it.
_NUMBER = re.compile(r"([-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:e[-+]?\d{1,3})?)[.!]?", re.I)
_MINUS = re.compile(r"(?<![\w)])-(?=[$€£]?\.?\d)")
_DECIMAL = re.compile(r"(?:(?<![\d.])\d+|(?<![\w.]))\.\d+(?!\.?\d)")


class ExactMatch:
    """1.0 where every labelled output field equals the prediction's, else 0.0.

    Two numbers are compared as numbers: 5 equals 5.0 and 1,000 equals 1000, -5 does not equal 5.
    Other texts are normalised as SQuAD does: NFD, lower case, without punctuation, articles and
    extra white space (``dspy.evaluate.normalize_text``). Minus signs and decimal points of numbers
    inside a text stay, and a text that would lose everything ("A", "+") is compared as it is, in
    any case.

    Of the labelled fields those count that the prediction carries: a label of a middle step that
    the program does not return says nothing. A prediction that carries none scores 0.0.

    Raises:
        ValueError: there is no field to compare.
    """

    def __init__(self, fields: tuple[str, ...]) -> None:
        if not fields:
            raise ValueError(
                "the examples label no output field of the program, so exact match has nothing "
                "to compare: pass metric="
            )
        self.fields = fields

    def __call__(self, example: dspy.Example, prediction: Any, trace: Any = None) -> float:
        """Compares the fields that this example labels.

        Raises:
            ValueError: it labels none of them.
        """
        check_labels(example, self.fields)
        answers = _values(prediction, [name for name in self.fields if name in example])
        equal = [is_same(str(example[name]), str(answer)) for name, answer in answers.items()]
        return float(bool(equal) and all(equal))


def labelled_fields(program: dspy.Module, examples: Sequence[dspy.Example]) -> tuple[str, ...]:
    """The output fields of the program's predictors that the examples label, in order.

    Raises:
        ValueError: some examples label output fields, and others none.
    """
    outputs = dict.fromkeys(
        name for p in program.predictors() for name in signature_of(p).output_fields
    )
    labelled = {name for example in examples for name in example.labels().keys()}
    fields = tuple(name for name in outputs if name in labelled)
    for example in examples if fields else ():
        check_labels(example, fields)
    return fields


def check_labels(example: dspy.Example, fields: Sequence[str]) -> None:
    """Raises ValueError unless the example labels one of the fields at least."""
    if not any(name in example for name in fields):
        raise ValueError(
            f"the example {dict(example.items())!r:.100} labels none of {list(fields)}, so exact "
            "match has nothing to compare: label it, leave it out, or pass metric="
        )


def is_same(gold: str, answer: str) -> bool:
    """Whether two texts are one answer, as ``ExactMatch`` sees it."""
    gold, answer = (text.replace("\N{MINUS SIGN}", "-").strip() for text in (gold, answer))
    numbers = _as_number(gold), _as_number(answer)
    if None not in numbers:
        return numbers[0] == numbers[1]
    for form in (_normalised, _bare):
        if form(gold) and form(answer):
            return form(gold) == form(answer)
    return gold.casefold() == answer.casefold()


def _as_number(text: str) -> Decimal | None:
    found = _NUMBER.fullmatch(text)
    if found is None or not any(map(str.isdigit, found[1])):
        return None
    return Decimal(found[1].replace(",", ""))


def _normalised(text: str) -> str:
    """As DSPy does it; what makes another number of a number is said in letters, which stay."""
    text = _MINUS.sub("minus ", text)
    text = _DECIMAL.sub(lambda found: found[0].replace(".", "point"), text)
    return normalize_text(text)


def _bare(text: str) -> str:
    """The words in lower case, articles too: the answer "A" of four is one."""
    return " ".join(re.sub(r"[^\w\s]|_", "", text.casefold()).split())


def _values(prediction: Any, names: Sequence[str]) -> dict[str, Any]:
    """Those of the fields that there are in whatever a program returns."""
    if isinstance(prediction, dspy.Example | Mapping):
        return {name: prediction[name] for name in names if name in prediction}
    return {name: getattr(prediction, name) for name in names if hasattr(prediction, name)}
