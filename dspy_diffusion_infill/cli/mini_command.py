"""``dspy-infill mini``: the paper's claim reproduced small, from nothing and on a CPU."""

from pathlib import Path
from typing import Annotated

import typer

from dspy_diffusion_infill.cli.json_files import JsonFile, make_folder


def register(app: typer.Typer) -> None:
    """Adds the command to the root."""
    app.command("mini")(mini_command)


def mini_command(
    seeds: Annotated[int, typer.Option(help="Runs, each from random weights.")] = 3,
    scale: Annotated[str, typer.Option(help="full takes minutes, smoke seconds.")] = "full",
    output: Annotated[Path, typer.Option(help="Table and plots go here.")] = Path("runs"),
    json_path: JsonFile = None,
) -> None:
    """Trains small masked diffusion LMs and shows which of them can infill instructions."""
    if json_path is not None:
        make_folder(json_path)
    from dspy_diffusion_infill.reproduction.mini import run_mini

    run_mini(
        seeds=seeds,
        output=output,
        json=json_path,
        scale=scale,  # pyright: ignore[reportArgumentType] - run_mini refuses another
    )
