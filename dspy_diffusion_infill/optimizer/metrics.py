"""The metric that is used where none is given."""

import enum
import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from decimal import Decimal
from typing import Any

import dspy
from dspy.evaluate.metrics import normalize_text
from pydantic import BaseModel

from dspy_diffusion_infill.optimizer.options import Scoring
from dspy_diffusion_infill.words import bare, without_punctuation

# "1,250.50", "-3", "+.5", "2e-3"; and the end of a sentence after it.
_NUMBER = re.compile(r"([-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:e[-+]?\d{1,3})?)[.!]?", re.I)
_MINUS = re.compile(r"(?<![\w)])-(?=[$€£]?\.?\d)")
_OPTION = re.compile(r"\b(?:a|an|the)\b(?!\s+\w)", re.I)
_DECIMAL = re.compile(r"(?:(?<![\d.])\d+|(?<![\w.]))\.\d+(?!\.?\d)")


logger = logging.getLogger(__name__)


class ExactMatch:
    """1.0 where every labelled output field equals the prediction's, else 0.0.

    Two numbers are compared as numbers: 5 equals 5.0 and 1,000 equals 1000, -5 does not equal 5.
    Other texts are normalised as SQuAD does: NFD, lower case, without punctuation, articles and
    extra white space (``dspy.evaluate.normalize_text``), and without the punctuation of other
    scripts. Minus signs and decimal points of numbers inside a text stay, and so does an "A" before
    no word, which is an option. A text that would lose everything ("+") is compared as it is, in
    any case. Typed values are compared by element and type (``is_same``).

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
        equal = [is_same(example[name], answer) for name, answer in answers.items()]
        return float(bool(equal) and all(equal))


def with_metric(
    scoring: Scoring, outputs: Iterable[str], data: Mapping[str, Sequence[dspy.Example]]
) -> Scoring:
    """The scoring with a metric: exact match over the labelled fields where it has none.

    Args:
        scoring: with a metric or without.
        outputs: the program's output fields, in order.
        data: the rows that are scored, by name, such as ``valset``.

    Raises:
        ValueError: no row, or not every row, labels an output field of the program.
    """
    if scoring.metric is not None:
        return scoring
    metric = ExactMatch(labelled_fields(outputs, data))
    logger.info("no metric was given: normalised exact match over %s", ", ".join(metric.fields))
    return replace(scoring, metric=metric)


def labelled_fields(
    outputs: Iterable[str], data: Mapping[str, Sequence[dspy.Example]]
) -> tuple[str, ...]:
    """The output fields that the examples label, in order.

    Raises:
        ValueError: some examples label output fields, and others none; it names data set and row.
    """
    labelled = {name for rows in data.values() for row in rows for name in row.labels().keys()}
    fields = tuple(name for name in outputs if name in labelled)
    for name, rows in data.items() if fields else ():
        for number, row in enumerate(rows):
            check_labels(row, fields, place=f"{name}[{number}]: ")
    return fields


def check_labels(example: dspy.Example, fields: Sequence[str], *, place: str = "") -> None:
    """Raises ValueError unless the example labels one of the fields at least."""
    if not any(name in example for name in fields):
        raise ValueError(
            f"{place}the example {dict(example.items())!r:.100} labels none of {list(fields)}, so "
            "exact match has nothing to compare: label it, leave it out, or pass metric="
        )


def is_same(gold: Any, answer: Any) -> bool:
    """Whether two values are one answer, as ``ExactMatch`` sees it.

    An enum member equals its value and its name; a model or dataclass the same fields in a dict,
    those left out being the defaults; a list, also in a text with commas or as JSON, one with the
    same items in the same order, a set in any order.
    """
    gold, answer = _parsed(gold, answer), _parsed(answer, gold)
    gold, answer = _unwrapped(gold, answer), _unwrapped(answer, gold)
    if isinstance(gold, Mapping) or isinstance(answer, Mapping):
        return _same_fields(gold, answer)
    if isinstance(gold, set | frozenset) or isinstance(answer, set | frozenset):
        return _same_items(gold, answer)
    if isinstance(gold, list | tuple) or isinstance(answer, list | tuple):
        is_pair = isinstance(gold, list | tuple) and isinstance(answer, list | tuple)
        return is_pair and len(gold) == len(answer) and all(map(is_same, gold, answer))
    return is_same_text(str(gold), str(answer))


def is_same_text(gold: str, answer: str) -> bool:
    """Whether two texts are one answer: as numbers, or normalised, or bare."""
    gold, answer = (text.replace("\N{MINUS SIGN}", "-").strip() for text in (gold, answer))
    numbers = _as_number(gold), _as_number(answer)
    if None not in numbers:
        return numbers[0] == numbers[1]
    for form in (_normalised, bare):
        if form(gold) and form(answer):
            return form(gold) == form(answer)
    return gold.casefold() == answer.casefold()


def _unwrapped(value: Any, other: Any) -> Any:
    """An enum member as the value or name that the other may be, a model as its fields."""
    if isinstance(value, enum.Enum) and not isinstance(other, enum.Enum):
        return value.name if isinstance(other, str) and other == value.name else value.value
    if isinstance(value, BaseModel):
        return dict(value) if not isinstance(other, Mapping) else _with_defaults(value, other)
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    return value


def _with_defaults(model: BaseModel, given: Mapping[str, Any]) -> dict[str, Any]:
    """The model's fields, without those that are left out of the other and have their default."""
    return {
        name: value
        for name, value in dict(model).items()
        if name in given or value != type(model).model_fields[name].get_default()
    }


def _parsed(value: Any, other: Any) -> Any:
    """A text as the list or mapping that it is compared with; anything else as it is."""
    has_items = isinstance(other, list | tuple | set | frozenset)
    has_fields = isinstance(other, Mapping | BaseModel) or is_dataclass(other)
    if not isinstance(value, str) or not (has_items or has_fields):
        return value
    try:
        parsed = json.loads(value)
    except ValueError:
        return [part.strip() for part in value.split(",")] if has_items else value
    return parsed if isinstance(parsed, list | dict) else [parsed]


def _same_fields(gold: Any, answer: Any) -> bool:
    if not (isinstance(gold, Mapping) and isinstance(answer, Mapping)):
        return False
    one, other = ({str(key): value for key, value in m.items()} for m in (gold, answer))
    return one.keys() == other.keys() and all(is_same(one[key], other[key]) for key in one)


def _same_items(gold: Any, answer: Any) -> bool:
    """Whether two collections have the same items in any order."""
    kinds = (list, tuple, set, frozenset)
    if not (isinstance(gold, kinds) and isinstance(answer, kinds)) or len(gold) != len(answer):
        return False
    left = list(answer)
    for item in gold:
        found = next((k for k, one in enumerate(left) if is_same(item, one)), None)
        if found is None:
            return False
        del left[found]
    return True


def _as_number(text: str) -> Decimal | None:
    found = _NUMBER.fullmatch(text)
    if found is None or not any(map(str.isdigit, found[1])):
        return None
    return Decimal(found[1].replace(",", ""))


def _normalised(text: str) -> str:
    """As DSPy does it, for the punctuation of all scripts.

    What makes another number of a number is said in letters, which stay, and so does an "A" that
    no word follows: it is an option, and no article.
    """
    text = _MINUS.sub("minus ", text)
    text = _DECIMAL.sub(lambda found: found[0].replace(".", "point"), text)
    text = _OPTION.sub(lambda found: f"{found[0]}option", text)
    return normalize_text(without_punctuation(text))


def _values(prediction: Any, names: Sequence[str]) -> dict[str, Any]:
    """Those of the fields that there are in whatever a program returns."""
    if isinstance(prediction, dspy.Example | Mapping):
        return {name: prediction[name] for name in names if name in prediction}
    return {name: getattr(prediction, name) for name in names if hasattr(prediction, name)}
