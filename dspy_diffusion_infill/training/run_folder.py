"""A run's folder: its recipe, its stages' checkpoints, and which of them are whole.

    OUTPUT/recipe.yaml              the recipe, every default written out
    OUTPUT/data.json                a digest of each source
    OUTPUT/stages/0-fs/log.jsonl    what was logged
    OUTPUT/stages/0-fs/checkpoint-100, …
    OUTPUT/…                        at the end: the model, its card, evaluation.json

A stage is finished when it has a whole checkpoint of its last step; the next one starts from that.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dspy_diffusion_infill.training.options import Recipe
from dspy_diffusion_infill.training.recipe import as_yaml, load_recipe
from dspy_diffusion_infill.training.sources import Source

_RECIPE = "recipe.yaml"
_DATA = "data.json"
_STATE = "trainer_state.json"  # the last file of a checkpoint that Trainer writes
_FIGURES = ("probe_", "nelbo", "perplexity")


def begin(recipe: Recipe, output: Path, *, resume: bool) -> None:
    """Makes the run's folder, or checks that the one that is there is of this recipe.

    A run that stopped before it had saved anything, as with a base that is not there, counts for
    none. What is measured, and which trackers are told, may change.

    Raises:
        ValueError: the folder holds a run and ``resume`` is off, or one of another recipe; or
            ``output`` is a file.
    """
    path, text = output / _RECIPE, as_yaml(recipe)
    if output.is_file():
        raise ValueError(f"{output} is a file: name a folder as --output")
    if not path.is_file() or not _has_saved(output):
        output.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        (output / _DATA).unlink(missing_ok=True)
        return
    if not resume:
        raise ValueError(
            f"{output} holds a run already: go on with --resume, or name another --output"
        )
    # Read, not compared as text: an older version's lacks the keys that have come since.
    was = load_recipe(path)
    was = replace(was, evaluation=recipe.evaluation, report_to=recipe.report_to)
    if was != recipe:
        difference = _first_difference(as_yaml(was), text)
        raise ValueError(
            f"{path} is of another recipe: it has {difference}; resume with the "
            "recipe and overrides that the run was started with"
        )
    path.write_text(text, encoding="utf-8")


def check_data(sources: Sequence[Source], output: Path) -> None:
    """Notes the data of the run, or checks that they are still the same.

    Raises:
        ValueError: a source holds other rows than when the run began.
    """
    path, digests = output / _DATA, [[source.options.path, _digest(source)] for source in sources]
    if path.is_file():
        for (name, digest), (_, was) in zip(
            digests, json.loads(path.read_text(encoding="utf-8")), strict=True
        ):
            if digest != was:
                raise ValueError(
                    f"{name} holds other rows than when the run in {output} began: bring those "
                    "back, or name another --output"
                )
    path.write_text(json.dumps(digests, indent=1) + "\n", encoding="utf-8")


def _digest(source: Source) -> str:
    digest = hashlib.sha256()
    for item in source.items:
        digest.update(repr(item.content).encode("utf-8", "backslashreplace"))
    return digest.hexdigest()


def stage_folder(recipe: Recipe, number: int, output: Path) -> Path:
    """Where the checkpoints of stage ``number`` are."""
    return output / "stages" / f"{number}-{recipe.stages[number].name}"


def latest_checkpoint(folder: Path) -> Path | None:
    """The whole checkpoint of the highest step; what a kill left half-written is passed over."""
    whole = [path for path in folder.glob("checkpoint-*") if step_of(path) is not None]
    return max(whole, key=lambda path: step_of(path) or 0, default=None)


def step_of(checkpoint: Path) -> int | None:
    """The optimizer step of a checkpoint; None where it is not whole."""
    try:
        state = json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return int(state["global_step"])


def figures_of(checkpoint: Path) -> dict[str, float]:
    """What the evaluation at the checkpoint's step gave, by name."""
    state = json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))
    return {
        name: value
        for entry in state["log_history"]
        if entry["step"] == state["global_step"]
        for name, value in entry.items()
        if name.startswith(_FIGURES)
    }


def num_cut_of(checkpoint: Path) -> int | None:
    """How many sequences of the stage, up to the checkpoint's step, were cut.

    None where a part of the stage ran under a version that did not count them.
    """
    state = json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))
    counts = [entry.get("num_cut") for entry in state["log_history"] if "loss" in entry]
    return None if None in counts else sum(counts)


def _has_saved(output: Path) -> bool:
    """Whether the folder holds a whole checkpoint, or a model that is finished."""
    checkpoints = map(latest_checkpoint, (output / "stages").glob("*/"))
    return (output / "evaluation.json").is_file() or any(checkpoints)


def _first_difference(was: str, now: str) -> str:
    before, after = was.splitlines(), now.splitlines()
    pairs = zip(before, after, strict=False)
    for old, new in pairs:
        if old != new:
            return f"{old.strip()!r}, not {new.strip()!r}"
    return f"{len(before)} lines, not {len(after)}"
