"""The command line's root.

Each group of commands is in a module of its own, and heavy imports wait in the commands.
"""

import sys

import typer

from dspy_diffusion_infill.cli import (
    calibrate_command,
    corpus_command,
    demo_command,
    mini_command,
    report_command,
    reproduce_command,
    serve_command,
    training_commands,
)
from dspy_diffusion_infill.cli.streams import forgiving_streams
from dspy_diffusion_infill.errors import EXPECTED

app = typer.Typer(
    name="dspy-infill",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Infill windows of DSPy instructions with a masked diffusion language model.",
)
for commands in (
    demo_command,
    training_commands,
    calibrate_command,
    reproduce_command,
    serve_command,
    corpus_command,
    mini_command,
    report_command,
):
    commands.register(app)


def main() -> None:
    """Runs the command line; an expected error is one line on standard error and exit code 2."""
    with forgiving_streams():
        try:
            app()
        except EXPECTED as error:
            print(f"dspy-infill: {error}", file=sys.stderr)
            sys.exit(2)
