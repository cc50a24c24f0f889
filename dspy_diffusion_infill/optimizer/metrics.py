"""The metric that is used where none is given."""

from typing import Any

import dspy
from dspy.evaluate.metrics import normalize_text

from dspy_diffusion_infill.signatures import signature_of


class ExactMatch:
    """1.0 where every labelled output field equals the prediction's, else 0.0.

    Both are normalised as SQuAD does: NFD, lower case, without punctuation, articles and extra
    white space (``dspy.evaluate.normalize_text``).
    """

    def __init__(self, fields: tuple[str, ...]) -> None:
        if not fields:
            raise ValueError(
                "the examples label no output field of the program, so exact match has nothing "
                "to compare: pass metric="
            )
        self.fields = fields

    def __call__(self, example: dspy.Example, prediction: Any, trace: Any = None) -> float:
        """Compares the fields that this example labels."""
        fields = [name for name in self.fields if name in example]
        pairs = [(str(example[name]), str(getattr(prediction, name, ""))) for name in fields]
        return float(all(normalize_text(gold) == normalize_text(answer) for gold, answer in pairs))


def labelled_fields(program: dspy.Module, examples: list[dspy.Example]) -> tuple[str, ...]:
    """The output fields of the program's predictors that the examples label, in order."""
    outputs = dict.fromkeys(
        name for p in program.predictors() for name in signature_of(p).output_fields
    )
    labelled = {name for example in examples for name in example.labels().keys()}
    return tuple(name for name in outputs if name in labelled)
