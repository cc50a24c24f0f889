"""Runs a recipe: ``accelerate launch -m dspy_diffusion_infill.training RECIPE``."""

import argparse
import os
import sys
from pathlib import Path

from dspy_diffusion_infill.errors import EXPECTED
from dspy_diffusion_infill.training.recipe import load_recipe
from dspy_diffusion_infill.training.run import train


def main() -> None:
    """Reads the command line, and trains; an expected error is one line and exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m dspy_diffusion_infill.training")
    parser.add_argument("recipe", help="name of a recipe, or a YAML file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--output", type=Path, help="the run's folder; runs/NAME where not given")
    parser.add_argument("--resume", action="store_true", help="go on with the run in that folder")
    arguments = parser.parse_args()
    try:
        recipe = load_recipe(arguments.recipe, arguments.overrides)
        output = arguments.output or Path("runs") / recipe.name
        train(recipe, output=output, resume=arguments.resume)
    except EXPECTED as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"{parser.prog}: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
