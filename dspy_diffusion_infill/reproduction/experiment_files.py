"""Reading experiments and models from their YAML files; a typo is an error that names its place."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from difflib import get_close_matches
from importlib.resources import files
from typing import Any, TypeVar, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from dspy_diffusion_infill.errors import DataError, MissingDependencyError
from dspy_diffusion_infill.evaluation.rows import INSTALL
from dspy_diffusion_infill.reproduction.experiment import Experiment, ModelSpec, Scale, selected

T = TypeVar("T")

TABLES: Mapping[str, tuple[str, ...]] = {
    "table1": ("table1",),
    "table2": ("table2",),
    "table3": ("table3a", "table3b"),
    "figure4": ("figure4a", "figure4b"),
    "figure5": ("figure5",),
    "figure6": ("figure6",),
    "table4": ("table4",),
    "table7": ("table7",),
}
SCALES: tuple[Scale, ...] = get_args(Scale)


def load_experiments(table: str, *, scale: Scale | str = "full") -> list[Experiment]:
    """The experiments that make up a table or figure, at a scale.

    Raises:
        ValueError: unknown table or scale.
        DataError: a file has an unknown, missing or ill-formed entry.
    """
    if table not in TABLES:
        raise ValueError(f"table must be one of {', '.join(TABLES)}, got {table!r}")
    return [parse_experiment(_read(name), name=name, scale=scale) for name in TABLES[table]]


def parse_experiment(content: Mapping[str, Any], *, name: str, scale: Scale | str) -> Experiment:
    """An experiment from the content of its file.

    Raises:
        ValueError: unknown scale.
        DataError: an unknown, missing or ill-formed entry.
    """
    if scale not in SCALES:
        raise ValueError(f"scale must be one of {', '.join(SCALES)}, got {scale!r}")
    own = dict(content)
    overrides = dict((own.pop("scales", None) or {}).get(scale) or {})
    keep = overrides.pop("keep", {})
    where = f"{name}.yaml"
    merged = _with_named_figures(_merged(own, overrides), where)
    experiment = _validated(Experiment, {**merged, "name": name, "scale": scale}, where)
    kept = tuple(selected(experiment.conditions, keep))
    if not kept:
        raise DataError(f"{where}: no condition is left at scale {scale!r}")
    return replace(experiment, conditions=kept)


def load_models(scale: Scale) -> dict[str, ModelSpec]:
    """What the models' names stand for at a scale.

    Raises:
        DataError: the file has an unknown, missing or ill-formed entry.
    """
    entries = _read("models")[scale]
    return {name: _validated(ModelSpec, entries[name], f"models.yaml, {name}") for name in entries}


def with_checkpoints(specs: Mapping[str, ModelSpec], named: Sequence[str]) -> dict[str, ModelSpec]:
    """The models with other denoisers, given as ``NAME=CHECKPOINT``.

    Raises:
        ValueError: not of this form, or there is no model of that name.
    """
    changed = dict(specs)
    for text in named:
        name, equals, checkpoint = text.partition("=")
        if not equals or not checkpoint:
            raise ValueError(f"a model is given as NAME=CHECKPOINT, got {text!r}")
        if name not in specs:
            raise ValueError(f"model must be one of {', '.join(specs)}, got {name!r}")
        changed[name] = replace(specs[name], denoiser=checkpoint)
    return changed


def with_lm(
    specs: Mapping[str, ModelSpec], lm: str, *, api_base: str | None = None
) -> dict[str, ModelSpec]:
    """The models with another LM in place of all of theirs; their denoisers stay.

    It gets the largest ``max_tokens`` of those that it stands in for, whichever it answers for, so
    that what two of them would ask alike is asked once.
    """
    options: dict[str, Any] = {"api_base": api_base, "api_key": "none"} if api_base else {}
    limits = [spec.options["max_tokens"] for spec in specs.values() if "max_tokens" in spec.options]
    if limits:
        options["max_tokens"] = max(limits)
    return {
        name: replace(
            spec,
            lm=lm,
            options={**_portable(spec.options), **options},
            billions=None,
        )
        for name, spec in specs.items()
    }


def _portable(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that any LM takes."""
    return {key: options[key] for key in ("temperature", "max_tokens", "top_p") if key in options}


def _with_named_figures(content: dict[str, Any], where: str) -> dict[str, Any]:
    """Conditions list the paper's figures in the order of the measures; here each gets its name."""
    measures, conditions = content.get("measures"), content.get("conditions")
    if not isinstance(measures, list) or not isinstance(conditions, list):
        return content
    named = []
    for number, entry in enumerate(conditions):
        figures = entry.get("paper") if isinstance(entry, Mapping) else None
        if isinstance(figures, list):
            if len(figures) > len(measures):
                raise DataError(
                    f"{where}, conditions[{number}]: paper has {len(figures)} figures for "
                    f"{len(measures)} measures"
                )
            pairs = zip(measures, figures, strict=False)
            entry = {**entry, "paper": {name: one for name, one in pairs if one is not None}}
        named.append(entry)
    return {**content, "conditions": named}


def _validated(kind: type[T], entry: Any, where: str) -> T:
    """The entry as a ``kind``.

    Raises:
        DataError: what pydantic finds first, with its place.
    """
    try:
        return TypeAdapter(kind).validate_python(entry)
    except ValidationError as error:
        raise DataError(_described(kind, error.errors()[0], where)) from None


def _described(kind: type, error: ErrorDetails, where: str) -> str:
    """``table2.yaml, search: unknown windows; known are window, stride, ...``."""
    place, found, context = list(error["loc"]), error["type"], error.get("ctx", {})
    is_of_a_field = place and isinstance(place[-1], str)
    name = place.pop() if is_of_a_field and found not in ("value_error", "dataclass_type") else ""
    for part in place:
        where += f"[{part}]" if isinstance(part, int) else f", {part}"
    if found == "missing":
        return f"{where}: {name} is missing"
    if found == "unexpected_keyword_argument":
        known = [one.name for one in fields(_kind_at(kind, place))]
        close = "".join(f"; did you mean {one}?" for one in get_close_matches(str(name), known, 1))
        return f"{where}: unknown {name}; known are {', '.join(known)}{close}"
    if found == "value_error":
        return f"{where}: {context['error']}"
    if found == "dataclass_type":
        return f"{where}: must be a mapping, got {error['input']!r:.60}"
    wanted = error["msg"].replace("Input should be", "must be")
    if found == "literal_error":
        wanted = "must be one of " + context["expected"].replace("'", "").replace(" or ", ", ")
    return f"{where}: {name} {wanted}, got {error['input']!r:.60}"


def _kind_at(kind: Any, path: Sequence[int | str]) -> Any:
    """The dataclass that stands at this place of the file."""
    for part in path:
        if isinstance(part, str):
            kind = _dataclass_in(get_type_hints(kind)[part])
    return kind


def _dataclass_in(hint: Any) -> Any:
    """``Condition`` of ``tuple[Condition, ...]``."""
    if is_dataclass(hint):
        return hint
    return next((one for part in get_args(hint) if (one := _dataclass_in(part))), None)


def _merged(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """``overrides`` laid over ``base``: mappings entry by entry, all else as a whole."""
    merged = dict(base)
    for key, value in overrides.items():
        below = merged.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            value = _merged(below, value)
        merged[key] = value
    return merged


def _read(name: str) -> dict[str, Any]:
    try:
        import yaml
    except ImportError:
        raise MissingDependencyError(f"experiments are YAML files: {INSTALL}") from None
    folder = files("dspy_diffusion_infill.reproduction") / "experiments"
    content = yaml.safe_load((folder / f"{name}.yaml").read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise DataError(f"{name}.yaml: must be a mapping, got {content!r:.60}")
    return content
