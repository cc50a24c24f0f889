"""The demo's steps: rows, program, scores before, search, scores after, report."""

import logging
import math
import random
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import dspy
from dspy.signatures import make_signature
from rich.console import Console

from dspy_diffusion_infill.denoisers import Sampling
from dspy_diffusion_infill.errors import DataError, DiffusionInfillError, TooManyErrors
from dspy_diffusion_infill.jsonl import objects_of
from dspy_diffusion_infill.labels import are_labels
from dspy_diffusion_infill.optimizer.diffusion_infill import DiffusionInfill
from dspy_diffusion_infill.optimizer.estimate import CostEstimate
from dspy_diffusion_infill.optimizer.metrics import ExactMatch
from dspy_diffusion_infill.optimizer.results import DetailedResults, results_of
from dspy_diffusion_infill.optimizer.row_checks import check_rows
from dspy_diffusion_infill.outcomes import Evaluation
from dspy_diffusion_infill.report import print_report
from dspy_diffusion_infill.runs import TooManyFailuresError, evaluate
from dspy_diffusion_infill.template_adapter import TemplateAdapter

NUM_TRAIN, NUM_VALID = 16, 32
BUNDLED_TASK = "sentiment"
BUNDLED_FIELDS = ("text", "label")
BUNDLED_INSTRUCTIONS = "Classify the review."
_FIRST_RUNS = 8  # made before all others: an LM that answers none of them ends the demo
_RESERVED = ("config", "demos", "lm", "self", "signature")  # arguments of dspy.Predict


@dataclass(frozen=True, slots=True)
class DemoRows:
    """Rows for the denoiser's contexts, for scoring trials, and for the scores before and after."""

    train: list[dspy.Example]
    valid: list[dspy.Example]
    heldout: list[dspy.Example]


def bundled_rows() -> DemoRows:
    """The rows of the sentiment task that come with the package."""
    folder = resources.files("dspy_diffusion_infill") / "data" / "demo"
    parts = []
    for part in ("train", "valid", "heldout"):
        with resources.as_file(folder / f"{BUNDLED_TASK}_{part}.jsonl") as file:
            rows = [row for _, row in objects_of(file)]
        parts.append([dspy.Example(**row).with_inputs("text") for row in rows])
    return DemoRows(*parts)


def own_rows(path: Path, input_field: str, output_field: str, seed: int) -> DemoRows:
    """Shuffles the rows of a JSONL file into 16 to train, 32 to validate and the rest held out.

    Raises:
        DataError: a line is no JSON object with the two fields, or there are fewer than 12 rows.
    """
    lines = objects_of(path)
    examples = [_example(line.origin, row, input_field, output_field) for line, row in lines]
    if len(examples) < 12:
        raise DataError(f"{path}: at least 12 rows are needed to split them, got {len(examples)}")
    random.Random(seed).shuffle(examples)
    num_train = min(NUM_TRAIN, len(examples) // 4)
    num_valid = min(NUM_VALID, len(examples) // 4)
    return DemoRows(
        examples[:num_train],
        examples[num_train : num_train + num_valid],
        examples[num_train + num_valid :],
    )


def _example(origin: str, row: Mapping[str, Any], *fields: str) -> dspy.Example:
    for field in fields:
        if field not in row:
            raise DataError(
                f"{origin}: no field {field!r} (found {sorted(row)}); "
                "name the fields with --input and --output"
            )
        value = row[field]
        is_nan = isinstance(value, float) and not math.isfinite(value)
        if value is None or is_nan or not str(value).strip():
            raise DataError(
                f"{origin}: the field {field!r} is {value!r}: fill it in, or leave the row out"
            )
    return dspy.Example({field: row[field] for field in fields}).with_inputs(fields[0])


def first_instructions(task: Path | None, input_field: str, output_field: str) -> str:
    """The instructions that a search starts from where none are given."""
    if task is None:
        return BUNDLED_INSTRUCTIONS
    return f"Given the {input_field}, write the {output_field}."


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """The options of the command line, the rows aside."""

    input_field: str
    output_field: str
    instructions: str
    lm: str | None
    denoiser: str | None
    max_metric_calls: int
    max_heldout: int
    seed: int
    log_dir: Path | None


@dataclass(frozen=True, slots=True)
class DemoOutcome:
    """A finished search, with the held-out scores before and after it.

    Attributes:
        results: of the search.
        before: the first program on the held-out rows.
        after: the best program on the same rows.
        seconds: the whole demo took.
    """

    results: DetailedResults
    before: Evaluation
    after: Evaluation
    seconds: float

    def figures(self) -> dict[str, Any]:
        """What ``--json`` writes; scores are in [0, 1]."""
        results, before, after = self.results, self.before, self.after
        return {
            "heldout_before": before.mean,
            "heldout_after": after.mean,
            "heldout_rows": len(before.scores),
            "heldout_calls": len(before.scores) + len(after.scores),
            "validation_before": results.score_before,
            "validation_after": results.score_after,
            "curve": best_scores(results),
            "metric_calls": results.metric_calls,
            "denoiser_passes": results.denoiser_passes,
            "seconds": round(self.seconds, 1),
            "compile_seconds": round(results.seconds, 1),
            "instructions_before": results.instructions_before["self"],
            "instructions_after": results.instructions_after["self"],
        }


def best_scores(results: DetailedResults) -> list[list[float]]:
    """Metric calls and the best validation score so far, from the first evaluation on."""
    calls = results.metric_calls - sum(len(trial.scores) for trial in results.trials)
    best, curve = results.score_before, [[calls, results.score_before]]
    for trial in results.trials:
        calls += len(trial.scores)
        best = trial.score if trial.accepted else best
        curve.append([calls, best])
    return curve


def check_fields(task: Path | None, input_field: str, output_field: str) -> None:
    """Raises ValueError where the two options cannot name the fields of a program."""
    if task is None and (input_field, output_field) != BUNDLED_FIELDS:
        raise ValueError(
            "--input and --output name the fields of your own rows: give --task too; the bundled "
            f"rows have the fields {BUNDLED_FIELDS[0]!r} and {BUNDLED_FIELDS[1]!r}"
        )
    if input_field == output_field:
        raise ValueError(f"--input and --output must name two fields, got {input_field!r} twice")
    for name in (input_field, output_field):
        if not name.strip() or name in _RESERVED:
            raise ValueError(
                f"--input and --output must be names that dspy.Predict has no other use for, got "
                f"{name!r}; rename the field in the rows"
            )


def make_program(rows: DemoRows, options: DemoOptions) -> dspy.Predict:
    """A one-step program; an output field of few values that recur is typed as these labels.

    Raises:
        ValueError: DSPy does not take one of the names as a field.
    """
    all_rows = rows.train + rows.valid + rows.heldout
    values = Counter(str(row[options.output_field]) for row in all_rows)
    kind: Any = Literal[tuple(sorted(values))] if are_labels(values) else str
    fields = {
        options.input_field: (str, dspy.InputField()),
        options.output_field: (kind, dspy.OutputField()),
    }
    try:
        return dspy.Predict(make_signature(fields, options.instructions))
    except Exception as error:  # pydantic and DSPy raise several kinds
        raise ValueError(
            f"DSPy does not take {list(fields)} as fields; rename them in the rows: {error}"
        ) from error


def run(rows: DemoRows, options: DemoOptions) -> DemoOutcome:
    """Runs the demo; prints the costs before any call, and no result.

    Raises:
        ValueError: the budget does not cover the first evaluation, or a row cannot be run.
        DiffusionInfillError: the LM answers nothing at all, before the search or during it.
    """
    _check_budget(rows, options)
    started, console = time.perf_counter(), Console()
    program, metric = make_program(rows, options), ExactMatch((options.output_field,))
    optimizer, heldout = _optimizer(rows, options, metric), _drawn(rows.heldout, options)
    check_rows(heldout, program, name="heldout")
    adapter = TemplateAdapter() if options.lm is None else dspy.settings.adapter
    with dspy.context(lm=_lm(options.lm), adapter=adapter):
        cost = optimizer.estimate(program, rows.train, valset=rows.valid)
        console.print(_announcement(rows, len(heldout), cost), highlight=False)
        before = _first_evaluation(program, heldout, metric)
        better = _compile(optimizer, program, rows, console)
        after = _evaluate(better, heldout, metric)
    return DemoOutcome(results_of(better), before, after, time.perf_counter() - started)


def show(outcome: DemoOutcome) -> None:
    """Prints instructions, scores and counts, before and after."""
    console, results = Console(), outcome.results
    scores = [
        ("validation", results.score_before, results.score_after),
        ("held-out", outcome.before.mean, outcome.after.mean),
    ]
    print_report(results, scores, console=console)
    console.print(_heldout_line(outcome), highlight=False, markup=False)


def _check_budget(rows: DemoRows, options: DemoOptions) -> None:
    """Checks it before the held-out rows are paid for; the search checks it only afterwards."""
    if options.max_metric_calls < len(rows.valid):
        raise ValueError(
            f"--max-metric-calls must be at least {len(rows.valid)}, one for each validation row, "
            f"got {options.max_metric_calls}"
        )


def _optimizer(rows: DemoRows, options: DemoOptions, metric: ExactMatch) -> DiffusionInfill:
    return DiffusionInfill(
        metric,
        options.denoiser,
        sampling=Sampling(cache="context"),  # on two cores exact passes take several times as long
        max_metric_calls=options.max_metric_calls,
        seed=options.seed,
        log_dir=options.log_dir,
        max_errors=len(rows.valid) - 1,  # an evaluation without any answer ends the search
    )


def _drawn(heldout: list[dspy.Example], options: DemoOptions) -> list[dspy.Example]:
    """At most ``max_heldout`` of the held-out rows, at random."""
    number = min(options.max_heldout, len(heldout))
    return random.Random(options.seed).sample(heldout, number)


def _announcement(rows: DemoRows, num_heldout: int, cost: CostEstimate) -> str:
    """The rows and what they cost, before anything is run."""
    drawn = f"{num_heldout:,} of " if num_heldout < len(rows.heldout) else ""
    runs = 2 * num_heldout
    tokens = runs * cost.lm_tokens // cost.metric_calls
    return (
        f"{len(rows.train)} train, {len(rows.valid)} validation, "
        f"{drawn}{len(rows.heldout):,} held-out rows\n"
        f"search: {cost}\n"
        f"held-out rows, before and after it: {runs:,} program runs more, about {tokens:,} "
        "prompt tokens"
    )


def _first_evaluation(
    program: dspy.Module, heldout: list[dspy.Example], metric: ExactMatch
) -> Evaluation:
    """The scores before the search; a completion without a label counts as wrong.

    Raises:
        DiffusionInfillError: the LM failed on all of the first few rows.
    """
    few, rest = heldout[:_FIRST_RUNS], heldout[_FIRST_RUNS:]
    try:
        first = evaluate(program, few, metric, max_errors=len(few) - 1)
    except TooManyFailuresError as error:
        ((kind, _),) = Counter(error.failures).most_common(1)
        raise DiffusionInfillError(
            f"the LM failed on all of the first {len(few)} rows, so nothing else was run: {kind}"
        ) from error
    return first.followed_by(_evaluate(program, rest, metric))


def _evaluate(program: dspy.Module, examples: list[dspy.Example], metric: ExactMatch) -> Evaluation:
    """The scores of all examples, however many of the runs fail."""
    if not examples:
        return Evaluation((), ())
    return evaluate(program, examples, metric)


def _compile(
    optimizer: DiffusionInfill, program: dspy.Predict, rows: DemoRows, console: Console
) -> dspy.Module:
    """Searches; if the LM stops answering, prints what was found until then."""
    try:
        return optimizer.compile(program, rows.train, valset=rows.valid)
    except TooManyErrors as error:
        if error.detailed_results.trials:
            print_report(error.detailed_results, console=console)
        raise


def _heldout_line(outcome: DemoOutcome) -> str:
    """How many runs there were beside the search, and how many of them failed."""
    before, after = outcome.before, outcome.after
    line = f"{len(before.scores) + len(after.scores):,} program runs on held-out rows"
    if not (failed := Counter(before.failures + after.failures)):
        return line
    kind, times = failed.most_common(1)[0]
    return f"{line}, {failed.total()} failed, most often ({times}): {kind}"


def _lm(name: str | None) -> dspy.LM:
    if name is not None:
        return dspy.LM(name)
    from dspy_diffusion_infill.lms.embedded import embedded_lm

    # Its first answers are often cut at 32 tokens; a warning for each would hide the report.
    logging.getLogger("dspy.clients.lm").setLevel(logging.ERROR)
    return embedded_lm()
