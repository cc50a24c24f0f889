"""Values as Python code that makes equal ones; what cannot be written so is named, not guessed."""

import inspect
import re
from collections.abc import Mapping
from dataclasses import MISSING, fields
from numbers import Integral
from pathlib import PurePath
from typing import Any

import dspy

from dspy_diffusion_infill.denoisers.protocol import Sampling
from dspy_diffusion_infill.optimizer.acceptance import MetricFirst
from dspy_diffusion_infill.template_adapter import TemplateAdapter
from dspy_diffusion_infill.windows import Prefix, SlidingWindow

_ROOT = "dspy_diffusion_infill"
_PLACES = {
    Sampling: _ROOT,
    Prefix: _ROOT,
    TemplateAdapter: _ROOT,
    SlidingWindow: SlidingWindow.__module__,
    MetricFirst: MetricFirst.__module__,
}
"""Classes of options, and where they are imported from. Denoisers and scorers may hold a token."""
# Of an LM nothing else is told: what it is called with may hold keys, addresses and headers.
_OF_AN_LM = ("temperature", "max_tokens", "max_completion_tokens", "top_p", "seed")

_ADDRESS = re.compile(r"@?\w+://\S*")  # in the name of a server's scorer

Imports = set[tuple[str, str]]
"""Modules, each with the name that is taken from it; ``""`` is the module itself."""


class NotCodeError(Exception):
    """A value that cannot be written as code, or has a part that cannot."""


def code_of(value: Any, imports: Imports) -> str:
    """An expression that gives an equal value.

    Plain values, containers, paths and regular expressions are written, adapters, and this
    package's classes of options. Another object is not: it may hold a key.

    Args:
        value: what is written.
        imports: what the expression needs is added here.

    Raises:
        NotCodeError: it cannot be written.
    """
    if value is None or isinstance(value, bool):
        return repr(value)
    if isinstance(value, str):
        return repr(str(value))
    if isinstance(value, Integral):
        return repr(int(value))
    if isinstance(value, float):
        return repr(float(value)) if abs(value) < float("inf") else f"float({str(value)!r})"
    if isinstance(value, PurePath):
        imports.add(("pathlib", "Path"))
        return f"Path({str(value)!r})"
    if isinstance(value, re.Pattern):
        return _pattern(value, imports)
    if type(value) in (tuple, list, dict):
        return _container(value, imports)
    if isinstance(value, dspy.Adapter):
        return _adapter(value, imports)
    if type(value) in _PLACES:
        return _options(value, imports)
    raise NotCodeError(_qualified(type(value)))


def description(value: Any) -> str:
    """What an object is, on one line, for those who have to make it anew; no key, no address."""
    if isinstance(value, dspy.BaseLM):
        told = {k: v for k, v in getattr(value, "kwargs", {}).items() if k in _OF_AN_LM}
        options = "".join(f", {k}={v!r}" for k, v in told.items() if v is not None)
        name = _qualified(type(value)).replace("dspy.clients.lm.LM", "dspy.LM")
        return one_line(f"{name}({str(value.model)!r}{options}), without key and address")
    if isinstance(value, list) and all(isinstance(one, dspy.Example) for one in value):
        return f"{len(value)} examples"
    if inspect.isroutine(value) or isinstance(value, type):
        return one_line(f"{_qualified(value)}, a {type(value).__name__}")
    name = getattr(value, "name", None)
    called = f", named {_ADDRESS.sub('', name)!r}" if isinstance(name, str) else ""
    return one_line(f"an object of {_qualified(type(value))}{called}")


def one_line(text: str) -> str:
    """The text without line breaks and other characters that are not shown."""
    return "".join(one if one.isprintable() else " " for one in " ".join(text.split()))


def import_lines(imports: Imports) -> list[str]:
    """The import statements, the names of one module together."""
    plain = sorted(module for module, name in imports if not name)
    modules = sorted({module for module, name in imports if name})
    return [f"import {module}" for module in plain] + [
        f"from {module} import " + ", ".join(sorted(n for m, n in imports if n and m == module))
        for module in modules
    ]


def _pattern(pattern: re.Pattern[Any], imports: Imports) -> str:
    imports.add(("re", ""))
    flags = re.RegexFlag(pattern.flags) & ~re.UNICODE & ~re.DEBUG  # a text has UNICODE by itself
    return f"re.compile({pattern.pattern!r}{f', {flags!r}' if flags else ''})"


def _container(value: tuple[Any, ...] | list[Any] | Mapping[Any, Any], imports: Imports) -> str:
    if isinstance(value, Mapping):
        pairs = ((code_of(k, imports), code_of(v, imports)) for k, v in value.items())
        return "{" + ", ".join(f"{key}: {one}" for key, one in pairs) + "}"
    parts = ", ".join(code_of(one, imports) for one in value)
    if isinstance(value, list):
        return f"[{parts}]"
    return f"({parts},)" if len(value) == 1 else f"({parts})"


def _options(value: Any, imports: Imports) -> str:
    name = _name_of(type(value), imports)
    given = {
        one.name: current
        for one in fields(value)
        if one.init
        and ((current := getattr(value, one.name)) != one.default or one.default is MISSING)
    }
    return _call(name, given, imports)


def _adapter(value: dspy.Adapter, imports: Imports) -> str:
    """A call with the arguments that the adapter has as attributes, tried before it is trusted."""
    name, made_by = _name_of(type(value), imports), type(value)
    try:
        default = vars(made_by())
        given = {
            one: vars(value)[one]
            for one in inspect.signature(made_by).parameters
            if one in default and vars(value)[one] != default[one]
        }
        alike = vars(made_by(**given)) == vars(value)
    except Exception as error:
        raise NotCodeError(name) from error
    if not alike:
        raise NotCodeError(name)
    return _call(name, given, imports)


def _call(name: str, given: Mapping[str, Any], imports: Imports) -> str:
    return f"{name}({', '.join(f'{key}={code_of(one, imports)}' for key, one in given.items())})"


def _name_of(made_by: type[Any], imports: Imports) -> str:
    """How a class is called where it is imported."""
    name = made_by.__name__
    if getattr(dspy, name, None) is made_by:
        imports.add(("dspy", ""))
        return f"dspy.{name}"
    if made_by not in _PLACES:
        raise NotCodeError(name)
    imports.add((_PLACES[made_by], name))
    return name


def _qualified(thing: Any) -> str:
    name = getattr(thing, "__qualname__", type(thing).__qualname__)
    return f"{getattr(thing, '__module__', None) or 'builtins'}.{name}"
