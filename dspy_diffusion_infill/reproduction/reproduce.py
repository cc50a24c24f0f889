"""A table or figure of the paper by name: what it needs is checked, then its parts are run."""

import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from dspy_diffusion_infill.errors import ExperimentError, MissingPiecesError
from dspy_diffusion_infill.reproduction.check_files import recipes_needed, train_command
from dspy_diffusion_infill.reproduction.checks import Check, check
from dspy_diffusion_infill.reproduction.experiment import Experiment
from dspy_diffusion_infill.reproduction.experiment_run import Echo, run_experiment
from dspy_diffusion_infill.reproduction.runner import Cell, OnProgress, Serving, always_up
from dspy_diffusion_infill.reproduction.servers import RunningServers
from dspy_diffusion_infill.reproduction.tables import Table
from dspy_diffusion_infill.reproduction.targets import PaperItem, PaperRow, make_target


def reproduce(table: str, **options: Any) -> list[Table]:
    """Checks what a table or figure needs, runs its experiments, and writes them to ``output``.

    Args:
        table: ``table1``, ``table2``, ``table3``, ``table4``, ``table7``, ``figure2``,
            ``figure4``, ``figure5`` or ``figure6``.
        options: those of ``make_target``.

    Raises:
        ValueError: unknown table, scale or model, or an option that means nothing for the table.
        MissingPiecesError: no row can run; the message says what provides each missing piece.
        DataError: data are ill-formed.
        ExperimentError: too many calls failed, or a training or a server did.
        KeyboardInterrupt: Ctrl-C or SIGTERM; what was answered is kept.
    """
    return run(check(make_target(table, **options)))


def run(found: Check) -> list[Table]:
    """Runs the rows that can run, after the checkpoints that are to be trained.

    Raises:
        MissingPiecesError: none can.
        ExperimentError: as ``reproduce``.
        KeyboardInterrupt: as ``reproduce``.
    """
    target = found.target
    if not target.measured:
        raise MissingPiecesError("no row can run:\n" + "\n".join(map(str, found.missing)))
    if target.train:
        train_missing(target)
    servers = RunningServers(target.specs, target.output / "servers")
    try:
        with _progress_bar() as (echo, on_progress):
            return [
                _run_part(one, target, servers, echo, on_progress) for one in target.experiments
            ]
    finally:
        servers.stop()


def train_missing(target: PaperItem) -> None:
    """Trains the checkpoints that rows need and that have a recipe, each in its own process.

    Raises:
        ExperimentError: a training failed; the next run goes on with it.
    """
    for name, spec in recipes_needed(target, target.measured).items():
        _, recipe, *options = train_command(spec)
        command = [sys.executable, "-m", "dspy_diffusion_infill.training", recipe, *options]
        if subprocess.run(command, check=False).returncode:
            raise ExperimentError(f"the training of {name} failed: {' '.join(command)}")


def _run_part(
    experiment: Experiment,
    target: PaperItem,
    servers: RunningServers,
    echo: Echo,
    on_progress: OnProgress,
) -> Table:
    if experiment.only_fills:
        from dspy_diffusion_infill.reproduction.fills import run_fills

        return run_fills(
            experiment, target.specs, data=target.data, output=target.output, echo=echo
        )
    return run_experiment(
        experiment,
        target.specs,
        data=target.data,
        corpus=target.corpus,
        output=target.output,
        echo=echo,
        on_progress=on_progress,
        serving=_serving(experiment, target, servers) if target.serve else always_up,
    )


def _serving(experiment: Experiment, target: PaperItem, servers: RunningServers) -> Serving:
    def serving(cell: Cell) -> AbstractContextManager[None]:
        return servers.up(PaperRow(0, experiment, cell.condition).lms(target.specs))

    return serving


@contextmanager
def _progress_bar() -> Iterator[tuple[Echo, OnProgress]]:
    """What prints a line, and what moves a progress bar, while the block runs."""
    # A judge's answer that is cut at max_tokens is unreadable and counted; it need not be logged.
    logging.getLogger("dspy.clients.lm").setLevel(logging.ERROR)
    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns,
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        line = bar.add_task("", total=None)

        def on_progress(cell: Cell, done: int, total: int) -> None:
            bar.update(line, description=str(cell), completed=done, total=total)

        def echo(text: str) -> None:
            console.print(text, markup=False, highlight=False, soft_wrap=True)

        yield echo, on_progress
