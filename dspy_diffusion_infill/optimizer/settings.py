"""The options of a search as plain values, for people, and as code: no keys, no rows."""

import platform
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import PurePath
from typing import Any

import dspy

from dspy_diffusion_infill.optimizer.code import NotCodeError, code_of, description
from dspy_diffusion_infill.optimizer.plan import Plan
from dspy_diffusion_infill.optimizer.rerun import rerun_code
from dspy_diffusion_infill.programs import all_predictors
from dspy_diffusion_infill.windows import SlidingWindow

_PACKAGES = ("dspy-diffusion-infill", "dspy", "torch", "transformers")
_NOT_OF_THE_SEARCH = ("search_callbacks", "display_progress", "log_dir", "maskings")


def settings_of(
    options: Mapping[str, Any], plan: Plan, optimizer: Callable[..., Any]
) -> dict[str, Any]:
    """``options``: those of ``DiffusionInfill``; ``used``: what was made of them.

    ``code`` runs the search again.

    Args:
        options: as ``DiffusionInfill.get_params`` gives them.
        plan: what they are used for.
        optimizer: ``DiffusionInfill``, whose arguments they are.
    """
    kept = {name: value for name, value in options.items() if name not in _NOT_OF_THE_SEARCH}
    lms = [predictor.lm or dspy.settings.lm for predictor in all_predictors(plan.base).values()]
    used = {
        "program": type(plan.student).__name__,
        "lm": sorted({str(getattr(lm, "model", None)) for lm in lms}),
        "adapter": type(dspy.settings.adapter or dspy.ChatAdapter()).__name__,
        "denoiser": plan.infiller.denoiser.name,
        "cache": plan.infiller.sampling.cache,
        "guidance": None if plan.guide is None else plan.guide.scorer.name,
        "metric": plan.scoring.metric,
        "max_metric_calls": plan.scoring.caps.max_metric_calls,
        "seed": plan.options.seed,
        "rows of the trainset": len(plan.trainset),
        "rows of the valset": len(plan.valset),
    }
    kept = {**_masking(plan), **kept}
    return {
        "options": plain(kept),
        "used": plain(used),
        "code": rerun_code(kept, plan, optimizer),
    }


def versions() -> dict[str, str]:
    """Of Python, and of the packages that decide the outcome where they are installed."""
    return dict(_versions())


@cache  # asked for after every trial, and each package's files are read for it
def _versions() -> Mapping[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def plain(value: Any) -> Any:
    """The value as JSON has it; of an object its name, or the name of its class."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str | PurePath):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list) and value and isinstance(value[0], dspy.Example):
        return description(value)
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, dspy.BaseLM):
        return str(value.model)
    try:
        return code_of(value, set())
    except NotCodeError:
        return _name(value)


def _name(value: Any) -> str:
    for attribute in ("__qualname__", "name"):
        if isinstance(name := getattr(value, attribute, None), str):
            return name
    return type(value).__qualname__


def _masking(plan: Plan) -> dict[str, Any]:
    """The options that made the plan's maskings."""
    maskings = plan.options.maskings
    sliding = [one for one in maskings if isinstance(one, SlidingWindow)]
    if len(sliding) < len(maskings):
        return {"masking": maskings[0]}
    masks = [one.mask for one in sliding]
    first = sliding[0]
    return {
        "window": first.window,
        "stride": first.stride,
        "mask": masks[0] if len(masks) == 1 else masks,
    }
