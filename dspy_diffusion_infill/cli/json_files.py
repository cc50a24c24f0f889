"""``--json FILE``: written at the end of a command, checked at its start."""

import os
from pathlib import Path
from typing import Annotated

import typer

JsonFile = Annotated[
    Path | None,
    typer.Option("--json", dir_okay=False, writable=True, help="Write the figures to this file."),
]


def make_folder(file: Path) -> None:
    """Makes the folder of a file that is written at the end.

    Raises:
        ValueError: nothing can be written there.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--json {file}: no folder can be made for it: {error}") from error
    if not os.access(file.parent, os.W_OK):
        raise ValueError(f"--json {file}: its folder cannot be written to")
