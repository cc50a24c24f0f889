"""What makes two searches the same: a journal counts only for the search that wrote it."""

import hashlib
import inspect
import json
from collections.abc import Sequence
from typing import Any

import dspy

from dspy_diffusion_infill.programs import signature_of

_PLAIN = (str, int, float, bool, type(None))
_SECRETS = ("api_key", "api_base", "headers", "extra_headers")


def identity_of_program(program: dspy.Module | None) -> dict[str, Any] | None:
    """Names what an LM gets from each predictor, and the LM itself with its options."""
    if program is None:
        return None
    described = {}
    for name, predictor in program.named_predictors():
        signature = signature_of(predictor)
        demos = [dict(demo) for demo in predictor.demos]
        described[name] = key_of(signature.instructions, repr(signature.fields), demos)
    return described


def identity_of_lms(program: dspy.Module) -> list[dict[str, Any]]:
    """The LM of each predictor, with the options that its answers depend on; no secrets."""
    lms = [predictor.lm or dspy.settings.lm for predictor in program.predictors()]
    return [_lm(lm) for lm in lms]


def identity_of_data(examples: Sequence[dspy.Example]) -> str:
    """A short key of the rows, and of which of their fields are inputs."""
    return key_of([[example.toDict(), sorted(example.inputs().keys())] for example in examples])


def identity_of(thing: Any) -> Any:
    """What a function or an object of the user's does, as far as that can be told from outside.

    A function is its source; an object is its class, with the source where Python has it, and its
    plain attributes. What has an address in memory as its only name does not enter.
    """
    if isinstance(thing, _PLAIN):
        return thing
    if isinstance(thing, list | tuple):
        return [identity_of(one) for one in thing]
    kind = thing if inspect.isroutine(thing) or isinstance(thing, type) else type(thing)
    described = [getattr(kind, "__qualname__", repr(kind)), _source_key(kind)]
    return described if kind is thing else [*described, _plain_attributes(thing)]


def _lm(lm: Any) -> dict[str, Any]:
    options = {k: v for k, v in getattr(lm, "kwargs", {}).items() if k not in _SECRETS}
    return {"model": getattr(lm, "model", None), "options": key_of(options)}


def _source_key(kind: Any) -> str | None:
    try:
        text = inspect.getsource(kind)
    except (OSError, TypeError):  # typed at a prompt, or written in C
        code = getattr(kind, "__code__", None)
        text = "" if code is None else repr((code.co_code, code.co_consts, code.co_names))
        if "object at 0x" in text:
            text = repr((code.co_code, code.co_names)) if code else ""
    return hashlib.sha256(text.encode()).hexdigest()[:12] if text else None


def _plain_attributes(thing: Any) -> dict[str, Any]:
    names = getattr(type(thing), "__dataclass_fields__", None) or getattr(thing, "__dict__", {})
    values = {name: getattr(thing, name, None) for name in names}
    return {name: value for name, value in values.items() if isinstance(value, _PLAIN)}


def key_of(*parts: Any) -> str:
    """A key, 32 hex digits, of anything that JSON can write."""
    text = json.dumps(parts, sort_keys=True, default=str, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
