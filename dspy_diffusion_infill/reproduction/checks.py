"""What a run needs, checked before anything is paid for: all that is missing, and what rows cost.

Nothing is loaded here, no LM is asked, and torch is not imported.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from dspy_diffusion_infill.errors import DataError, MissingDependencyError
from dspy_diffusion_infill.evaluation.loading import Examples, load_dataset, missing_files
from dspy_diffusion_infill.evaluation.retrieval import Bm25Index
from dspy_diffusion_infill.reproduction.check_files import (
    missing_checkpoints,
    missing_data,
    missing_packages,
    needs_hub,
    recipes_needed,
    train_command,
)
from dspy_diffusion_infill.reproduction.check_machine import missing_disk, missing_memory
from dspy_diffusion_infill.reproduction.check_servers import missing_servers, server_urls
from dspy_diffusion_infill.reproduction.costs import (
    CHARS_PER_TOKEN,
    Length,
    ModelCost,
    condition_costs,
    hours_text,
    start_of,
)
from dspy_diffusion_infill.reproduction.experiment import DataSpec, Experiment
from dspy_diffusion_infill.reproduction.experiment_run import runner_over
from dspy_diffusion_infill.reproduction.journals import Stop
from dspy_diffusion_infill.reproduction.missing_pieces import Missing, missing
from dspy_diffusion_infill.reproduction.models import Models
from dspy_diffusion_infill.reproduction.network import answers_of, hub_urls
from dspy_diffusion_infill.reproduction.runner import Cell, Runner
from dspy_diffusion_infill.reproduction.targets import PaperItem, PaperRow
from dspy_diffusion_infill.reproduction.typical_rows import typical_page, typical_rows


@dataclass(frozen=True, slots=True)
class Check:
    """What was found.

    Attributes:
        target: what is asked for; rows that cannot run, or pass the budget, say so.
        missing: the missing pieces.
        hours: (expected, at most) GPU hours of each row, by number, without what journals hold;
            None is unknown.
        others: what rows cost besides, by number, in words.
    """

    target: PaperItem
    missing: tuple[Missing, ...]
    hours: Mapping[int, tuple[float, float] | None]
    others: Mapping[int, str]

    def lines(self) -> Iterator[str]:
        """The report: what each row costs, what all of them do, and a line a missing piece."""
        for row in self.target.rows:
            reason = row.condition.not_run
            lacks = any(row.number in piece.rows for piece in self.missing)
            note = "; cannot run" if lacks else f"; not run: {reason}" if reason else ""
            yield f"{row}: {self._cost(row.number)}{note}"
        known = [hours for row in self.target.rows if (hours := self.hours.get(row.number))]
        if known:
            expected, most = (math.fsum(each) for each in zip(*known, strict=True))
            yield f"{self.target.table}: {hours_text(expected, most)} in all"
        if self.target.train:
            for spec in recipes_needed(self.target, self.target.rows).values():
                yield f"to train before: dspy-infill {' '.join(train_command(spec))}"
        yield from map(str, self.missing)

    def _cost(self, number: int) -> str:
        hours, other = self.hours.get(number), self.others.get(number, "")
        texts = [hours_text(*hours)] if hours else []
        return ", ".join([*texts, *([other] if other else [])]) or "no GPU hours"


def check(target: PaperItem) -> Check:
    """Checks everything at once, and marks the rows that cannot run.

    Raises:
        ValueError: as ``load_dataset``.
    """
    costs: dict[int, list[ModelCost]] = {}
    hub = hub_urls() if needs_hub(target) else set[str]()
    answers = answers_of(hub | server_urls(target))
    has_hub = any(answers[url] is not None for url in hub)
    found = [
        *missing_packages(target),
        *missing_data(target, has_hub=has_hub),
        *missing_checkpoints(target, has_hub=has_hub),
        *missing_servers(target, answers),
        *missing_memory(target),
        *missing_disk(target),
    ]
    for experiment in target.experiments:
        rows = [row for row in target.measured if row.experiment is experiment]
        try:
            runner = _runner(experiment, target)
        except MissingDependencyError:
            continue  # the package is among the missing ones
        except DataError as error:
            found.append(missing(f"readable data: {error}", "mend the file", rows))
            continue
        by_row = [one for _, one in condition_costs(runner)]
        costs |= {row.number: one for row, one in zip(rows, by_row, strict=True)}
        found += [piece for row in rows if (piece := _too_long(runner, row))]
    reasons = {
        row.number: f"missing: {what}"
        for row in target.measured
        if (what := "; ".join(piece.what for piece in found if row.number in piece.rows))
    }
    hours = {number: _hours(one) for number, one in costs.items()}
    reasons |= _over_budget(target, hours, reasons)
    others = {number: _other(one) for number, one in costs.items()}
    return Check(target.without(reasons), tuple(found), hours, others)


def _runner(experiment: Experiment, target: PaperItem) -> Runner:
    """What would run, over the data or rows of their length, with journals that are empty."""
    return runner_over(
        experiment,
        Models(target.specs),
        Stop(),
        test=_examples(experiment.test, target),
        shots=_examples(experiment.shots, target),
        index=Bm25Index([typical_page()]) if experiment.task == "hover" else None,
        output=target.output,
        is_journaled=False,
    )


def _examples(spec: DataSpec, target: PaperItem) -> Examples:
    if target.data is None or missing_files(spec.name, data=target.data, split=spec.split):
        return typical_rows(spec.name, spec.split)
    return load_dataset(spec.name, data=target.data, split=spec.split)


def _too_long(runner: Runner, row: PaperRow) -> Missing | None:
    """Prompts that are too long for what answers them, on average: single rows are left out."""
    name = row.condition.model
    spec = runner.models.spec(name)
    if spec.max_context is None or not row.experiment.answers_rows:
        return None
    cell = Cell(row.condition, row.experiment.seeds[0])
    length = Length.of(runner, cell, start_of(runner, cell))
    tokens = length.prompt // CHARS_PER_TOKEN + int(spec.options.get("max_tokens", 0))
    if tokens <= spec.max_context:
        return None
    option = f"--context-length {name}={2 ** math.ceil(math.log2(2 * tokens))}"
    command = option if spec.denoiser else "serve it with a longer context"
    what = f"context: prompts and answers of {name} take about {tokens:,} tokens"
    return missing(f"{what} and it takes {spec.max_context:,}", command, [row])


def _hours(costs: Sequence[ModelCost]) -> tuple[float, float] | None:
    known = [
        (one.gpu_hours, one.most_gpu_hours)
        for one in costs
        if one.gpu_hours is not None and one.most_gpu_hours is not None
    ]
    if not known:
        return None
    expected, most = (math.fsum(each) for each in zip(*known, strict=True))
    return expected, most


def _other(costs: Sequence[ModelCost]) -> str:
    """Calls of LMs whose GPU hours are not known, and dollars."""
    calls = sum(one.calls for one in costs if one.gpu_hours is None)
    dollars = math.fsum(one.dollars or 0 for one in costs)
    parts = [f"at most {calls:,} calls"] if calls else []
    return ", ".join([*parts, *([f"up to ${dollars:,.2f}"] if dollars else [])])


def _over_budget(
    target: PaperItem,
    hours: Mapping[int, tuple[float, float] | None],
    missing_rows: Mapping[int, str],
) -> dict[int, str]:
    """The rows that no longer fit the budget, in their order, and why."""
    if target.budget_hours is None:
        return {}
    left, reasons = target.budget_hours, {}
    for row in target.measured:
        if row.number in missing_rows:
            continue
        expected = (hours.get(row.number) or (0.0, 0.0))[0]
        if expected > left:
            reasons[row.number] = f"over the budget of {target.budget_hours:g} GPU hours"
        else:
            left -= expected
    return reasons
