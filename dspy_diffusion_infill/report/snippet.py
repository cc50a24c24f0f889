"""The Python code that runs a search again, from its records."""

import inspect
from collections.abc import Mapping
from typing import Any

from dspy_diffusion_infill.optimizer.diffusion_infill import DiffusionInfill
from dspy_diffusion_infill.optimizer.results import DetailedResults
from dspy_diffusion_infill.optimizer.settings import plain

# Of these the records know a name or a repr: it is shown as code.
_CODE = ("metric", "masking", "sampling", "acceptance", "validation_lm")


def snippet(results: DetailedResults) -> str:
    """Code with the options that are not the default, after the models as comments."""
    used: Mapping[str, Any] = results.settings.get("used", {})
    options: Mapping[str, Any] = results.settings.get("options", {})
    parameters = inspect.signature(DiffusionInfill).parameters
    lines = [
        f"    {name}={_code(name, options[name])},"
        for name, parameter in parameters.items()
        if name in options and _differs(options[name], parameter.default)
    ]
    given = "\n" + "\n".join(lines) + "\n" if lines else ""
    models = "".join(
        f"# {name}: {_one_line(value)}\n"
        for name, value in (("LM", ", ".join(used.get("lm", ()))), ("denoiser", results.denoiser))
        if value
    )
    return (
        f"{models}from dspy_diffusion_infill import DiffusionInfill\n\n"
        f"optimizer = DiffusionInfill({given})\n"
        f"better = optimizer.compile(student, trainset)"
    )


def _differs(value: Any, default: Any) -> bool:
    return value != plain(default)


def _code(name: str, value: Any) -> str:
    if name in _CODE and isinstance(value, str):
        return _one_line(value)
    return repr(value)


def _one_line(text: str) -> str:
    return " ".join(text.split())
