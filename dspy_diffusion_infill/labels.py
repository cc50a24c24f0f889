"""What a label is: one of a few short values that recur in an output field."""

import enum
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

_MOST_LABELS = 12
_LONGEST_LABEL = 40  # characters
_FEWEST_OF_A_LABEL = 3  # rows of each label from which labels count alike

Labels = tuple[str, ...]


def find_labels(outputs: Sequence[Mapping[str, Any]]) -> dict[str, Labels]:
    """The output fields whose values look like labels: at most 12 short ones that repeat.

    Of a list each element is a label. Returns the labels of each such field, sorted, as an LM
    writes them.
    """
    labels: dict[str, Labels] = {}
    for name in sorted({name for row in outputs for name in row}):
        values = Counter(text for row in outputs if name in row for text in label_texts(row[name]))
        if are_labels(values):
            labels[name] = tuple(sorted(values))
    return labels


def are_labels(values: Counter[str]) -> bool:
    """Whether values, with the number of times that each occurs, look like labels."""
    is_repeated = len(values) <= min(_MOST_LABELS, values.total() / 2)
    return is_repeated and all(0 < len(value) <= _LONGEST_LABEL for value in values)


def labels_of(outputs: Sequence[Mapping[str, Any]]) -> list[Hashable]:
    """Each row's label, or labels; the same for all where there are none, or few of one."""
    fields = find_labels(outputs)
    labels = [tuple(_label(row.get(name)) for name in fields) for row in outputs]
    is_frequent = all(labels.count(label) >= _FEWEST_OF_A_LABEL for label in set(labels))
    return list(labels) if is_frequent else [()] * len(outputs)


def label_texts(value: Any) -> tuple[str, ...]:
    """The texts that an LM writes for a value; of an enum member its value, of a list all items."""
    if isinstance(value, enum.Enum):
        return (str(value.value),)
    if isinstance(value, set | frozenset):
        return tuple(sorted(text for item in value for text in label_texts(item)))
    if isinstance(value, list | tuple):
        return tuple(text for item in value for text in label_texts(item))
    return (str(value),)


def _label(value: Any) -> tuple[str, ...]:
    return (type(value).__name__, *label_texts(value))
