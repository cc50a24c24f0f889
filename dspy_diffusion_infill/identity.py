"""What results depend on, as plain data that another process describes alike.

A journal counts only for the search that wrote it. So programs, metrics, rows and options are
described down to the code of functions (with closures, defaults and the helpers that they call)
and the attributes of objects. Addresses in memory, the order of sets and the folder of the code
do not enter. What cannot be described is refused with its name.
"""

import copyreg
import enum
import functools
import hashlib
import inspect
import io
import json
import sys
import sysconfig
import threading
import types
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import dspy

from dspy_diffusion_infill.programs import all_predictors, signature_of

_PLAIN = (str, int, float, bool, type(None))
_SECRETS = ("api_key", "api_base", "base_url", "headers", "extra_headers")
_LIBRARIES = tuple(
    {sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")}
)
# Packages whose objects hold a user's values: what such an object is, its name does not say.
_HOLD_VALUES = frozenset((*sys.stdlib_module_names, "numpy", "pandas"))
# Nothing that a program computes depends on these.
_STATELESS = (type(threading.Lock()), type(threading.RLock()), threading.local)
_NOT_OF_A_PROGRAM = ("callbacks", "history", "_compiled")
_NEW_OBJECT = vars(copyreg)["__newobj__"]


def describe_program(program: dspy.Module | None) -> Any:
    """The code, attributes, predictors and LMs of a program; None for none.

    Raises:
        ValueError: an attribute cannot be described.
    """
    return None if program is None else describe(program, "program")


def describe_lms(program: dspy.Module) -> list[Any]:
    """The LM of each predictor, with the options that its answers depend on; no secrets."""
    predictors = all_predictors(program).values()
    return [_lm(predictor.lm or dspy.settings.lm) for predictor in predictors]


def describe_rows(rows: Sequence[dspy.Example], name: str) -> str:
    """A key of the rows, and of which of their fields are inputs.

    Raises:
        ValueError: a value cannot be described; the message names row and field.
    """
    return key_of([describe(row, f"{name}[{number}]") for number, row in enumerate(rows)])


def describe(thing: Any, name: str) -> Any:
    """The thing as JSON data: equal for equal things, in every process.

    An object may say itself what it is: by a method ``journal_identity()`` that returns plain data.

    Args:
        thing: a value, function, class or object.
        name: what an error calls it, such as ``metric``.

    Raises:
        ValueError: it holds something that has no state to read, such as an open socket.
    """
    return _Description().of(thing, name)


def key_of(*parts: Any) -> str:
    """A key, 32 hex digits, of anything that JSON can write."""
    text = json.dumps(parts, sort_keys=True, default=str, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


class _Description:
    """One walk through a thing; what it is inside of already is not entered again."""

    def __init__(self) -> None:
        self._inside: list[int] = []

    def of(self, thing: Any, name: str) -> Any:
        if isinstance(thing, enum.Enum):
            return {"enum": [_qualified(type(thing)), thing.name]}
        if type(thing) in _PLAIN:
            return thing
        if isinstance(thing, bytes | bytearray):
            return {"bytes": hashlib.sha256(thing).hexdigest()}
        if id(thing) in self._inside:
            return {"inside": len(self._inside) - self._inside.index(id(thing))}
        self._inside.append(id(thing))
        try:
            return self._structured(thing, name)
        finally:
            self._inside.pop()

    def _structured(self, thing: Any, name: str) -> Any:
        if type(thing) in (list, tuple):
            return [self.of(item, f"{name}[{k}]") for k, item in enumerate(thing)]
        if isinstance(thing, set | frozenset):
            return {"set": sorted((self.of(item, name) for item in thing), key=_sort_key)}
        if type(thing) is dict or isinstance(thing, types.MappingProxyType):
            return {"dict": self._pairs(thing, name)}
        if isinstance(thing, PurePath):
            return {"path": thing.as_posix()}
        if isinstance(thing, type):
            return self._class(thing, name)
        if isinstance(thing, types.CodeType):
            return self._code(thing, name)
        if isinstance(thing, types.ModuleType):
            return {"module": thing.__name__}
        return self._object(thing, name)

    def _object(self, thing: Any, name: str) -> Any:
        if isinstance(thing, dspy.BaseLM):
            return _lm(thing)
        if isinstance(thing, dspy.Example):
            keys = sorted(getattr(thing, "_input_keys", None) or ())
            values = [self._pairs(dict(thing.items()), name), keys]
            return {_qualified(type(thing)): values}
        if callable(identity := getattr(thing, "journal_identity", None)):
            return {_qualified(type(thing)): self.of(identity(), name)}
        if isinstance(thing, dspy.Predict):
            told = [_signature(signature_of(thing)), *self.of([thing.demos, thing.config], name)]
            return {"predictor": told}
        if isinstance(thing, dspy.Module):
            attributes = {k: v for k, v in vars(thing).items() if k not in _NOT_OF_A_PROGRAM}
            return {"module": [self.of(type(thing), name), self._pairs(attributes, name)]}
        if isinstance(thing, functools.partial):
            return {"partial": self.of([thing.func, thing.args, thing.keywords], name)}
        if isinstance(thing, types.MethodType):
            return {"method": self.of([thing.__func__, thing.__self__], name)}
        if inspect.isfunction(thing):
            return self._function(thing, name)
        if inspect.isroutine(thing):
            return {"builtin": _qualified(thing)}
        if isinstance(thing, io.IOBase) and isinstance(getattr(thing, "name", None), str):
            return {"file": thing.name}  # pyright: ignore[reportAttributeAccessIssue]
        if isinstance(thing, _STATELESS):
            return {"stateless": type(thing).__qualname__}
        return self._state(thing, name)

    def _function(self, function: types.FunctionType, name: str) -> Any:
        if _is_of_a_library(function):
            return {"function": _qualified(function)}
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        closure = [[cell_name, _content(cell)] for cell_name, cell in cells]
        used = sorted(_names(function.__code__) & function.__globals__.keys())
        told = [[key, value] for key in used if _is_told(value := function.__globals__[key])]
        parts = [function.__code__, function.__defaults__, function.__kwdefaults__, closure, told]
        return {"function": [function.__qualname__, *self.of(parts, name)]}

    def _code(self, code: types.CodeType, name: str) -> Any:
        constants = [constant for constant in code.co_consts if constant is not code.co_name]
        names = [code.co_names, code.co_varnames, code.co_freevars]
        return {"code": [self.of(code.co_code, name), self.of(constants, name), *map(list, names)]}

    def _class(self, kind: type, name: str) -> Any:
        """The class and those of its bases that are no library's, with their code."""
        if isinstance(kind, type(dspy.Signature)):
            return _signature(kind)
        own = [base for base in kind.__mro__ if not _is_of_a_library(base)]
        members = [self._members(base, name) for base in own]
        return {"class": [_qualified(kind), *members]}

    def _members(self, kind: type, name: str) -> Any:
        told = {}
        for key, value in vars(kind).items():
            if isinstance(value, property):
                value = [value.fget, value.fset]
            elif isinstance(value, staticmethod | classmethod):
                value = value.__func__
            if inspect.isfunction(value) or isinstance(value, (*_PLAIN, list, tuple, dict)):
                if key not in ("__module__", "__doc__", "__firstlineno__", "__static_attributes__"):
                    told[key] = self.of(value, f"{name}.{key}")
        return sorted(told.items())

    def _state(self, thing: Any, name: str) -> Any:
        """Any other object: its class and what pickle would write of it."""
        kind = type(thing)
        reduce = copyreg.dispatch_table.get(kind)
        try:
            reduced: Any = reduce(thing) if reduce else thing.__reduce_ex__(4)
        except Exception as error:
            reduced = self._attributes(thing, name, error)
        if isinstance(reduced, str):
            return {"global": [kind.__module__, reduced]}
        make, arguments, *rest = reduced
        if make is _NEW_OBJECT:
            make, arguments = kind, arguments[1:]
        rest = [list(part) if hasattr(part, "__next__") else part for part in rest]
        described = [self.of(part, f"{name}.{kind.__name__}") for part in (arguments, *rest)]
        return {"object": [self.of(make, name), self.of(kind, name), *described]}

    def _attributes(self, thing: Any, name: str, error: Exception) -> tuple[Any, ...]:
        """For what pickle refuses: the attributes, where there are any."""
        if not hasattr(thing, "__dict__"):
            raise ValueError(
                f"log_dir needs to know what {name} is, and {type(thing).__name__} objects cannot "
                f"be described ({error}): give their class a method journal_identity() that "
                "returns plain data, keep them out of it, or use log_dir=None"
            ) from error
        return type(thing), (), vars(thing)

    def _pairs(self, mapping: Mapping[Any, Any], name: str) -> list[Any]:
        pairs = [[self.of(k, name), self.of(v, f"{name}.{k}")] for k, v in mapping.items()]
        return sorted(pairs, key=_sort_key)


def _content(cell: types.CellType) -> Any:
    """What a closure's cell holds; None where a function is not defined yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _names(code: types.CodeType) -> set[str]:
    """The names that a function's code and the functions inside of it use."""
    inner = [_names(one) for one in code.co_consts if isinstance(one, types.CodeType)]
    return set(code.co_names).union(*inner)


def _lm(lm: Any) -> Any:
    options = {k: v for k, v in getattr(lm, "kwargs", {}).items() if k not in _SECRETS}
    return {"model": getattr(lm, "model", None), "options": key_of(options)}


def _signature(signature: type[dspy.Signature]) -> Any:
    """What an LM is told: instructions and fields; not the class, which DSPy makes anew."""
    fields = [
        [name, _annotation(field.annotation), _annotation(field.json_schema_extra)]
        for name, field in signature.fields.items()
    ]
    return {"signature": [signature.instructions, fields]}


def _annotation(value: Any) -> str:
    if isinstance(value, Mapping):
        return str(sorted((key, _annotation(one)) for key, one in value.items()))
    return _qualified(value) if isinstance(value, type) else str(value)


def _is_told(value: Any) -> bool:
    """Whether a global that a function uses can change its results.

    Modules, and functions, classes and objects of an installed package, are what their name says;
    not so arrays, and what DSPy and Python have that holds a user's values.
    """
    if isinstance(value, types.ModuleType):
        return False
    if isinstance(value, type) or inspect.isroutine(value):
        return not _is_of_a_library(value)
    if isinstance(value, dspy.Module | dspy.Example | dspy.BaseLM):
        return True
    kind = type(value)
    root = kind.__module__.partition(".")[0]
    return root in _HOLD_VALUES or not _is_of_a_library(kind)


def _is_of_a_library(thing: Any) -> bool:
    """Whether code is of Python or of an installed package: its name says what it does."""
    module = sys.modules.get(getattr(thing, "__module__", None) or "")
    if module is None:
        return False
    file = getattr(module, "__file__", None)
    if file is None:
        return module.__name__ != "__main__"
    return (
        file.startswith(_LIBRARIES) or module.__name__.partition(".")[0] == "dspy_diffusion_infill"
    )


def _qualified(thing: Any) -> str:
    name = getattr(thing, "__qualname__", None) or repr(thing)
    return f"{getattr(thing, '__module__', None) or ''}.{name}"


def _sort_key(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
