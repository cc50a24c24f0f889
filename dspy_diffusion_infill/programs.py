"""Copies of programs, and the texts in them that may be edited."""

import copy
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import dspy
from pydantic.fields import FieldInfo

from dspy_diffusion_infill.marks import read_marks

# What optimizers leave on their results: it would ride along in every copy.
_RIDERS = (
    "candidate_programs",
    "detailed_results",
    "fold_scores",
    "total_calls",
    "trial_logs",
    "prompt_model_total_calls",
)

Parts = Literal["instructions", "field_descriptions", "prefixes"]
"""The kinds of texts of a predictor that may be edited."""
# What the name of a text calls its kind, and DSPy's name for it.
_OF_FIELDS: Mapping[Parts, tuple[str, str]] = {
    "field_descriptions": ("description", "desc"),
    "prefixes": ("prefix", "prefix"),
}


@dataclass(frozen=True, slots=True)
class Part:
    """Which text of a program.

    Attributes:
        predictor: the predictor's name in the program.
        kind: which of its texts.
        field: the output field that the text is of; empty for instructions.
    """

    predictor: str
    kind: Parts = "instructions"
    field: str = ""

    @classmethod
    def named(cls, name: str) -> "Part":
        """The part of that ``name``."""
        for kind, (word, _) in _OF_FIELDS.items():
            if found := re.fullmatch(rf"(.*): {word} of (\w+)", name, re.DOTALL):
                return cls(found[1], kind, found[2])
        return cls(name)

    @property
    def name(self) -> str:
        """The predictor's for its instructions, else as ``"self: description of answer"``."""
        if self.kind == "instructions":
            return self.predictor
        return f"{self.predictor}: {_OF_FIELDS[self.kind][0]} of {self.field}"

    def text_in(self, signature: type[dspy.Signature]) -> str:
        """The text."""
        if self.kind == "instructions":
            return signature.instructions
        return _field_text(signature.output_fields[self.field], self.kind)

    def put(self, signature: type[dspy.Signature], text: str) -> type[dspy.Signature]:
        """The signature with another text, to the character."""
        if self.kind == "instructions":
            return signature_with(signature, text)
        extra: dict[str, Any] = {_OF_FIELDS[self.kind][1]: text}
        changed = signature.with_updated_fields(self.field, **extra)
        return signature_with(changed, signature.instructions)


def parts_of(program: dspy.Module, kinds: Iterable[Parts]) -> Iterator[Part]:
    """The texts of all predictors that may be edited, but for their instructions.

    A description that nobody wrote is none: DSPy's stands for the field's name and is never shown.
    """
    for name, predictor in program.named_predictors():
        for field, info in signature_of(predictor).output_fields.items():
            for kind in kinds:
                text = "" if kind == "instructions" else _field_text(info, kind)
                if text and text != f"${{{field}}}":
                    yield Part(name, kind, field)


def texts_of(program: dspy.Module, names: Iterable[str]) -> dict[str, str]:
    """The texts of these parts, by name."""
    signatures = {name: signature_of(one) for name, one in program.named_predictors()}
    parts = {name: Part.named(name) for name in names}
    return {name: part.text_in(signatures[part.predictor]) for name, part in parts.items()}


def _field_text(field: FieldInfo, kind: Parts) -> str:
    extra = cast("dict[str, Any]", field.json_schema_extra)  # DSPy's fields have both
    return str(extra[_OF_FIELDS[kind][1]])


def signature_of(predictor: Any) -> type[dspy.Signature]:
    """The predictor's signature; DSPy's annotations also allow what only a constructor takes."""
    return cast("type[dspy.Signature]", predictor.signature)


def copy_program(program: dspy.Module) -> dspy.Module:
    """A deep copy that shares the bound LMs and leaves earlier optimizers' records behind.

    Raises:
        TypeError: some predictor of the copy is the original's own object, which a change of
            instructions would reach.
    """
    light = copy.copy(program)
    for name in _RIDERS:
        if name in vars(light):
            delattr(light, name)
    memo = {id(lm): lm for one in all_predictors(program).values() if (lm := one.lm)}
    try:
        copied = copy.deepcopy(light, memo)
    except Exception:
        copied = light.deepcopy()  # DSPy's own, which goes attribute by attribute
    originals = {id(predictor) for predictor in program.predictors()}
    shared = [name for name, predictor in copied.named_predictors() if id(predictor) in originals]
    if shared:
        raise TypeError(
            f"{type(program).__name__} cannot be copied: its copy shares the predictors "
            f"{shared} with the original. Give the module a __deepcopy__, or keep what cannot be "
            "copied (locks, sockets) out of its attributes"
        )
    return copied


def instructions_of(program: dspy.Module) -> dict[str, str]:
    """The instructions of each predictor, by name, as an LM gets them."""
    return {
        name: signature_of(predictor).instructions for name, predictor in program.named_predictors()
    }


def with_instructions(program: dspy.Module, changes: Mapping[str, str]) -> dspy.Module:
    """A copy of the program in which the named parts have new texts.

    Args:
        program: stays as it is.
        changes: by ``Part.name``, which for instructions is the predictor's. Others are left out.
    """
    changed, parts = copy_program(program), [Part.named(name) for name in changes]
    for name, predictor in changed.named_predictors():
        for part in parts:
            if part.predictor == name:
                text = changes[part.name]
                predictor.signature = part.put(signature_of(predictor), text)
    return changed


def signature_with(signature: type[dspy.Signature], instructions: str) -> type[dspy.Signature]:
    """The signature with these instructions, to the character.

    DSPy reads instructions through ``inspect.cleandoc``, which would take the indentation of a
    text's further lines away. A blank line in front keeps it, and is taken away itself.
    """
    is_kept = not instructions.strip() or inspect.cleandoc(instructions) == instructions
    return signature.with_instructions(instructions if is_kept else f"\n{instructions}")


def all_predictors(program: dspy.Module) -> dict[str, dspy.Predict]:
    """Every predictor by DSPy's name for it, those of frozen (compiled) parts too."""
    found: dict[str, dspy.Predict] = {}
    if isinstance(program, dspy.Predict):
        found["self"] = program
    _collect(program, "", found)
    return found


def is_awaitable_only(program: dspy.Module) -> bool:
    """Whether the program has ``aforward`` and no ``forward``."""
    forward, aforward = (
        inspect.getattr_static(program, name, None) for name in ("forward", "aforward")
    )
    return forward is None and aforward is not None


def output_fields(program: dspy.Module) -> dict[str, FieldInfo]:
    """The output fields of all predictors by name, those of frozen parts too."""
    return {
        name: field
        for predictor in all_predictors(program).values()
        for name, field in signature_of(predictor).output_fields.items()
    }


def _collect(module: dspy.Module, prefix: str, found: dict[str, dspy.Predict]) -> None:
    for name, value in vars(module).items():
        parts = {prefix + name: value}
        if isinstance(value, list | tuple):
            parts = {f"{prefix}{name}[{number}]": item for number, item in enumerate(value)}
        elif isinstance(value, dict):
            parts = {f"{prefix}{name}['{key}']": item for key, item in value.items()}
        for path, part in parts.items():
            if isinstance(part, dspy.Predict):
                if all(part is not one for one in found.values()):
                    found[path] = part
            elif isinstance(part, dspy.Module):
                _collect(part, f"{path}.", found)


def bound_to(program: dspy.Module, lm: dspy.BaseLM) -> dspy.Module:
    """A copy of the program in which every predictor asks this LM."""
    bound = copy_program(program)
    for predictor in all_predictors(bound).values():
        predictor.lm = lm
    return bound


def give_back_lms(program: dspy.Module, original: dspy.Module) -> None:
    """Binds each predictor of a copy to the LM that the original's has, or to none."""
    before = all_predictors(original)
    for name, predictor in all_predictors(program).items():
        predictor.lm = before[name].lm


def base_of(
    student: dspy.Module,
    names: Sequence[str] | None,
    lm: dspy.BaseLM | None,
    kinds: Sequence[Parts] = ("instructions",),
) -> tuple[dspy.Module, list[str], dict[str, str]]:
    """(a copy that is to be changed, the predictors to optimise, texts with their marks).

    The copy asks ``lm``, or the student's LMs where that is None, and has no marks. The texts are
    the instructions of all predictors, and of the predictors to optimise the others of ``kinds``.

    Raises:
        ValueError: a name is no predictor of the program, the program has none, or the marks in
            some instructions are wrong.
    """
    chosen, before = chosen_predictors(student, names), instructions_of(student)
    others = [part.name for part in parts_of(student, kinds) if part.predictor in chosen]
    before |= texts_of(student, others)
    bound = student if lm is None else bound_to(student, lm)
    unmarked = {name: _without_marks(name, text) for name, text in before.items()}
    return with_instructions(bound, unmarked), chosen, before


def _without_marks(name: str, instructions: str) -> str:
    try:
        return read_marks(instructions).text
    except ValueError as error:
        raise ValueError(f"the instructions of {name!r}: {error}") from error


def chosen_predictors(program: dspy.Module, names: Sequence[str] | None) -> list[str]:
    """The names of the predictors to optimise: all, or those asked for.

    Raises:
        ValueError: a name is no predictor of the program, or the program has none.
    """
    known = [name for name, _ in program.named_predictors()]
    if not known:
        raise ValueError(
            f"{type(program).__name__} has no predictor whose instructions could be optimised"
        )
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise ValueError(f"predictors must be among {known}, got {unknown}")
    return list(known if names is None else names)
