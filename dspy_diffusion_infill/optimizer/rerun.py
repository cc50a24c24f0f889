"""The Python code that runs a search again, written while its objects are at hand."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dspy

from dspy_diffusion_infill.denoisers.protocol import Sampling
from dspy_diffusion_infill.optimizer.code import (
    Imports,
    NotCodeError,
    code_of,
    description,
    import_lines,
    one_line,
)
from dspy_diffusion_infill.optimizer.plan import Plan
from dspy_diffusion_infill.programs import all_predictors


@dataclass(slots=True)
class _Writer:
    """Collects what the code needs beside itself: imports, and names that the reader defines."""

    imports: Imports = field(default_factory=set)
    missing: dict[str, str] = field(default_factory=dict)

    def argument(self, name: str, value: Any) -> str:
        """The value as code; of one that cannot be written its name, which is then missing."""
        needed: Imports = set()
        try:
            code = code_of(value, needed)
        except NotCodeError:
            self.missing[name] = description(value)
            return name
        self.imports |= needed
        return code


def rerun_code(options: Mapping[str, Any], plan: Plan, optimizer: Callable[..., Any]) -> str:
    """Code that runs the search again, once the names that its first comment lists are defined.

    These are the data, the LM and what else is no plain value. It leaves out ``log_dir``,
    ``callbacks`` and ``display_progress``, which change no outcome. It holds no key.

    Args:
        options: those of the search, by the names of the optimizer's arguments.
        plan: what the options are used for.
        optimizer: ``DiffusionInfill``, for the order and the defaults of its arguments.
    """
    writer = _Writer({("dspy", ""), ("dspy_diffusion_infill", "DiffusionInfill")})
    writer.missing = _data(plan)
    configured = _configured(writer)
    parameters = inspect.signature(optimizer).parameters
    usual = {name: one.default for name, one in parameters.items()} | {"sampling": Sampling()}
    lines = [
        f"    {name}={writer.argument(name, options[name])},"
        for name, default in usual.items()
        if name in options and not _is(options[name], default)
    ]
    given = "\n" + "\n".join(lines) + "\n" if lines else ""
    names = ["student", *(f"{one}={one}" for one in ("valset", "teacher") if one in writer.missing)]
    names.insert(1, "trainset")
    return "\n".join(
        [
            *import_lines(writer.imports),
            "",
            "# Define these first; they are not kept as code:",
            *(f"# {name}: {one_line(what)}" for name, what in writer.missing.items()),
            configured,
            f"optimizer = DiffusionInfill({given})",
            f"better = optimizer.compile({', '.join(names)})",
        ]
    )


def _is(value: Any, default: Any) -> bool:
    """Whether they are alike; an object of the user's is not asked."""
    return value is default or (type(value) is type(default) and value == default)


def _data(plan: Plan) -> dict[str, str]:
    """What ``compile`` is given."""
    own = _models(one.lm for one in all_predictors(plan.student).values())
    student = description(plan.student) + (f", with LMs of its own: {own}" if own else "")
    has_valset = plan.valset is not plan.trainset
    is_own = isinstance(plan.options.holdout, Sequence)  # else they were rows of the valset
    train, val = len(plan.trainset), len(plan.valset) + (0 if is_own else len(plan.holdout))
    data = {"student": student, "trainset": f"{train if has_valset else val} examples"}
    if has_valset:
        data["valset"] = f"{val} examples"
    if plan.teacher is not None:
        data["teacher"] = description(plan.teacher)
    return data


def _models(lms: Iterable[Any]) -> str:
    return ", ".join(sorted({str(lm.model) for lm in lms if lm is not None}))


def _configured(writer: _Writer) -> str:
    """The call that sets DSPy's LM, where there is one, and its adapter."""
    lm, adapter = dspy.settings.lm, dspy.settings.adapter
    given = []
    if lm is not None:
        writer.missing["lm"] = description(lm)
        given.append("lm=lm")
    given.append(f"adapter={writer.argument('adapter', adapter)}")
    comment = "  # None: DSPy's own choice, ChatAdapter" if adapter is None else ""
    return f"dspy.configure({', '.join(given)}){comment}"
