"""``dspy-infill train``, ``dspy-infill accelerate-config`` and ``dspy-infill probe``."""

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from dspy_diffusion_infill.cli.json_files import JsonFile, make_folder


def register(app: typer.Typer) -> None:
    """Adds the commands to the program."""
    app.command("train")(train_command)
    app.command("accelerate-config")(accelerate_config_command)
    app.command("probe")(probe_command)


def train_command(
    recipe: Annotated[str, typer.Argument(help="Name of a recipe, or a YAML file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Another value for a key of the recipe."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="The run's folder; runs/NAME where not given.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in that folder.")
    ] = False,
) -> None:
    """Trains a masked diffusion LM by a recipe."""
    from dspy_diffusion_infill.training.recipe import load_recipe
    from dspy_diffusion_infill.training.run import train

    loaded = load_recipe(recipe, overrides or [])
    trained = train(loaded, output=output or Path("runs") / loaded.name, resume=resume)
    typer.echo(f"{trained.output} is ready for load_denoiser")


def accelerate_config_command(
    name: Annotated[str, typer.Argument(help="fsdp2 or deepspeed_zero3.")],
) -> None:
    """Prints the path of a configuration for accelerate launch --config_file."""
    from dspy_diffusion_infill.training.recipe import accelerate_config

    typer.echo(accelerate_config(name))


def probe_command(
    denoiser: Annotated[str, typer.Argument(help="A denoiser's name, hub id or folder.")],
    data: Annotated[Path, typer.Option(help="JSONL rows {text, start, end}.")],
    json_path: JsonFile = None,
    rows: Annotated[int | None, typer.Option(help="Only the first so many rows.")] = None,
    causal: Annotated[
        bool,
        typer.Option(
            "--causal", help="Also the causal LM that the denoiser was made from, teacher-forced."
        ),
    ] = False,
    causal_after: Annotated[
        str | None,
        typer.Option(
            help="Also that causal LM on the texts alone, in no turn, each behind this one: "
            "'<|endoftext|>'. '' is nothing: a text's first token is then left out."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    seed: Annotated[int, typer.Option(help="Of the random places.")] = 0,
) -> None:
    """Measures how well a denoiser fills windows of held-out text, in nats and in hits."""
    from dspy_diffusion_infill.denoisers.checkpoints.loading import load
    from dspy_diffusion_infill.training.causal_base import load_causal_base
    from dspy_diffusion_infill.training.probe import (
        causal_probe,
        probe,
        read_probe_rows,
        tokenize_windows,
    )

    # Whatever can fail fails before minutes of work, not after.
    windows = read_probe_rows(data, limit=rows)
    if json_path is not None:
        make_folder(json_path)
    starts: dict[str, str | None] = {"causal": None} if causal else {}
    if causal_after is not None:
        starts["causal_text"] = causal_after
    base = load_causal_base(denoiser) if starts else None
    loaded = load(denoiser, device=device, dtype=dtype)
    began = time.monotonic()
    figures: dict[str, float | str] = {"denoiser": loaded.name}
    figures |= probe(loaded, windows, seed=seed).figures()
    if base is not None:
        for name, start in starts.items():
            score = causal_probe(base, tokenize_windows(loaded, windows, start=start))
            figures |= {f"nll_{name}": score.nll, f"accuracy_{name}": score.accuracy}
            figures[f"nll_{name}_standard_error"] = score.standard_error
            figures[f"num_tokens_{name}"] = score.num_tokens
    figures["seconds"] = round(time.monotonic() - began, 1)
    if json_path is not None:
        json_path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    for name, value in figures.items():
        typer.echo(f"{name:32} {value:.4f}" if isinstance(value, float) else f"{name:32} {value}")
