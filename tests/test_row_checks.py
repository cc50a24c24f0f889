"""One check over all rows, before any call, that names row and field."""

import enum
from typing import Literal

import dspy
import pytest

from dspy_diffusion_infill.optimizer.checks import check_student
from dspy_diffusion_infill.optimizer.row_checks import check_rows


class Two(dspy.Module):
    """Takes a text and perhaps a tone; writes a label that may be missing, and a note."""

    def __init__(self):
        super().__init__()
        self.first = dspy.Predict("text -> note")
        self.second = dspy.Predict("note -> label: Optional[str], kind: Literal['a', 'b']")

    def forward(self, text, tone="plain"):
        return self.second(note=self.first(text=text).note)


class Anything(dspy.Module):
    def __init__(self):
        super().__init__()
        self.step = dspy.Predict("text -> label")

    def forward(self, **inputs):
        return self.step(**inputs)


class OtherNameOfSelf(dspy.Module):
    def __init__(this):  # noqa: N805
        super().__init__()
        this.step = dspy.Predict("text -> label")

    def forward(this, text):  # noqa: N805
        return this.step(text=text)


def row(*inputs, **values):
    return dspy.Example(**values).with_inputs(*(inputs or ("text",)))


GOOD = {
    "a row": (Two(), row(text="x", kind="a", label="y")),
    "an input with a default": (Two(), row("text", "tone", text="x", tone="y")),
    "a label that may be missing": (Two(), row(text="x", label=None)),
    "a column of no field": (Two(), row(text="x", comment=None)),
    "a forward whose self has another name": (OtherNameOfSelf(), row(text="x")),
    "any inputs": (Anything(), row("text", "extra", text="x", extra=1)),
    "more inputs than a predictor takes": (
        dspy.Predict("text -> label"),
        row("text", "extra", text="x", extra=1),
    ),
    "emoji": (Two(), row(text="\N{GRINNING FACE}", label="\U0001f469\u200d\U0001f4bb")),
    "chain of thought": (dspy.ChainOfThought("text -> label"), row(text="x", label="y")),
}


@pytest.mark.parametrize("name", GOOD)
def test_rows_that_can_be_run_pass(name):
    program, good = GOOD[name]
    check_rows([good], program, name="trainset")


PREDICT = dspy.Predict("text -> label: str")
BAD = {
    "no input": (PREDICT, row("text", label="a"), "has no field 'text', which with_inputs names"),
    "a misspelt input": (PREDICT, row("txt", text="x"), "'txt'.*did you mean 'text'"),
    "another input": (PREDICT, row("note", note="x"), "no input 'text', which the program takes"),
    "an input too many": (Two(), row("text", "ton", text="x", ton="y"), "did you mean 'tone'"),
    "a chain's input": (dspy.ChainOfThought("text -> label"), row("q", q="x"), "no input 'text'"),
    "None": (PREDICT, row(text="x", label=None), r"trainset\[1\]\['label'\] is None"),
    "NaN": (PREDICT, row(text="x", label=float("nan")), r"trainset\[1\]\['label'\] is nan"),
    "NaN where None may be": (Two(), row(text="x", label=float("nan")), "'label'.* is nan"),
    "half an emoji": (PREDICT, row(text="cut \ud83d", label="a"), r"\['text'\] holds \\ud83d"),
    "half in a list": (PREDICT, row(text=["a", {"k": "\udc00"}]), r"\['text'\] holds \\udc00"),
    "half in a key": (PREDICT, row(text="x", extra={"\ud83d": 1}), r"\['extra'\] holds \\ud83d"),
    "half in a column of no field": (PREDICT, row(text="x", note="\ud83d"), r"\['note'\] holds"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_named_with_its_field(name):
    program, bad, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        check_rows([row(text="good", label="a", kind="a"), bad], program, name="trainset")


def test_rows_without_any_input_name_are_refused():
    bare = dspy.Example(text="x", label="a").with_inputs()
    with pytest.raises(ValueError, match=r"valset\[0\] names no input"):
        check_rows([bare], PREDICT, name="valset")


class AsyncForward(Two):
    async def forward(self, text):
        return await self.first.acall(text=text)


class OnlyAforward(dspy.Module):
    def __init__(self):
        super().__init__()
        self.step = dspy.Predict("text -> label")

    async def aforward(self, text):
        return await self.step.acall(text=text)


@pytest.mark.parametrize("program", [AsyncForward(), OnlyAforward()])
def test_a_program_that_can_only_be_awaited_is_refused_with_the_way_out(program):
    with pytest.raises(TypeError, match=r"hand in dspy\.syncify"):
        check_student(program, has_lm=True)


def test_a_program_that_dspy_made_callable_is_taken():
    check_student(dspy.syncify(OnlyAforward()), has_lm=True)


class Kind(enum.Enum):
    A = "a"


def test_typed_labels_are_labels():
    program = dspy.Predict(dspy.Signature({"text": (str, dspy.InputField())}, "Say it."))
    program.signature = program.signature.append("kind", dspy.OutputField(), Kind)
    program.signature = program.signature.append("tone", dspy.OutputField(), Literal[1, 2])
    check_rows([row(text="x", kind=Kind.A, tone=1)], program, name="trainset")
