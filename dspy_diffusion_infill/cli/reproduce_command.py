"""``dspy-infill reproduce``: the paper's tables and figures."""

from pathlib import Path
from typing import Annotated

import typer

STOPPED = 130  # the shell's code for an interrupted command


def register(app: typer.Typer) -> None:
    """Adds the command to the root."""
    app.command("reproduce")(reproduce_command)


def reproduce_command(
    table: Annotated[
        str,
        typer.Argument(
            help="table1, table2, table3, table4, table7, figure2, figure4, figure5, figure6."
        ),
    ],
    scale: Annotated[
        str, typer.Option(help="full is the paper's, smoke runs on a laptop.")
    ] = "full",
    data: Annotated[Path | None, typer.Option(help="Folder of data sets; else the hub.")] = None,
    output: Annotated[Path, typer.Option(help="Tables and journals go here.")] = Path("runs"),
    corpus: Annotated[
        Path | None, typer.Option(help="table7: JSONL of {title, text} that HoVer searches.")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="NAME=CHECKPOINT: another denoiser for a model of models.yaml."),
    ] = None,
    lm: Annotated[str | None, typer.Option(help="Another LM in place of all of them.")] = None,
    api_base: Annotated[str | None, typer.Option(help="Address of that LM.")] = None,
) -> None:
    """Reproduces a table or figure of the paper; the same command resumes a run that was killed."""
    from dspy_diffusion_infill.reproduction.reproduce import reproduce

    try:
        reproduce(
            table,
            scale=scale,
            data=data,
            output=output,
            corpus=corpus,
            checkpoints=model or (),
            lm=lm,
            api_base=api_base,
        )
    except KeyboardInterrupt:
        typer.echo(
            f"stopped; all answers are kept in {output}: the same command resumes the run",
            err=True,
        )
        raise typer.Exit(STOPPED) from None
