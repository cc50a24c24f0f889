"""What a label is: one of a few short values that recur in an output field."""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

_MOST_LABELS = 12
_LONGEST_LABEL = 40  # characters
_FEWEST_OF_A_LABEL = 3  # rows of each label from which labels count alike

Labels = tuple[str, ...]


def find_labels(outputs: Sequence[Mapping[str, Any]]) -> dict[str, Labels]:
    """The output fields whose values look like labels: at most 12 short ones that repeat."""
    labels: dict[str, Labels] = {}
    for name in sorted({name for row in outputs for name in row}):
        values = Counter(str(row[name]) for row in outputs if name in row)
        repeats = len(values) <= min(_MOST_LABELS, sum(values.values()) / 2)
        if repeats and all(0 < len(value) <= _LONGEST_LABEL for value in values):
            labels[name] = tuple(sorted(values))
    return labels


def labels_of(outputs: Sequence[Mapping[str, Any]]) -> list[Hashable]:
    """Each row's label, or labels; the same for all where there are none, or few of one."""
    fields = find_labels(outputs)
    labels = [tuple(str(row.get(name)) for name in fields) for row in outputs]
    is_frequent = all(labels.count(label) >= _FEWEST_OF_A_LABEL for label in set(labels))
    return list(labels) if is_frequent else [()] * len(outputs)
