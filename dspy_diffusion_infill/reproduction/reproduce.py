"""A table or figure of the paper by name: its experiments, one after the other."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from dspy_diffusion_infill.reproduction import experiment_files as files
from dspy_diffusion_infill.reproduction.experiment import DIFFUSION, Experiment, ModelSpec, Scale
from dspy_diffusion_infill.reproduction.experiment_run import Echo, run_experiment
from dspy_diffusion_infill.reproduction.fills import run_fills
from dspy_diffusion_infill.reproduction.perplexity import PERPLEXITY
from dspy_diffusion_infill.reproduction.runner import Cell, OnProgress
from dspy_diffusion_infill.reproduction.tables import Table


def reproduce(
    table: str,
    *,
    scale: Scale | str = "full",
    data: str | Path | None = None,
    output: str | Path = "runs",
    corpus: str | Path | None = None,
    checkpoints: Sequence[str] = (),
    lm: str | None = None,
    api_base: str | None = None,
) -> list[Table]:
    """Runs the experiments behind a table or figure and writes them to ``output``.

    Args:
        table: ``table1``, ``table2``, ``table3``, ``table4``, ``table7``, ``figure2``,
            ``figure4``, ``figure5`` or ``figure6``.
        scale: ``full`` or ``smoke``.
        data: folder of the data sets; None is the hub.
        output: folder for tables, plots and journals.
        corpus: HoVer's pages; for ``table7`` only.
        checkpoints: ``NAME=CHECKPOINT``, other denoisers for models of ``models.yaml``.
        lm: an LM in place of all of theirs, such as ``openai/gpt-4o-mini``.
        api_base: address of that LM, such as a vLLM server's.

    Raises:
        ValueError: unknown table, scale or model, or an option that means nothing for the table.
        DataError: data are missing or ill-formed.
        ExperimentError: too many calls failed.
        KeyboardInterrupt: Ctrl-C or SIGTERM; what was answered is kept.
    """
    if table == "mini":
        raise ValueError("mini is a command of its own: dspy-infill mini")
    experiments = files.load_experiments(table, scale=scale)
    if corpus is not None and all(one.task != "hover" for one in experiments):
        raise ValueError(f"corpus (--corpus) is what HoVer searches, and {table} is not on HoVer")
    if api_base is not None and lm is None:
        raise ValueError("api_base is the address of an LM: give lm too (--lm openai/NAME)")
    if lm is not None and table == "figure2":
        raise ValueError("lm (--lm) is what answers, and figure2 asks no LM: use --model")
    specs = files.load_models(experiments[0].scale)
    with_lms = specs if lm is None else files.with_lm(specs, lm, api_base=api_base)
    changed = files.with_checkpoints(with_lms, checkpoints)
    for name in changed:
        if changed[name].denoiser != with_lms[name].denoiser:
            _check_denoiser_is_used(table, name, experiments, with_lms)
    if table == "figure2":
        folder = None if data is None else Path(data)
        return [run_fills(one, changed, data=folder, output=Path(output)) for one in experiments]
    with _progress_bar() as (echo, on_progress):
        return [
            run_experiment(
                experiment,
                changed,
                data=None if data is None else Path(data),
                corpus=None if corpus is None else Path(corpus),
                output=Path(output),
                echo=echo,
                on_progress=on_progress,
            )
            for experiment in experiments
        ]


def _check_denoiser_is_used(
    table: str, name: str, experiments: Sequence[Experiment], specs: Mapping[str, ModelSpec]
) -> None:
    """Another denoiser means something where it proposes, answers, or has its perplexity taken."""
    used: set[str] = set()
    for experiment in experiments:
        for condition in experiment.conditions:
            used |= {step.by for step in condition.steps if step.kind == "infill"}
            if PERPLEXITY in experiment.measures:
                used.add(condition.model)
        used |= {one for one in experiment.models if specs[one].lm == DIFFUSION}
    if name not in used:
        raise ValueError(
            f"{table} does not use the denoiser of {name!r} (--model); it uses those of "
            f"{', '.join(sorted(used)) or 'no model'}"
        )


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
