"""Recipes: YAML files, found by name or path, with overrides, and no key that is not known.

A recipe may say ``extends: NAME`` (or a file's path, from its own folder): it is then that recipe
with its own keys in place. What both hold as a mapping is merged key by key; anything else, lists
too, is replaced.
"""

from collections.abc import Iterable, Sequence
from importlib import resources
from itertools import accumulate
from pathlib import Path
from typing import Any

from dspy_diffusion_infill.errors import MissingDependencyError
from dspy_diffusion_infill.jsonl import MAX_DEPTH
from dspy_diffusion_infill.training.options import Recipe
from dspy_diffusion_infill.yaml_settings import merged, plain, validated

try:
    import yaml
except ImportError as error:
    raise MissingDependencyError(
        "recipes need PyYAML: pip install 'dspy-diffusion-infill[train]'"
    ) from error

_LONGEST = 2**16
_NO_YAML = (
    yaml.YAMLError,
    # PyYAML's own, of values that do not have the form of their tag
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)

_FOLDER = Path(str(resources.files("dspy_diffusion_infill.training"))) / "recipes"


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def accelerate_config(name: str) -> Path:
    """The file of one of the accelerate configurations that come with the package.

    Args:
        name: ``fsdp2`` or ``deepspeed_zero3``.

    Raises:
        ValueError: there is none of that name.
    """
    files = {path.stem: path for path in sorted((_FOLDER / "accelerate").glob("*.yaml"))}
    if name not in files:
        raise ValueError(f"no accelerate configuration {name!r}: give one of {', '.join(files)}")
    return files[name]


def load_recipe(name_or_path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Reads a recipe.

    Args:
        name_or_path: one of ``recipe_names()``, or a YAML file.
        overrides: ``key=value`` with dotted keys (``stages.0.steps=10``) and YAML values. A key of
            ``optimizer`` at the top holds for every stage that does not say otherwise.

    Raises:
        ValueError: no such recipe, an unknown key, or a value of the wrong type or range; the
            message has the key's place in the recipe.
    """
    tree = _tree(_recipe_file(name_or_path))
    for override in overrides:
        _set(tree, override)
    shared = tree.pop("optimizer", None) or {}
    if not isinstance(shared, dict):
        raise ValueError(f"recipe.optimizer must be a mapping, got {shared!r:.80}")
    stages = tree.get("stages")
    for stage in stages if isinstance(stages, list) else []:
        if isinstance(stage, dict):
            own = stage.get("optimizer") or {}
            stage["optimizer"] = {**shared, **own} if isinstance(own, dict) else own
    return validated(Recipe, tree, "recipe")


def as_yaml(recipe: Recipe) -> str:
    """The recipe with every default written out."""
    return yaml.safe_dump(plain(recipe), sort_keys=False, allow_unicode=True)


def _recipe_file(name_or_path: str | Path, *, folder: Path | None = None) -> Path:
    """The recipe's file; a path starts from ``folder``, the working directory where None."""
    path = (folder or Path()) / name_or_path
    if path.suffix in {".yaml", ".yml"}:
        if not path.is_file():
            raise ValueError(f"recipe file {path} does not exist")
        return path
    names = recipe_names()
    if str(name_or_path) not in names:
        raise ValueError(
            f"no recipe {str(name_or_path)!r:.80}: give a .yaml file or one of {', '.join(names)}"
        )
    return _FOLDER / f"{name_or_path}.yaml"


def _tree(file: Path, *, extended_by: tuple[Path, ...] = ()) -> dict[str, Any]:
    """What a recipe says, and in what it leaves out the recipe that it extends."""
    if file.resolve() in extended_by:
        raise ValueError(f"recipe {file} extends itself")
    tree = _yaml(file.read_bytes(), f"recipe {file}")
    if not isinstance(tree, dict):
        raise ValueError(f"recipe {file} must be a mapping, got {type(tree).__name__}")
    if (extended := tree.pop("extends", None)) is None:
        return tree
    if not isinstance(extended, str):
        raise ValueError(f"recipe.extends must be a recipe's name or file, got {extended!r:.80}")
    below = _recipe_file(extended, folder=file.parent)
    return merged(_tree(below, extended_by=(*extended_by, file.resolve())), tree)


def _yaml(text: str | bytes, place: str) -> Any:
    """Plain data: tags of Python are no YAML here, and aliases, which can multiply, are refused.

    So are texts that would take PyYAML long, whose time grows with the square of open brackets.
    """
    try:
        if len(text) > _LONGEST or _depth(text) > MAX_DEPTH:
            raise ValueError(f"it is longer than {_LONGEST} bytes or deeper than {MAX_DEPTH}")
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise ValueError("it has an alias (*name): write the value out")
        return yaml.safe_load(text)
    except _NO_YAML as error:
        raise ValueError(f"{place} is no YAML: {' '.join(str(error).split()):.300}") from error


def _depth(text: str | bytes) -> int:
    """The most brackets that are open at once."""
    characters = text.decode("latin-1") if isinstance(text, bytes) else text
    steps = {"[": 1, "{": 1, "]": -1, "}": -1}
    return max(accumulate(steps.get(one, 0) for one in characters), default=0)


def _set(tree: dict[str, Any], override: str) -> None:
    """Puts one ``key=value`` into the tree, in place."""
    key, equals, text = override.partition("=")
    if not equals:
        raise ValueError(f"an override must be key=value, got {override!r:.80}")
    *parents, last = key.split(".")
    node: Any = tree
    for part in parents:
        node = _child(node, part, override)
    value = _yaml(text, f"override {override!r:.80}")
    if isinstance(node, list):
        node[_index(node, last, override)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise ValueError(f"override {override!r:.80}: {last!r:.80} is inside {node!r:.80}, which has no keys")


def _child(node: Any, part: str, override: str) -> Any:
    if isinstance(node, list):
        return node[_index(node, part, override)]
    if not isinstance(node, dict):
        raise ValueError(f"override {override!r:.80}: {part!r:.80} is inside {node!r:.80}, which has no keys")
    if node.get(part) is None:
        node[part] = {}
    return node[part]


def _index(node: Sequence[Any], part: str, override: str) -> int:
    if not part.isdecimal() or int(part) >= len(node):
        raise ValueError(
            f"override {override!r:.80}: {part!r:.80} must be the number of an item, 0..{len(node) - 1}"
        )
    return int(part)
