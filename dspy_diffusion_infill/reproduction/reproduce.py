"""One of the paper's tables from start to end: data, estimate, run, rendering."""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from dspy_diffusion_infill.errors import DataError
from dspy_diffusion_infill.evaluation.loading import load_dataset
from dspy_diffusion_infill.evaluation.retrieval import Bm25Index
from dspy_diffusion_infill.journal import Journal
from dspy_diffusion_infill.reproduction.costs import estimate
from dspy_diffusion_infill.reproduction.experiment import Experiment, ModelSpec, Step
from dspy_diffusion_infill.reproduction.journals import CallJournal, Stop
from dspy_diffusion_infill.reproduction.models import Models
from dspy_diffusion_infill.reproduction.perplexity import PERPLEXITY, Perplexity
from dspy_diffusion_infill.reproduction.plots import save_plot
from dspy_diffusion_infill.reproduction.prompt_search import Infill, PromptSearch
from dspy_diffusion_infill.reproduction.retries import reason_of
from dspy_diffusion_infill.reproduction.runner import Cell, CellResult, Runner
from dspy_diffusion_infill.reproduction.tables import Table, make_table
from dspy_diffusion_infill.reproduction.tasks import Gsm8kTask, HoverTask, JudgeTask, Task

CORPUS_PLACES = ("corpus.jsonl", "hotpot_mini/corpus.jsonl", "hover/hotpot_mini/corpus.jsonl")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """What this package is given by the layer above.

    Attributes:
        infill: the infilling optimizer.
        perplexity: diffusion perplexity.
        echo: prints a line.
        on_progress: told a cell, how many of its rows are done, and of how many.
    """

    infill: Infill | None = None
    perplexity: Perplexity | None = None
    echo: Callable[[str], None] = print
    on_progress: Callable[[Cell, int, int], None] = lambda cell, done, total: None


def run_experiment(
    experiment: Experiment,
    specs: Mapping[str, ModelSpec],
    *,
    data: Path | None,
    corpus: Path | None = None,
    output: Path,
    tools: Tools,
) -> Table:
    """Runs an experiment, or what is left of it, and writes its table.

    The folder ``output`` gets ``<name>.md``, ``.csv``, ``.png`` and ``.svg``, and the journals
    (``rows.jsonl``, ``prompts.jsonl``, ``retries.jsonl``, ``calls/``, ``searches/``), with which
    the same command goes on after a kill.

    Args:
        experiment: from ``load_experiment``.
        specs: from ``load_models``.
        data: folder or file of the data sets; None is the hub.
        corpus: HoVer's pages; None is looked for in ``data``.
        output: made where it is missing.
        tools: from the layer above.

    Raises:
        DataError: the data are missing or ill-formed.
        ExperimentError: too many calls failed.
        RunStopped: Ctrl-C or SIGTERM; everything that was answered is kept.
    """
    started, stop = time.perf_counter(), Stop()
    retries = Journal(output / "retries.jsonl")
    models = Models(specs, on_retry=_retry_writer(retries, experiment))
    runner = _runner(experiment, models, stop, data=data, corpus=corpus, output=output, tools=tools)
    calls = CallJournal(output / "calls", stop)
    with calls.in_use():
        _announce(runner, tools.echo)
        with stop.on_signals():
            results = runner.run()
    table = make_table(
        experiment,
        runner.task,
        results,
        models={name: models.lm(name).model for name in experiment.models},
        notes=[_retry_note(retries, experiment), *_notes(runner)],
    )
    _write(table, results, output)
    seconds = time.perf_counter() - started
    tools.echo(table.markdown())
    tools.echo(
        f"{experiment.name}: {seconds:.0f} s; {calls.num_made} calls made, {calls.num_known} "
        f"answered from the journal; written to {output / experiment.name}.md, .csv, .png and .svg"
    )
    return table


def _runner(
    experiment: Experiment,
    models: Models,
    stop: Stop,
    *,
    data: Path | None,
    corpus: Path | None,
    output: Path,
    tools: Tools,
) -> Runner:
    """Data, task and journals put together; no model is loaded."""
    test = load_dataset(experiment.test.name, data=data, split=experiment.test.split)
    shots = load_dataset(experiment.shots.name, data=data, split=experiment.shots.split)
    task = _task(experiment, data, corpus)
    prompts = PromptSearch(
        task=task,
        models=models,
        search=experiment.search,
        infill=tools.infill,
        journal=Journal(output / "prompts.jsonl"),
        folder=output,
        threads=experiment.threads,
        stop=stop,
    )
    return Runner(
        experiment=experiment,
        task=task,
        models=models,
        prompts=prompts,
        journal=Journal(output / "rows.jsonl"),
        test=test,
        shots=shots,
        perplexity=tools.perplexity,
        stop=stop,
        on_progress=tools.on_progress,
    )


def _retry_writer(journal: Journal, experiment: Experiment) -> Callable[[str, Exception], None]:
    def write(name: str, error: Exception) -> None:
        value = {"experiment": experiment.name, "reason": reason_of(error)}
        journal.put(uuid4().hex, value, about=f"a call of {name}")

    return write


def _retry_note(journal: Journal, experiment: Experiment) -> str:
    """Over all sessions of the run."""
    mine = [one["reason"] for one in journal.values() if one["experiment"] == experiment.name]
    reasons = ", ".join(f"{reason}: {count}" for reason, count in sorted(Counter(mine).items()))
    why = f" ({reasons})" if mine else ""
    return f"Calls sent again after an error of the LM's server: {len(mine)}{why}."


def _announce(runner: Runner, echo: Callable[[str], None]) -> None:
    experiment = runner.experiment
    cells = runner.cells()
    echo(f"{experiment.title} ({experiment.scale} scale): {len(cells)} cells, at most:")
    for cost in estimate(runner):
        echo(f"  {cost}")


def _task(experiment: Experiment, data: Path | None, corpus: Path | None) -> Task:
    if experiment.task in ("summeval", "biggen"):
        return JudgeTask(experiment.judge)
    if experiment.task == "gsm8k":
        return Gsm8kTask()
    places = [data / place for place in CORPUS_PLACES] if data is not None else []
    found = corpus or next((place for place in places if place.is_file()), None)
    if found is None:
        raise DataError(
            "HoVer searches a corpus of pages: give a JSONL file of {title, text} as corpus "
            "(--corpus), or as corpus.jsonl in the data folder"
        )
    return HoverTask(Bm25Index.from_file(found), experiment.pages_per_hop)


def _notes(runner: Runner) -> list[str]:
    """What it was measured on; nothing that changes when the same command is run again."""
    experiment, test, shots = runner.experiment, runner.test, runner.shots
    num_test = min(len(test), experiment.test.num or len(test))
    num_shots = min(len(shots), experiment.shots.num or len(shots))
    cut = experiment.test.max_chars
    proposers = {
        step.by: _proposer(step, runner.models)
        for condition in experiment.conditions
        for step in condition.steps
    }
    measured = (
        f"Measured on {num_test} of {len(test)} rows of {_short(test.source)} "
        f"({experiment.test.split})"
    )
    if PERPLEXITY in experiment.measures:
        num_scored = min(num_test, experiment.perplexity_rows or num_test)
        measured += (
            f"; perplexity on the first {num_scored} of them, with "
            f"{experiment.perplexity_samples} draws of masks each"
        )
    if any(condition.steps or condition.demos for condition in experiment.conditions):
        measured += f"; {num_shots} shots of {_short(shots.source)} ({experiment.shots.split})"
    notes = [
        f"{measured}." + (f" Texts are cut at {cut} characters." if cut else ""),
        f"Rows dropped by the data set's rule: {test.num_dropped} (test), {shots.num_dropped} "
        "(shots).",
    ]
    if proposers:
        named = ", ".join(f"{name} = {who}" for name, who in proposers.items())
        notes.append(f"Prompts proposed by: {named}.")
    notes += [f"The paper's figures: {remark}" for remark in experiment.paper_remarks]
    if experiment.scale != "full":
        notes.append(
            f"Scale: {experiment.scale}. This run shows that the machinery works; its figures say "
            "nothing about the paper's models."
        )
    return notes


def _proposer(step: Step, models: Models) -> str | None:
    spec = models.spec(step.by)
    return spec.denoiser if step.kind == "infill" else spec.lm


def _short(source: str) -> str:
    """The last two parts of each path: a table does not depend on where the data lie."""
    return ", ".join("/".join(Path(part).parts[-2:]) for part in source.split(", "))


def _write(table: Table, results: list[CellResult], output: Path) -> None:
    path = output / table.experiment.name
    path.with_suffix(".md").write_text(table.markdown(), encoding="utf-8")
    path.with_suffix(".csv").write_text(table.csv(), encoding="utf-8")
    prompts = [
        f"## {result.cell}\n\n"
        + "\n\n".join(_fenced(text) for text in result.instructions.values())
        for result in results
        if result.cell.condition.steps
    ]
    if prompts:
        text = "\n\n".join(["# The prompts that were found", *prompts]) + "\n"
        (output / f"{table.experiment.name}_prompts.md").write_text(text, encoding="utf-8")
    save_plot(table, path)


def _fenced(text: str) -> str:
    return f"````text\n{text}\n````"
