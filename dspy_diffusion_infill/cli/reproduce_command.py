"""``dspy-infill reproduce``: the paper's tables and figures."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from dspy_diffusion_infill.reproduction.checks import Check

STOPPED = 130  # the shell's code for an interrupted command
MISSING = 3


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
    context_length: Annotated[
        list[str] | None,
        typer.Option(help="NAME=TOKENS: beyond what the authors of a denoiser state."),
    ] = None,
    lm: Annotated[str | None, typer.Option(help="Another LM in place of all of them.")] = None,
    api_base: Annotated[str | None, typer.Option(help="Address of that LM.")] = None,
    rows: Annotated[
        str | None, typer.Option(help="Only these rows, by the numbers of --check: 1-6,9.")
    ] = None,
    models: Annotated[
        str | None, typer.Option(help="Only rows that are measured on these: llada,llada-fs.")
    ] = None,
    budget_hours: Annotated[
        float | None, typer.Option(help="Only rows whose expected GPU hours fit, in their order.")
    ] = None,
    train: Annotated[
        bool, typer.Option("--train", help="Train missing checkpoints first, on a GPU of 80 GB.")
    ] = False,
    serve: Annotated[
        bool, typer.Option("--serve", help="Start and stop the LM servers (needs vLLM).")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Only say what is missing and what rows cost.")
    ] = False,
) -> None:
    """Reproduces a table or figure of the paper; the same command resumes a run that was killed.

    The exit code is 3 where something is missing: rows that cannot run without are marked.
    """
    from dspy_diffusion_infill.reproduction import checks, targets

    target = targets.make_target(
        table,
        scale=scale,
        data=data,
        output=output,
        corpus=corpus,
        checkpoints=model or (),
        context_lengths=context_length or (),
        lm=lm,
        api_base=api_base,
        rows=rows,
        models=models,
        budget_hours=budget_hours,
        train=train,
        serve=serve,
    )
    found = checks.check(target)
    for line in found.lines():
        typer.echo(line)
    if found.target.measured and not check:
        _run(found, output)
    if found.missing:
        raise typer.Exit(MISSING)


def _run(found: "Check", output: Path) -> None:
    from dspy_diffusion_infill.reproduction.reproduce import run

    try:
        run(found)
    except KeyboardInterrupt:
        typer.echo(
            f"stopped; all answers are kept in {output}: the same command resumes the run",
            err=True,
        )
        raise typer.Exit(STOPPED) from None
