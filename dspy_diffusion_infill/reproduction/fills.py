"""What checkpoints fill into a masked prompt, counted (paper, Figure 2): no LM answers anything."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import dspy

from dspy_diffusion_infill.contexts import Slot, WorkedExample
from dspy_diffusion_infill.denoisers import Denoiser, InfillRequest, Sampling
from dspy_diffusion_infill.evaluation.statistics import spread
from dspy_diffusion_infill.infiller.infiller import Infiller
from dspy_diffusion_infill.lms.chatml import END_OF_TEXT
from dspy_diffusion_infill.programs import signature_of
from dspy_diffusion_infill.reproduction.experiment import Condition, Experiment, ModelSpec
from dspy_diffusion_infill.reproduction.experiment_run import Echo, make_runner, write_table
from dspy_diffusion_infill.reproduction.footers import closing_remarks
from dspy_diffusion_infill.reproduction.journals import Stop
from dspy_diffusion_infill.reproduction.models import Models
from dspy_diffusion_infill.reproduction.plots import save_plot
from dspy_diffusion_infill.reproduction.runner import Cell, Runner
from dspy_diffusion_infill.reproduction.tables import Table, TableRow, not_run
from dspy_diffusion_infill.windows import Prefix, Window, take_marks


@dataclass(frozen=True, slots=True)
class Fill:
    """What was filled into one prompt.

    Attributes:
        num_tokens: tokens that were masked.
        num_ends: how many of them became end-of-text.
        prompt: the filled prompt, with its placeholders; end-of-text is spelled out.
    """

    num_tokens: int
    num_ends: int
    prompt: str


def run_fills(
    experiment: Experiment,
    specs: Mapping[str, ModelSpec],
    *,
    data: Path | None,
    output: Path,
    echo: Echo = print,
) -> Table:
    """Fills the conditions' masked prompts and writes the table of what they were filled with.

    Each condition has one infill step. For each seed, ``search.proposals`` prompts are filled, as a
    search fills them, and nothing is dropped.

    Args:
        experiment: measures ``FILL_MEASURES``.
        specs: from ``load_models``.
        data: folder or file of the data sets; None is the hub.
        output: for the table, its plot, and every prompt.
        echo: prints a line.

    Raises:
        DataError: the data are missing or ill-formed.
    """
    models = Models(specs)
    runner = make_runner(experiment, models, Stop(), data=data, output=output)
    rows = {place: _row(one, [], not_run(one)) for place, one in enumerate(experiment.conditions)}
    prompts: list[tuple[str, list[str]]] = []
    table = Table(experiment, tuple(rows.values()), tuple(_notes(experiment)))
    write_table(table, prompts, output)
    for place, condition in enumerate(experiment.conditions):
        if condition.not_run:
            continue
        denoiser = models.denoiser(condition.steps[0].by)
        cells = [Cell(condition, seed) for seed in experiment.seeds]
        runs = [fills(runner, cell, denoiser) for cell in cells]
        rows[place] = _row(condition, runs, denoiser.name)
        prompts += [
            (str(cell), [fill.prompt for fill in run])
            for cell, run in zip(cells, runs, strict=True)
        ]
        table = replace(table, rows=tuple(rows.values()))
        write_table(table, prompts, output)
    save_plot(table, output / experiment.name)
    echo(table.markdown())
    return table


def fills(runner: Runner, cell: Cell, denoiser: Denoiser) -> list[Fill]:
    """What a denoiser fills into the masked part of a cell's prompt, given its shots."""
    asked, search = runner.search_task(cell), runner.experiment.search
    program = runner.task.program(asked.template, runner.models.spec(asked.lm), seed=cell.seed)
    slot = _slot(program, runner.task.adapter(program), asked.shots)
    text, marked = take_marks(slot.signature.instructions)
    window = marked or Prefix(asked.steps[0].prefix or search.mask, 0).windows(text, (), ())[0]
    sampling = Sampling(steps=search.steps, forbid_special=search.forbid_special)
    infiller = Infiller(denoiser, sampling, (1, search.examples))
    rng = random.Random(f"fills/{cell.seed}")
    contexts = [infiller.masked_context(slot, text, window, rng) for _ in range(search.proposals)]
    requests = [InfillRequest(one.input_ids, seed=rng.randrange(2**31)) for one in contexts]
    return [
        _fill(denoiser, text, window, context.piece_starts, one.input_ids)
        for context, one in zip(contexts, denoiser.infill(requests, sampling), strict=True)
    ]


def _fill(
    denoiser: Denoiser, text: str, window: Window, starts: Sequence[int], ids: Sequence[int]
) -> Fill:
    end = denoiser.encode(END_OF_TEXT).input_ids
    pieces = [
        ids[start : start + piece.num_masks]
        for start, piece in zip(starts, window.pieces, strict=True)
    ]
    num_ends = sum((token,) == end for piece in pieces for token in piece)
    prompt = window.splice(text, [denoiser.decode(piece) for piece in pieces])
    return Fill(window.num_masks, num_ends, prompt)


def _slot(
    program: dspy.Module, adapter: dspy.Adapter | None, shots: Sequence[dspy.Example]
) -> Slot:
    ((name, predictor),) = program.named_predictors()
    signature = signature_of(predictor)
    examples = tuple(
        WorkedExample(
            {field: shot[field] for field in signature.input_fields},
            {field: shot[field] for field in signature.output_fields},
        )
        for shot in shots
    )
    assert adapter is not None, "the programs of masked prompts have an adapter"
    return Slot(name, signature, adapter, examples)


def _row(condition: Condition, runs: Sequence[Sequence[Fill]], name: str) -> TableRow:
    ends = [100 * _share([f.num_ends for f in run], [f.num_tokens for f in run]) for run in runs]
    only = [100 * _share([f.num_ends == f.num_tokens for f in run], [1] * len(run)) for run in runs]
    ours = {"end_of_text": spread(ends), "only_end_of_text": spread(only)}
    return TableRow(condition, ours, sum(map(len, runs)), 0, 0, None, name)


def _notes(experiment: Experiment) -> list[str]:
    search, shots = experiment.search, experiment.shots
    return [
        f"Each run fills {search.proposals} prompts in {search.steps} steps at the checkpoint's "
        f"own temperature, each given 1 to {search.examples} worked examples of {shots.num} from "
        f"{shots.name} ({shots.split}).",
        f"Runs: {len(experiment.seeds)}; ± is the standard deviation over runs.",
        *closing_remarks(experiment),
    ]


def _share(parts: Sequence[int], wholes: Sequence[int]) -> float:
    return sum(parts) / sum(wholes)
