"""The demo's steps: rows, program, scores before, search, scores after, report."""

import json
import logging
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import dspy
from dspy.signatures import make_signature
from rich.console import Console

from dspy_diffusion_infill.adapters import TemplateAdapter
from dspy_diffusion_infill.errors import DataError
from dspy_diffusion_infill.optimizer.diffusion_infill import DiffusionInfill
from dspy_diffusion_infill.optimizer.metrics import ExactMatch
from dspy_diffusion_infill.optimizer.results import DetailedResults, results_of
from dspy_diffusion_infill.optimizer.validation import Validator
from dspy_diffusion_infill.report import print_report

NUM_TRAIN, NUM_VALID = 16, 32
BUNDLED_TASK = "sentiment"
BUNDLED_INSTRUCTIONS = "Tell me what the customer thinks of the product."
_MAX_LABELS = 12


@dataclass(frozen=True, slots=True)
class Rows:
    """What the denoiser sees, what trials are scored on, and what nobody sees until the end."""

    train: list[dspy.Example]
    valid: list[dspy.Example]
    heldout: list[dspy.Example]


def bundled_rows() -> Rows:
    """The rows that the project's authors wrote."""
    folder = resources.files("dspy_diffusion_infill") / "data" / "demo"
    parts = []
    for part in ("train", "valid", "heldout"):
        text = (folder / f"{BUNDLED_TASK}_{part}.jsonl").read_text(encoding="utf-8")
        rows = map(json.loads, text.splitlines())
        parts.append([dspy.Example(**row).with_inputs("text") for row in rows])
    return Rows(*parts)


def own_rows(path: Path, input_field: str, output_field: str, seed: int) -> Rows:
    """Shuffles the rows of a JSONL file into 16 to train, 32 to validate and the rest held out.

    Raises:
        DataError: a line is no JSON object with the two fields, or there are fewer than 12 rows.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--task {path}: there is no such file")
    examples = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            examples.append(_example(path, number, line, input_field, output_field))
    if len(examples) < 12:
        raise DataError(f"{path}: at least 12 rows are needed to split them, got {len(examples)}")
    random.Random(seed).shuffle(examples)
    num_train = min(NUM_TRAIN, len(examples) // 4)
    num_valid = min(NUM_VALID, len(examples) // 4)
    return Rows(
        examples[:num_train],
        examples[num_train : num_train + num_valid],
        examples[num_train + num_valid :],
    )


def _example(path: Path, number: int, line: str, *fields: str) -> dspy.Example:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{number}: no JSON: {error}") from error
    missing = [field for field in fields if not isinstance(row, dict) or field not in row]
    if missing:
        found = sorted(row) if isinstance(row, dict) else type(row).__name__
        raise DataError(
            f"{path}:{number}: no field {missing[0]!r} (found {found}); "
            "name the fields with --input and --output"
        )
    return dspy.Example({field: row[field] for field in fields}).with_inputs(fields[0])


def first_instructions(task: Path | None, input_field: str, output_field: str) -> str:
    """What a person would plausibly write first."""
    if task is None:
        return BUNDLED_INSTRUCTIONS
    return f"Given the {input_field}, write the {output_field}."


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """What the command line says beside the rows."""

    input_field: str
    output_field: str
    instructions: str
    lm: str | None
    denoiser: str | None
    max_metric_calls: int
    seed: int
    log_dir: Path | None


def make_program(rows: Rows, options: DemoOptions) -> dspy.Predict:
    """A one-step program; an output field with few different values is typed as these labels."""
    labels = sorted({str(row[options.output_field]) for row in rows.train + rows.valid})
    kind: Any = Literal[tuple(labels)] if len(labels) <= _MAX_LABELS else str
    fields = {
        options.input_field: (str, dspy.InputField()),
        options.output_field: (kind, dspy.OutputField()),
    }
    return dspy.Predict(make_signature(fields, options.instructions))


def run(rows: Rows, options: DemoOptions) -> dict[str, Any]:
    """Runs the demo and prints the report; returns its figures."""
    started, console = time.perf_counter(), Console()
    program = make_program(rows, options)
    metric = ExactMatch((options.output_field,))
    optimizer = DiffusionInfill(
        metric,
        options.denoiser,
        max_metric_calls=options.max_metric_calls,
        mask=(8, 12),
        sweeps=4,
        seed=options.seed,
        log_dir=options.log_dir,
        max_errors=len(rows.valid),
    )
    adapter = TemplateAdapter() if options.lm is None else dspy.settings.adapter
    with dspy.context(lm=_lm(options.lm), adapter=adapter):
        sizes = (len(rows.train), len(rows.valid), len(rows.heldout))
        console.print("{} train, {} validation, {} held-out rows".format(*sizes))
        console.print(str(optimizer.estimate(program, rows.train, valset=rows.valid)))
        before = _accuracy(program, rows.heldout, metric)
        better = optimizer.compile(program, rows.train, valset=rows.valid)
        after = _accuracy(better, rows.heldout, metric)
    results = results_of(better)
    validation = ("validation", results.score_before, results.score_after)
    print_report(results, [validation, ("held-out", before, after)], console=console)
    return _figures(results, before, after, time.perf_counter() - started)


def _figures(
    results: DetailedResults, before: float, after: float, seconds: float
) -> dict[str, Any]:
    return {
        "heldout_before": before,
        "heldout_after": after,
        "validation_before": results.score_before,
        "validation_after": results.score_after,
        "metric_calls": results.metric_calls,
        "denoiser_passes": results.denoiser_passes,
        "seconds": round(seconds, 1),
        "compile_seconds": round(results.seconds, 1),
        "instructions_before": results.instructions_before["self"],
        "instructions_after": results.instructions_after["self"],
    }


def _lm(name: str | None) -> dspy.LM:
    if name is not None:
        return dspy.LM(name)
    from dspy_diffusion_infill.embedded import embedded_lm

    # It rambles at first: that answers are cut at 32 tokens is no news here.
    logging.getLogger("dspy.clients.lm").setLevel(logging.ERROR)
    return embedded_lm()


def _accuracy(program: dspy.Module, examples: Sequence[dspy.Example], metric: ExactMatch) -> float:
    """Mean score in 0..1; a completion without a label counts as wrong."""
    validator = Validator(metric, None, len(examples), 0.0, None)
    return validator.evaluate(program, examples).mean
