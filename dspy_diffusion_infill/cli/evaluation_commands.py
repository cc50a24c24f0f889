"""``dspy-infill reproduce``: the paper's tables and figures."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dspy_diffusion_infill.cli.json_files import make_folder

if TYPE_CHECKING:
    from dspy_diffusion_infill.reproduction.experiment import Scale
    from dspy_diffusion_infill.reproduction.tables import Table

STOPPED = 130  # the shell's code for an interrupted command

Tables = Annotated[
    str,
    typer.Argument(
        help="table1, table2, table3, table4, table7, figure4, figure5, figure6; or mini, the "
        "claim reproduced small, from nothing and on a CPU."
    ),
]


def register(app: typer.Typer) -> None:
    """Adds the command to the root."""
    app.command("reproduce")(reproduce_command)


def reproduce_command(
    table: Tables,
    scale: Annotated[
        str, typer.Option(help="full is the paper's, smoke runs on a laptop.")
    ] = "full",
    data: Annotated[Path | None, typer.Option(help="Folder of data sets; else the hub.")] = None,
    output: Annotated[Path, typer.Option(help="Tables and journals go here.")] = Path("runs"),
    corpus: Annotated[
        Path | None, typer.Option(help="JSONL of {title, text} that HoVer searches.")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="NAME=CHECKPOINT: another denoiser for a model of models.yaml."),
    ] = None,
    lm: Annotated[str | None, typer.Option(help="Another LM in place of all of them.")] = None,
    api_base: Annotated[str | None, typer.Option(help="Address of that LM.")] = None,
    seeds: Annotated[int, typer.Option(help="Runs of mini.")] = 3,
    json_path: Annotated[
        Path | None,
        typer.Option("--json", dir_okay=False, help="Write the rows of mini to this file."),
    ] = None,
) -> None:
    """Reproduces a table or figure of the paper; the same command goes on after a kill."""
    if json_path is not None:
        make_folder(json_path)
    if table == "mini":
        from dspy_diffusion_infill.reproduction.mini import run_mini

        run_mini(
            seeds=seeds,
            output=output,
            json=json_path,
            scale=scale,  # pyright: ignore[reportArgumentType] - run_mini refuses another
        )
        return
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
            f"stopped; all answers are kept in {output}: the same command goes on from here",
            err=True,
        )
        raise typer.Exit(STOPPED) from None


def reproduce(
    table: str,
    *,
    scale: "Scale | str" = "full",
    data: str | Path | None = None,
    output: str | Path = "runs",
    corpus: str | Path | None = None,
    checkpoints: Sequence[str] = (),
    lm: str | None = None,
    api_base: str | None = None,
) -> "list[Table]":
    """Runs the experiments behind a table or figure and writes them to ``output``.

    Args:
        table: ``table1``, ``table2``, ``table3``, ``table4``, ``table7``, ``figure4``, ``figure5``
            or ``figure6``.
        scale: ``full`` or ``smoke``.
        data: folder of the data sets; None is the hub.
        output: folder for tables, plots and journals.
        corpus: HoVer's pages.
        checkpoints: ``NAME=CHECKPOINT``, other denoisers for models of ``models.yaml``.
        lm: an LM in place of all of theirs, such as ``openai/gpt-4o-mini``.
        api_base: address of that LM, such as a vLLM server's.

    Raises:
        ValueError: unknown table, scale or model.
        DataError: data are missing or ill-formed.
        ExperimentError: too many calls failed.
        KeyboardInterrupt: Ctrl-C or SIGTERM; what was answered is kept.
    """
    from dspy_diffusion_infill.cli.evaluation_tools import make_tools
    from dspy_diffusion_infill.reproduction import experiment_files as files
    from dspy_diffusion_infill.reproduction.reproduce import run_experiment

    experiments = files.load_experiments(table, scale=scale)
    specs = files.with_checkpoints(files.load_models(experiments[0].scale), checkpoints)
    if lm is not None:
        specs = files.with_lm(specs, lm, api_base=api_base)
    elif api_base is not None:
        raise ValueError("api_base is the address of an LM: give lm too (--lm openai/NAME)")
    with make_tools() as tools:
        return [
            run_experiment(
                experiment,
                specs,
                data=None if data is None else Path(data),
                corpus=None if corpus is None else Path(corpus),
                output=Path(output),
                tools=tools,
            )
            for experiment in experiments
        ]
