"""The output of a run: a folder that ``load_denoiser`` opens, with its card."""

import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from dspy_diffusion_infill.denoisers.checkpoints.adapter import ADAPTER_WEIGHTS
from dspy_diffusion_infill.denoisers.checkpoints.published import save_published
from dspy_diffusion_infill.training.callbacks import LoggedFigures
from dspy_diffusion_infill.training.model import Trainable, output_settings
from dspy_diffusion_infill.training.options import Recipe
from dspy_diffusion_infill.training.recipe import as_yaml


def write_output(
    recipe: Recipe,
    output: Path,
    checkpoint: Path,
    model: Trainable,
    figures: LoggedFigures,
    data: Sequence[str],
) -> None:
    """Writes the checkpoint in the form in which it is shared, and what is to be known about it.

    Args:
        recipe: of the run.
        output: the run's folder.
        checkpoint: Trainer's last one, which has every weight whatever the processes held.
        model: for its configuration and tokenizer.
        figures: of the evaluation at the end.
        data: lines about what became of the data's rows.
    """
    settings = output_settings(recipe, output)
    if recipe.model.form != "full":
        _write_adapter(checkpoint, output, settings.base if settings else None)
    elif settings is None:
        dtype = _dtype(_published(model).get("torch_dtype"))
        state = {name: tensor.to(dtype) for name, tensor in _weights(checkpoint).items()}
        save_published(model.checkpoint.model, model.checkpoint.tokenizer, output, state_dict=state)
    else:
        _write_whole(checkpoint, output, model)
    if settings is not None:
        settings.write(output)
    (output / "evaluation.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    # An adapted model has the name of the run's folder; its base is the recipe's.
    base, revision = recipe.model.base, recipe.model.revision
    adapted = f"{base}@{revision}" if revision else base
    card = model_card(recipe, adapted if recipe.model.adapt else model.name, figures, data)
    (output / "README.md").write_text(card, encoding="utf-8")


def model_card(recipe: Recipe, base: str, figures: Mapping[str, float], data: Sequence[str]) -> str:
    """The README of a trained denoiser: its base, its data and its figures.

    Args:
        recipe: of the run.
        base: what it was made from, with revision.
        figures: of the evaluation at the end, by name.
        data: lines about what became of its rows.
    """
    front = yaml.safe_dump({"base_model": recipe.model.base, "tags": ["masked-diffusion", "dspy"]})
    measured = "\n".join(f"| {name} | {value:.4g} |" for name, value in figures.items())
    sections = [
        f"---\n{front}---",
        f"# {recipe.name}",
        "A masked diffusion LM that infills windows of instructions; "
        f"`load_denoiser` of dspy-diffusion-infill opens this folder. Base: `{base}`.",
        "## LoggedFigures",
        f"| figure | value |\n|---|---|\n{measured}" if measured else "None were asked for.",
        "`probe_` figures are nats (nll) or shares (accuracy) a token of held-out windows; `nelbo` "
        "is nats a response token."
        if measured
        else "",
        "## Data",
        "\n".join(f"- {line}" for line in data),
        "## How it was made",
        f"Seed {recipe.seed}; {_versions()}.",
        f"```yaml\n{as_yaml(recipe)}```",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def git_revision() -> str:
    """The commit of this package's code, with ``-dirty`` where files differ from it.

    ``unknown`` where git does not keep this file: a checkout around an installed package is of
    something else.
    """
    file = Path(__file__).resolve()
    git = ["git", "-C", str(file.parent)]
    described = ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        subprocess.run(
            [*git, "ls-files", "--error-unmatch", file.name], capture_output=True, check=True
        )
        done = subprocess.run([*git, *described], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def _versions() -> str:
    packages = ("torch", "transformers", "peft")
    named = ", ".join(f"{package} {metadata.version(package)}" for package in packages)
    return f"code at git revision {git_revision()}; {named}"


def _write_adapter(checkpoint: Path, output: Path, base: str | None) -> None:
    """The LoRA adapter in bfloat16, with its base by the name under which others find it."""
    weights = load_file(checkpoint / ADAPTER_WEIGHTS)
    state = {name: w.to(torch.bfloat16).contiguous() for name, w in weights.items()}
    save_file(state, output / ADAPTER_WEIGHTS)
    config = json.loads((checkpoint / "adapter_config.json").read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = base
    config["target_modules"] = sorted(config["target_modules"])  # peft keeps a set, in any order
    text = json.dumps(config, indent=2, sort_keys=True)
    (output / "adapter_config.json").write_text(text + "\n", encoding="utf-8")


def _write_whole(checkpoint: Path, output: Path, model: Trainable) -> None:
    """All weights of an adapted causal LM, in transformers' own layout."""
    for file in [*checkpoint.glob("model*.safetensors*"), checkpoint / "config.json"]:
        shutil.copy(file, output / file.name)
    model.checkpoint.tokenizer.save_pretrained(output)


def _weights(checkpoint: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for file in sorted(checkpoint.glob("model*.safetensors")):
        state.update(load_file(file))
    return state


def _published(model: Trainable) -> dict[str, Any]:
    return model.checkpoint.model.config.published  # pyright: ignore - ``open_published`` put it there


def _dtype(name: str | None) -> torch.dtype:
    return {"float32": torch.float32, "float16": torch.float16}.get(name or "", torch.bfloat16)
