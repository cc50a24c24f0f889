"""Runs a recipe: ``accelerate launch -m dspy_diffusion_infill.training RECIPE``."""

import argparse
from pathlib import Path

from dspy_diffusion_infill.training.recipe import load_recipe
from dspy_diffusion_infill.training.run import train


def main() -> None:
    """Reads the command line, and trains."""
    parser = argparse.ArgumentParser(prog="python -m dspy_diffusion_infill.training")
    parser.add_argument("recipe", help="name of a recipe, or a YAML file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--output", type=Path, help="the run's folder; runs/NAME where not given")
    parser.add_argument("--resume", action="store_true", help="go on with the run in that folder")
    arguments = parser.parse_args()
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    train(recipe, output=arguments.output or Path("runs") / recipe.name, resume=arguments.resume)


if __name__ == "__main__":
    main()
