"""Copies of programs, and their instructions."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, cast

import dspy

# What optimizers leave on their results: it would ride along in every copy.
_RIDERS = (
    "candidate_programs",
    "detailed_results",
    "total_calls",
    "trial_logs",
    "prompt_model_total_calls",
)


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
    memo = {id(lm): lm for predictor in program.predictors() if (lm := predictor.lm) is not None}
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
    """A copy of the program in which the named predictors have new instructions."""
    changed = copy_program(program)
    for name, predictor in changed.named_predictors():
        if name in changes:
            predictor.signature = signature_of(predictor).with_instructions(changes[name])
    return changed


def bound_to(program: dspy.Module, lm: dspy.BaseLM) -> dspy.Module:
    """A copy of the program in which every predictor asks this LM."""
    bound = copy_program(program)
    bound.set_lm(lm)
    return bound


def give_back_lms(program: dspy.Module, original: dspy.Module) -> None:
    """Binds each predictor of a copy to the LM that the original's has, or to none."""
    pairs = zip(program.predictors(), original.predictors(), strict=True)
    for predictor, before in pairs:
        predictor.lm = before.lm


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
