"""Reading experiments and models from their YAML files, strictly: a typo is an error."""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, replace
from importlib.resources import files
from typing import Any, TypeVar

from dspy_diffusion_infill.errors import DataError, MissingDependencyError
from dspy_diffusion_infill.evaluation.rows import INSTALL
from dspy_diffusion_infill.reproduction.experiment import (
    Condition,
    DataSpec,
    Experiment,
    JudgeSpec,
    ModelSpec,
    PaperFigure,
    PlotSpec,
    Scale,
    SearchSpec,
    Step,
    TaskName,
    selected,
)

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
SCALES: tuple[Scale, ...] = ("full", "smoke")
_JUDGED = ("pearson", "spearman", "kendall", "perplexity")
MEASURES: Mapping[TaskName, tuple[str, ...]] = {
    "summeval": _JUDGED,
    "biggen": _JUDGED,
    "gsm8k": ("em", "em_strict", "tokens"),
    "hover": ("recall", "f1", "label_accuracy"),
}


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
    """An experiment from what its file says.

    Raises:
        ValueError: unknown scale.
        DataError: an unknown, missing or ill-formed entry.
    """
    if scale not in SCALES:
        raise ValueError(f"scale must be one of {', '.join(SCALES)}, got {scale!r}")
    where = f"{name}.yaml"
    own = dict(content)
    overrides = dict((own.pop("scales", None) or {}).get(scale) or {})
    keep = overrides.pop("keep", {})
    merged = _merged(own, overrides)
    conditions = tuple(
        _condition(entry, tuple(merged["measures"]), f"{where}, conditions[{number}]")
        for number, entry in enumerate(merged.pop("conditions", ()))
    )
    kept = tuple(selected(conditions, keep))
    if not kept:
        raise DataError(f"{where}: no condition is left at scale {scale!r}")
    parts = {"test": DataSpec, "shots": DataSpec, "search": SearchSpec}
    parts |= {"judge": JudgeSpec, "plot": PlotSpec}
    for key, kind in parts.items():
        if key in merged:
            merged[key] = _made(kind, merged[key], f"{where}, {key}")
    merged |= {"name": name, "conditions": kept, "scale": scale}
    experiment = _made(Experiment, merged, where)
    _check_measures(experiment, where)
    return experiment


def load_models(scale: Scale) -> dict[str, ModelSpec]:
    """What the models' names stand for at a scale.

    Raises:
        DataError: the file has an unknown, missing or ill-formed entry.
    """
    content = _read("models")[scale]
    return {
        name: _made(ModelSpec, entry, f"models.yaml, {name}") for name, entry in content.items()
    }


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


def _condition(entry: Any, measures: tuple[str, ...], where: str) -> Condition:
    values = _mapping(entry, where)
    steps = tuple(_step(step, f"{where}, steps") for step in values.pop("steps", ()))
    figures = values.pop("paper", [])
    if len(figures) > len(measures):
        raise DataError(f"{where}: paper has {len(figures)} figures for {len(measures)} measures")
    paper = {
        measure: PaperFigure(*(figure if isinstance(figure, list) else [figure]))
        for measure, figure in zip(measures, figures, strict=False)
        if figure is not None
    }
    values["label"] = {key: str(value) for key, value in _mapping(values["label"], where).items()}
    return _made(Condition, {**values, "steps": steps, "paper": paper}, where)


def _check_measures(experiment: Experiment, where: str) -> None:
    """What cannot be measured or drawn is said now, and not at the end of a run."""
    if experiment.task not in MEASURES:
        known = ", ".join(MEASURES)
        raise DataError(f"{where}: task must be one of {known}, got {experiment.task!r}")
    known, plot = MEASURES[experiment.task], experiment.plot
    wrong = [name for name in experiment.measures if name not in known]
    if wrong or not experiment.measures:
        found = ", ".join(wrong) or "none"
        raise DataError(f"{where}: measures must be of {', '.join(known)}, got {found}")
    drawn = (*plot.measures, *([plot.x] if plot.kind == "scatter" else []))
    for name in drawn:
        if name not in experiment.measures:
            raise DataError(f"{where}, plot: {name!r} is none of {', '.join(experiment.measures)}")


def _step(entry: Any, where: str) -> Step:
    """``{infill: llada, prefix: 128}``."""
    values = _mapping(entry, where)
    kinds = [kind for kind in ("copro", "gepa", "infill") if kind in values]
    if len(kinds) != 1:
        raise DataError(f"{where}: a step names one of copro, gepa and infill, got {entry!r}")
    return _made(Step, {"kind": kinds[0], "by": values.pop(kinds[0]), **values}, where)


def _made(kind: type[T], entry: Any, where: str) -> T:
    """A dataclass from a mapping; lists become tuples."""
    values = _mapping(entry, where)
    known = {one.name: one for one in fields(kind)}  # pyright: ignore[reportArgumentType]
    unknown = [key for key in values if key not in known]
    if unknown:
        raise DataError(f"{where}: unknown {', '.join(unknown)}; known are {', '.join(known)}")
    missing = [
        name
        for name, one in known.items()
        if name not in values and one.default is MISSING and one.default_factory is MISSING
    ]
    if missing:
        raise DataError(f"{where}: {', '.join(missing)} is missing")
    frozen = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return kind(**frozen)


def _mapping(entry: Any, where: str) -> dict[str, Any]:
    if not isinstance(entry, Mapping):
        raise DataError(f"{where}: must be a mapping, got {entry!r:.60}")
    return dict(entry)


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
    return _mapping(content, f"{name}.yaml")
