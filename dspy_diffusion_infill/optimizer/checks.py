"""Checks of what the user hands in, all before the first LM call."""

import inspect
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast, get_args

import dspy

from dspy_diffusion_infill.denoisers.protocol import Sampling
from dspy_diffusion_infill.optimizer.acceptance import Acceptance
from dspy_diffusion_infill.optimizer.guidance import Guidance
from dspy_diffusion_infill.optimizer.options import CHOICES, RUNS_PER_ROW, Auto
from dspy_diffusion_infill.optimizer.prices import Price
from dspy_diffusion_infill.optimizer.row_checks import check_rows, is_same_row
from dspy_diffusion_infill.programs import Parts, is_awaitable_only, signature_of
from dspy_diffusion_infill.value_checks import check_number, check_whole
from dspy_diffusion_infill.windows import Masking, SlidingWindow

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def check_student(student: Any, *, has_lm: bool = False) -> None:
    """Raises TypeError or ValueError if the student is no usable program.

    With ``has_lm``, an LM is given elsewhere.
    """
    if isinstance(student, type) or not isinstance(student, dspy.Module):
        raise TypeError(f"student must be a dspy.Module instance, got {_shown(student)}")
    check_can_be_called(student, name="student")
    if not student.predictors():
        raise ValueError(f"student {type(student).__name__} has no predictor to optimise")
    unbound = [name for name, predictor in student.named_predictors() if predictor.lm is None]
    if unbound and dspy.settings.lm is None and not has_lm:
        raise ValueError(
            f"no LM is configured for the predictors {unbound}: "
            "call dspy.configure(lm=dspy.LM(...)) or student.set_lm(...)"
        )


def check_can_be_called(program: dspy.Module, *, name: str) -> None:
    """Raises TypeError if the program can only be awaited."""
    if inspect.iscoroutinefunction(inspect.getattr_static(program, "forward", None)):
        raise TypeError(
            f"{name} {type(program).__name__} has an async forward, which cannot be called: name "
            "it aforward, and hand in dspy.syncify(program)"
        )
    if is_awaitable_only(program):
        raise TypeError(
            f"{name} {type(program).__name__} has aforward and no forward, so that it can only be "
            "awaited: hand in dspy.syncify(program)"
        )


def check_examples(examples: Any, student: dspy.Module, *, name: str) -> list[dspy.Example]:
    """Returns the data set as a list.

    Raises TypeError or ValueError if it is not one of labelled examples.
    """
    if isinstance(examples, str | bytes | dict) or not isinstance(examples, Sequence):
        raise TypeError(f"{name} must be a list of dspy.Example, got {_shown(examples)}")
    if len(examples) == 0:
        raise ValueError(
            f"{name} must hold at least one example, got an empty {type(examples).__name__}"
        )
    for number, example in enumerate(examples):
        if not isinstance(example, dspy.Example):
            raise TypeError(f"{name}[{number}] must be a dspy.Example, got {_shown(example)}")
        if example._input_keys is None:
            fields = ", ".join(repr(key) for key in _input_fields(student, example))
            raise ValueError(
                f"{name}[{number}] does not say which of its fields are inputs: "
                f"call example.with_inputs({fields})"
            )
    return list(examples)


def check_data(
    student: Any, trainset: Any, valset: Any, teacher: Any, *, has_lm: bool
) -> tuple[list[dspy.Example], list[dspy.Example], dspy.Module | None]:
    """Checks all that ``compile`` is handed; returns trainset, valset and teacher.

    The valset is the very trainset where they are equal, or where none is given.

    Raises:
        TypeError: one of them is of the wrong type, or a program can only be awaited.
        ValueError: a row is wrong, or a predictor has no LM.
    """
    check_student(student, has_lm=has_lm)
    rows = check_examples(trainset, student, name="trainset")
    val = rows if valset is None else check_examples(valset, student, name="valset")
    check_rows(rows, student, name="trainset")
    check_rows(val, student, name="valset")
    are_same = len(val) == len(rows) and all(map(is_same_row, val, rows))
    return rows, rows if are_same else val, check_teacher(teacher)


def check_metric(metric: Any) -> Callable[..., Any]:
    """Raises TypeError unless it takes an example, a prediction, and optional arguments."""
    if not callable(metric):
        raise TypeError(
            "metric must be a function metric(example, prediction, trace=None), "
            f"got {_shown(metric)}"
        )
    called = getattr(metric, "func", metric)
    if any(map(inspect.iscoroutinefunction, (called, getattr(called, "__call__", None)))):  # noqa: B004
        raise TypeError(
            "metric must return a number, and a coroutine function returns one only when awaited: "
            "pass lambda example, prediction, trace=None: asyncio.run(metric(example, prediction))"
        )
    if (parameters := _parameters(metric)) is None:
        return metric
    takes = [p for p in parameters if p.kind in _POSITIONAL]
    required = [p for p in takes if p.default is inspect.Parameter.empty]
    keyword_only = [
        p.name
        for p in parameters
        if p.kind is inspect.Parameter.KEYWORD_ONLY and p.default is inspect.Parameter.empty
    ]
    variadic = any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters)
    if len(required) > 3 or keyword_only or (len(takes) < 2 and not variadic):
        shown = inspect.signature(metric)
        raise TypeError(
            "metric must be callable as metric(example, prediction, trace=None), "
            f"got {getattr(metric, '__name__', type(metric).__name__)}{shown}; "
            "GEPA's metrics with five arguments need defaults for the last three"
        )
    return metric


def num_positional(metric: Callable[..., Any]) -> int:
    """How many arguments the metric is given: 3 where it requires a trace, else 2."""
    required = [
        p
        for p in _parameters(metric) or ()
        if p.kind in _POSITIONAL and p.default is inspect.Parameter.empty
    ]
    return max(2, len(required))


def _parameters(metric: Callable[..., Any]) -> list[inspect.Parameter] | None:
    """None for some callables written in C, which have no signature."""
    try:
        return list(inspect.signature(metric).parameters.values())
    except (TypeError, ValueError):
        return None


def check_choices(**given: Any) -> None:
    """Raises ValueError unless each option has one of the values that it knows."""
    for name, value in given.items():
        if value not in (known := get_args(CHOICES[name])):
            listed = ", ".join(map(repr, known))
            raise ValueError(f"{name} must be one of {listed}, got {value!r:.60}")


def check_order_options(
    order: str, *, sweeps: int | None, parents: str, patience: int | None
) -> None:
    """Raises ValueError for options of one order beside another."""
    if order != "left_to_right" and sweeps is not None:
        raise ValueError(
            f"sweeps={sweeps} is for order='left_to_right': give that too, or leave sweeps out; "
            f"order={order!r} ends by its budget or by patience"
        )
    for name, value, default in (("parents", parents, "best"), ("patience", patience, None)):
        if order == "left_to_right" and value != default:
            raise ValueError(
                f"{name}={value!r} is for an adaptive search: give order='adaptive' too, or leave "
                f"{name} out"
            )


def check_guidance(guidance: Any, *, signal: str = "likelihood") -> Guidance:
    """Raises ValueError if it is a text other than "auto", or None beside a signal for it."""
    if guidance is None and signal != "likelihood":
        raise ValueError(f"signal={signal!r} is what guidance goes by, and guidance is None")
    if isinstance(guidance, str) and guidance != "auto":
        raise ValueError(f'guidance must be "auto", None or a scorer, got {guidance!r}')
    return guidance


def check_lm(lm: Any) -> dspy.BaseLM | None:
    """Raises TypeError unless it is an LM or None."""
    if lm is not None and not isinstance(lm, dspy.BaseLM):
        raise TypeError(
            f"validation_lm must be an LM, as dspy.LM('openai/…') makes it, got {_shown(lm)}"
        )
    return lm


def check_teacher(teacher: Any) -> dspy.Module | None:
    """The teacher program, or None; a list gives its first."""
    if isinstance(teacher, list | tuple):
        teacher = teacher[0] if teacher else None
    if teacher is None:
        return None
    if not isinstance(teacher, dspy.Module):
        raise TypeError(
            f"teacher must be a dspy.Module, a list of them or None, got {_shown(teacher)}"
        )
    check_can_be_called(teacher, name="teacher")
    return teacher


def check_counts(*, optional: bool = False, **counts: Any) -> None:
    """Raises unless every count is a whole number of at least 1; an optional one may be None."""
    for name, value in counts.items():
        check_whole(name, value, least=1, optional=optional)


def check_max_errors(max_errors: Any) -> int | None:
    """Raises unless it is None or a whole number of at least 0."""
    check_whole("max_errors", max_errors, least=0, optional=True)
    return max_errors


def check_amount(name: str, amount: Any, *, unit: str) -> float | None:
    """Raises unless it is None or a finite number of the unit, above 0."""
    allowed = f"a number of {unit} above 0"
    check_number(name, amount, allowed, lambda given: 0 < given < math.inf, none="no cap")
    return None if amount is None else float(amount)


def check_auto(auto: Any, *, max_metric_calls: int | None) -> Auto | None:
    """Raises unless it names a budget, and no other budget of metric calls is given."""
    if auto is None:
        return None
    if not isinstance(auto, str) or auto not in RUNS_PER_ROW:
        names = ", ".join(map(repr, RUNS_PER_ROW))
        raise ValueError(f"auto must be one of {names}, or None, got auto={auto!r:.60}")
    if max_metric_calls is not None:
        raise ValueError(
            f"auto={auto!r} gives max_metric_calls by the size of the valset, and "
            f"max_metric_calls={max_metric_calls} is given too: leave one of them out"
        )
    return cast(Auto, auto)


def check_prices(prices: Any) -> dict[str, Price] | None:
    """The prices as a dict of pairs; raises unless each is a pair of finite numbers, at least 0."""
    if prices is None:
        return None
    wanted = (
        "prices must be {model: (USD a million prompt tokens, USD a million completion tokens)}"
    )
    if not isinstance(prices, Mapping) or not all(isinstance(name, str) for name in prices):
        raise TypeError(f"{wanted}, got {_shown(prices)}")
    for name, pair in prices.items():
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise TypeError(f"{wanted}, got prices[{name!r}]={pair!r:.60}")
        for price in pair:
            if isinstance(price, bool) or not isinstance(price, int | float):
                raise TypeError(f"{wanted}, got prices[{name!r}]={pair!r:.60}")
            if not 0 <= price < math.inf:
                raise ValueError(f"a price must be at least 0, got prices[{name!r}]={pair!r:.60}")
    return {
        name: (float(prompt), float(completion)) for name, (prompt, completion) in prices.items()
    }


def check_seed(seed: Any) -> int:
    """Raises unless it is a whole number."""
    check_whole("seed", seed)
    return seed


def check_acceptance(acceptance: Any) -> Acceptance | None:
    """Raises unless it is an object with a method ``accepts``, or None."""
    if acceptance is not None and (
        isinstance(acceptance, type) or not callable(getattr(acceptance, "accepts", None))
    ):
        raise TypeError(
            "acceptance must be an object with accepts(new, best, gain), or None, "
            f"got {_shown(acceptance)}"
        )
    return acceptance


def check_failure_score(score: Any) -> float | None:
    """Raises unless it is a finite number or None."""
    if score is None:
        return None
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        raise TypeError(f"failure_score must be a finite number or None, got {_shown(score)}")
    return float(score)


def check_maskings(masking: Any, *, window: int, stride: int, mask: Any) -> tuple[Masking, ...]:
    """The user's scheme, or else sliding windows: one scheme for each number of masks.

    Raises:
        TypeError: ``masking`` is no scheme, or a number is not whole.
        ValueError: a number is out of its range, or there is no number of masks.
    """
    if masking is not None:
        if isinstance(masking, type) or not hasattr(masking, "windows"):
            raise TypeError(
                f"masking must be a scheme such as Prefix(128), or None, got {_shown(masking)}"
            )
        return (masking,)
    numbers = (mask,) if isinstance(mask, int) else tuple(mask)
    if not numbers:
        raise ValueError("mask must be a number or several, got none")
    return tuple(SlidingWindow(window=window, stride=stride, mask=one) for one in numbers)


def check_sampling(sampling: Any, *, steps: int | None, temperature: float | None) -> Sampling:
    """The sampling, also where it is given by the deprecated ``steps`` and ``temperature``."""
    given = {"steps": steps, "temperature": temperature}
    given = {name: value for name, value in given.items() if value is not None}
    if given:
        named = ", ".join(f"{name}={value!r}" for name, value in given.items())
        if sampling is not None:
            raise TypeError(f"give {named} inside of sampling=Sampling(...), which is given too")
        warnings.warn(
            f"{named} is deprecated: give sampling=Sampling({named})",
            DeprecationWarning,
            stacklevel=3,
        )
        return Sampling(**given)
    if sampling is not None and not isinstance(sampling, Sampling):
        raise TypeError(f"sampling must be a Sampling or None, got {_shown(sampling)}")
    return sampling or Sampling()


def check_example_range(bounds: Any) -> None:
    """Raises unless the bounds are (fewest, most) with 1 <= fewest <= most."""
    if not (
        isinstance(bounds, tuple | list)
        and len(bounds) == 2
        and all(isinstance(b, int) for b in bounds)
    ):
        raise TypeError(f"examples_per_context must be (fewest, most), got {_shown(bounds)}")
    if not 1 <= bounds[0] <= bounds[1]:
        raise ValueError(f"examples_per_context must have 1 <= fewest <= most, got {tuple(bounds)}")


def check_names(names: Any) -> tuple[str, ...] | None:
    """The predictor names as a tuple.

    A single string, which would be read letter by letter, is refused.
    """
    if names is None:
        return None
    if isinstance(names, str):
        raise TypeError(
            f"predictors must be a list of names, got the string {names!r}: write [{names!r}]"
        )
    if not (listed := tuple(names)):
        raise ValueError("predictors must name at least one predictor, or be None for all, got []")
    return listed


def check_parts(parts: Any) -> tuple[Parts, ...]:
    """The kinds of texts that are edited, as a tuple."""
    known = get_args(Parts)
    if isinstance(parts, str) or not parts or any(one not in known for one in parts):
        raise ValueError(f"parts must be a list of some of {list(known)}, got {parts!r:.80}")
    return tuple(parts)


def check_protect(protect: Any) -> tuple[str | re.Pattern[str], ...]:
    """The protected strings and patterns as a tuple."""
    entries = (protect,) if isinstance(protect, str | re.Pattern) else tuple(protect)
    for entry in entries:
        if not isinstance(entry, str | re.Pattern):
            raise TypeError(
                f"protect must hold strings and compiled regular expressions, got {_shown(entry)}"
            )
        if not entry:
            raise ValueError("protect must hold no empty string: it would protect nothing")
    return entries


def _input_fields(student: dspy.Module, example: dspy.Example) -> list[str]:
    wanted = {
        name for predictor in student.predictors() for name in signature_of(predictor).input_fields
    }
    return [key for key in example.keys() if key in wanted] or ["question"]


def _shown(value: Any) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__} (did you forget the parentheses?)"
    return f"{type(value).__name__}: {value!r:.60}"
