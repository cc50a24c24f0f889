"""One experiment from start to end: data, estimate, run, rendering."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

from dspy_diffusion_infill.errors import DataError
from dspy_diffusion_infill.evaluation.loading import Examples, load_dataset
from dspy_diffusion_infill.evaluation.retrieval import PageIndex
from dspy_diffusion_infill.evaluation.stored_index import open_index
from dspy_diffusion_infill.journal import Journal
from dspy_diffusion_infill.reproduction.costs import remaining_costs
from dspy_diffusion_infill.reproduction.experiment import Experiment, ModelSpec
from dspy_diffusion_infill.reproduction.footers import retry_remark, run_remarks
from dspy_diffusion_infill.reproduction.journals import CallJournal, Stop
from dspy_diffusion_infill.reproduction.models import Models
from dspy_diffusion_infill.reproduction.plots import save_plot
from dspy_diffusion_infill.reproduction.prompt_search import PromptSearch
from dspy_diffusion_infill.reproduction.retries import reason_of
from dspy_diffusion_infill.reproduction.runner import (
    CellResult,
    OnProgress,
    Runner,
    Serving,
    always_up,
    no_progress,
)
from dspy_diffusion_infill.reproduction.significance import PairedRow, paired_rows
from dspy_diffusion_infill.reproduction.tables import Table, make_table
from dspy_diffusion_infill.reproduction.tasks import Benchmark, Gsm8kTask, HoverTask, JudgeTask

CORPUS_PLACES = ("corpus.jsonl", "hotpot_mini/corpus.jsonl", "hover/hotpot_mini/corpus.jsonl")

Echo = Callable[[str], None]


def run_experiment(
    experiment: Experiment,
    specs: Mapping[str, ModelSpec],
    *,
    data: Path | None,
    corpus: Path | None = None,
    output: Path,
    echo: Echo = print,
    on_progress: OnProgress = no_progress,
    serving: Serving = always_up,
) -> Table:
    """Runs an experiment, or what is left of it, and writes its table.

    The folder ``output`` gets ``<name>.md``, ``.csv`` and ``.json`` after each cell, at the end
    paired tests, ``.png`` and ``.svg``, and the journals (``rows.jsonl``, ``prompts.jsonl``,
    ``retries.jsonl``, ``significance.jsonl``, ``calls/``, ``searches/``), with which the same
    command resumes a run that was killed.

    Args:
        experiment: from ``load_experiments``.
        specs: from ``load_models``.
        data: folder or file of the data sets; None is the hub.
        corpus: HoVer's pages; None is looked for in ``data``.
        output: made where it is missing.
        echo: prints a line.
        on_progress: called with a cell, how many of its rows are done, and of how many.
        serving: what must be up while a cell is run.

    Raises:
        DataError: the data are missing or ill-formed.
        ExperimentError: too many calls failed.
        RunStopped: Ctrl-C or SIGTERM; everything that was answered is kept.
    """
    started, stop = time.perf_counter(), Stop()
    retries = Journal(output / "retries.jsonl")
    models = Models(specs, on_retry=_retry_writer(retries, experiment))
    runner = make_runner(
        experiment,
        models,
        stop,
        data=data,
        corpus=corpus,
        output=output,
        on_progress=on_progress,
        serving=serving,
    )
    calls = CallJournal(output / "calls", stop)
    with calls.in_use():
        _announce(runner, echo)
        results: list[CellResult] = []
        with stop.on_signals():
            for result in runner.results():
                results.append(result)
                _write(runner, results, retries, output)
        tests = Journal(output / "significance.jsonl")
        paired = paired_rows(experiment, results, tests)
        table = _write(runner, results, retries, output, paired)
    save_plot(table, output / experiment.name)
    seconds = time.perf_counter() - started
    echo(table.markdown())
    echo(
        f"{experiment.name}: {seconds:.0f} s; {calls.num_made} calls made, {calls.num_known} "
        f"answered from the journal; written to {output / experiment.name}.md, .csv, .json, .png "
        "and .svg"
    )
    return table


def _write(
    runner: Runner,
    results: Sequence[CellResult],
    retries: Journal,
    output: Path,
    paired: tuple[PairedRow, ...] = (),
) -> Table:
    """Writes the table as far as it goes; paired tests, which take a while, only at the end."""
    experiment, models = runner.experiment, runner.models
    table = make_table(
        experiment,
        runner.task,
        results,
        models={name: models.lm_name(name) for name in {r.cell.condition.model for r in results}},
        notes=[retry_remark(retries, experiment), *run_remarks(runner)],
    )
    table = replace(table, paired=paired)
    found = [
        (str(result.cell), list(result.instructions.values()))
        for result in results
        if result.cell.condition.steps
    ]
    write_table(table, found, output)
    return table


def make_runner(
    experiment: Experiment,
    models: Models,
    stop: Stop,
    *,
    data: Path | None,
    corpus: Path | None = None,
    output: Path,
    on_progress: OnProgress = no_progress,
    serving: Serving = always_up,
) -> Runner:
    """The runner of an experiment: data, task and journals are read, and no model is loaded."""
    return runner_over(
        experiment,
        models,
        stop,
        test=load_dataset(experiment.test.name, data=data, split=experiment.test.split),
        shots=load_dataset(experiment.shots.name, data=data, split=experiment.shots.split),
        index=_index(experiment, data, corpus),
        output=output,
        on_progress=on_progress,
        serving=serving,
    )


def runner_over(
    experiment: Experiment,
    models: Models,
    stop: Stop,
    *,
    test: Examples,
    shots: Examples,
    index: PageIndex | None,
    output: Path,
    is_journaled: bool = True,
    on_progress: OnProgress = no_progress,
    serving: Serving = always_up,
) -> Runner:
    """As ``make_runner``, over these rows and pages; with journals in ``output``, or empty ones."""
    rows, found = (
        Journal(output / name if is_journaled else None) for name in ("rows.jsonl", "prompts.jsonl")
    )
    task = _benchmark(experiment, index)
    prompts = PromptSearch(
        task=task,
        models=models,
        search=experiment.search,
        journal=found,
        folder=output,
        threads=experiment.threads,
        stop=stop,
    )
    return Runner(
        experiment=experiment,
        task=task,
        models=models,
        prompts=prompts,
        journal=rows,
        test=test,
        shots=shots,
        stop=stop,
        on_progress=on_progress,
        serving=serving,
    )


def _retry_writer(journal: Journal, experiment: Experiment) -> Callable[[str, Exception], None]:
    def write(name: str, error: Exception) -> None:
        value = {"experiment": experiment.name, "reason": reason_of(error)}
        journal.put(uuid4().hex, value, about=f"a call of {name}")

    return write


def _announce(runner: Runner, echo: Echo) -> None:
    experiment = runner.experiment
    cells = runner.cells()
    echo(f"{experiment.title} ({experiment.scale} scale): {len(cells)} cells, at most:")
    for cost in remaining_costs(runner):
        echo(f"  {cost}")


def _benchmark(experiment: Experiment, index: PageIndex | None) -> Benchmark:
    """The experiment's task; HoVer's needs an index of pages."""
    if experiment.task in ("summeval", "biggen"):
        return JudgeTask(experiment.judge)
    if experiment.task == "gsm8k":
        return Gsm8kTask()
    assert index is not None, "HoVer searches pages"
    return HoverTask(index, experiment.pages_per_hop)


def _index(experiment: Experiment, data: Path | None, corpus: Path | None) -> PageIndex | None:
    if experiment.task != "hover":
        return None
    found = corpus or find_corpus(data, None)
    if found is None:
        raise DataError(
            "HoVer searches a corpus of pages: give a JSONL file of {title, text} as corpus "
            "(--corpus), or as corpus.jsonl in the data folder, or a folder of dspy-infill "
            "hover-corpus (--corpus)"
        )
    return open_index(found)


def find_corpus(data: Path | None, corpus: Path | None) -> Path | None:
    """HoVer's pages: what is given, else in the data folder; None where they are not there."""
    places = [data / place for place in CORPUS_PLACES] if data is not None else []
    return next((one for one in ([corpus] if corpus else places) if one.exists()), None)


def write_table(table: Table, prompts: Sequence[tuple[str, Sequence[str]]], output: Path) -> None:
    """Writes a table, and the prompts that were found, under a heading each."""
    output.mkdir(parents=True, exist_ok=True)
    path = output / table.experiment.name
    path.with_suffix(".md").write_text(table.markdown(), encoding="utf-8")
    path.with_suffix(".csv").write_text(table.csv(), encoding="utf-8")
    path.with_suffix(".json").write_text(table.json(), encoding="utf-8")
    found = [f"## {heading}\n\n" + "\n\n".join(map(_fenced, texts)) for heading, texts in prompts]
    if found:
        text = "\n\n".join(["# The prompts that were found", *found]) + "\n"
        (output / f"{table.experiment.name}_prompts.md").write_text(text, encoding="utf-8")


def _fenced(text: str) -> str:
    return f"````text\n{text}\n````"
