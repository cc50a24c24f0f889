"""An adapter under which a small LM can answer optimizers' prompts: one field a call."""

import contextlib
import random
from typing import Any

import dspy
from dspy.utils.exceptions import AdapterParseError

from dspy_diffusion_infill import TemplateAdapter
from rival_arms.ledger import is_task_signature

_TRIES = 16  # SmolLM2-135M ends its answer before the first token in up to 3 of 4 tries


class FieldByField(TemplateAdapter):
    """Sends the task's prompts as ``TemplateAdapter`` does, and asks for all other fields in turn.

    An output field is asked for alone: the text that completes "Name:" is its value, and the next
    field is asked for with it given. What cannot be read is asked for again, and is empty after
    sixteen tries. Each call is a new sample, by ``seed``.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._rng = random.Random(seed)

    def __call__(
        self,
        lm: dspy.BaseLM,
        lm_kwargs: dict[str, Any],
        signature: type[dspy.Signature],
        demos: list[dict[str, Any]],
        inputs: dict[str, Any],
    ) -> list[dict[str, Any]]:
        if is_task_signature(signature):
            return super().__call__(lm, lm_kwargs, signature, demos, inputs)
        options = {name: value for name, value in lm_kwargs.items() if name != "n"}
        num = lm_kwargs.get("n") or 1
        return [self._answer(lm, options, signature, inputs) for _ in range(num)]

    def _answer(
        self,
        lm: dspy.BaseLM,
        options: dict[str, Any],
        signature: type[dspy.Signature],
        inputs: dict[str, Any],
    ) -> dict[str, Any]:
        answers: dict[str, Any] = {}
        for name in signature.output_fields:
            alone = self._with_one_output(signature, name)
            answers[name] = self._asked(lm, options, alone, {**inputs, **answers})
        return answers

    def _with_one_output(
        self, signature: type[dspy.Signature], wanted: str
    ) -> type[dspy.Signature]:
        """The signature with that output alone; outputs before it are inputs."""
        fields: dict[str, Any] = {
            name: (field.annotation, dspy.InputField())
            for name, field in signature.input_fields.items()
        }
        for name, field in signature.output_fields.items():
            if name == wanted:
                fields[name] = (field.annotation, dspy.OutputField())
                break
            fields[name] = (field.annotation, dspy.InputField())
        return dspy.Signature(fields, signature.instructions)

    def _asked(
        self,
        lm: dspy.BaseLM,
        options: dict[str, Any],
        signature: type[dspy.Signature],
        inputs: dict[str, Any],
    ) -> Any:
        """The value of the one output field."""
        for _ in range(_TRIES):
            again = {**options, "seed": self._rng.randrange(2**31)}
            with contextlib.suppress(AdapterParseError):
                ((value,),) = (
                    one.values() for one in super().__call__(lm, again, signature, [], inputs)
                )
                return value
        (field,) = signature.output_fields.values()
        return "" if field.annotation is str else None
