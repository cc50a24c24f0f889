"""Reading experiments and models from their YAML files; a typo is an error that names its place."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from typing import Any, TypeVar, get_args

from dspy_diffusion_infill.errors import DataError, MissingDependencyError
from dspy_diffusion_infill.evaluation.rows import INSTALL
from dspy_diffusion_infill.reproduction.experiment import Experiment, ModelSpec, Scale, selected
from dspy_diffusion_infill.yaml_settings import merged, validated

T = TypeVar("T")

TABLES: Mapping[str, tuple[str, ...]] = {
    "table1": ("table1",),
    "table2": ("table2",),
    "table3": ("table3a", "table3b"),
    "figure2": ("figure2",),
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
    entries = _with_named_figures(merged(own, overrides), where)
    experiment = _validated(Experiment, {**entries, "name": name, "scale": scale}, where)
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
    return {name: _validated(ModelSpec, entries[name], f"models.yaml.{name}") for name in entries}


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
        changed[name] = replace(specs[name], denoiser=checkpoint, recipe="")
    return changed


def with_context_lengths(
    specs: Mapping[str, ModelSpec], named: Sequence[str]
) -> dict[str, ModelSpec]:
    """The models with denoisers that take more or fewer tokens, given as ``NAME=TOKENS``.

    Raises:
        ValueError: not of this form, or there is no model of that name.
    """
    changed = dict(specs)
    for text in named:
        name, _, tokens = text.partition("=")
        if not tokens.isdecimal() or int(tokens) < 1:
            raise ValueError(f"a context length is given as NAME=TOKENS, got {text!r}")
        if name not in specs:
            raise ValueError(f"model must be one of {', '.join(specs)}, got {name!r}")
        changed[name] = replace(specs[name], context_length=int(tokens))
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
            billions=spec.billions if spec.denoiser else None,
            stated_context=spec.stated_context if spec.denoiser else None,
            serve="",
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
                    f"{where}.conditions.{number}: paper has {len(figures)} figures for "
                    f"{len(measures)} measures"
                )
            pairs = zip(measures, figures, strict=False)
            entry = {**entry, "paper": {name: one for name, one in pairs if one is not None}}
        named.append(entry)
    return {**content, "conditions": named}


def _validated(kind: type[T], entry: Any, where: str) -> T:
    try:
        return validated(kind, entry, where)
    except ValueError as error:
        raise DataError(str(error)) from None


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
