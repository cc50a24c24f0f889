"""What a ``reproduce`` command is asked for: the rows of a table, and what each of them needs."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dspy_diffusion_infill.reproduction import experiment_files as files
from dspy_diffusion_infill.reproduction.experiment import (
    DIFFUSION,
    PERPLEXITY,
    Condition,
    Experiment,
    ModelSpec,
    Scale,
)

_ROWS = re.compile(r"(\d+)(?:-(\d+))?")


@dataclass(frozen=True, slots=True)
class PaperRow:
    """A row of a table or figure.

    Attributes:
        number: from 1, through all parts of the table.
        experiment: the part that it is in.
        condition: what is measured.
    """

    number: int
    experiment: Experiment
    condition: Condition

    def __str__(self) -> str:
        return f"{self.number}. {', '.join(self.condition.label.values())}"

    def denoisers(self, specs: Mapping[str, ModelSpec]) -> set[str]:
        """The models whose denoisers propose, answer, or have their perplexity taken."""
        condition = self.condition
        used = {step.by for step in condition.steps if step.kind == "infill"}
        if PERPLEXITY in self.experiment.measures and specs[condition.model].denoiser:
            used.add(condition.model)
        return used | {name for name in self._asked() if specs[name].lm == DIFFUSION}

    def lms(self, specs: Mapping[str, ModelSpec]) -> set[str]:
        """The models whose LMs are asked and are no denoisers."""
        return {name for name in self._asked() if specs[name].lm != DIFFUSION}

    def _asked(self) -> set[str]:
        condition, experiment = self.condition, self.experiment
        if experiment.only_fills:
            return set()
        asked = {condition.model} if experiment.answers_rows else set()
        if condition.steps:
            asked.add(condition.found_with or condition.model)
        return asked | {step.by for step in condition.steps if step.kind != "infill"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperItem:
    """A table or figure with all options of the command.

    Attributes:
        table: its name.
        experiments: its parts.
        specs: what the models' names stand for.
        data: folder or file of the data sets; None is the hub.
        corpus: HoVer's pages; None is looked for in ``data``.
        output: the run's folder.
        budget_hours: GPU hours that the rows may take; None is no limit.
        train: whether missing checkpoints are trained.
        serve: whether missing servers are started.
    """

    table: str
    experiments: tuple[Experiment, ...]
    specs: Mapping[str, ModelSpec]
    data: Path | None
    corpus: Path | None
    output: Path
    budget_hours: float | None = None
    train: bool = False
    serve: bool = False

    @property
    def rows(self) -> tuple[PaperRow, ...]:
        """All rows, numbered."""
        pairs = [(part, one) for part in self.experiments for one in part.conditions]
        return tuple(PaperRow(number, *pair) for number, pair in enumerate(pairs, start=1))

    @property
    def measured(self) -> tuple[PaperRow, ...]:
        """The rows that are run."""
        return tuple(row for row in self.rows if not row.condition.not_run)

    def without(self, reasons: Mapping[int, str]) -> "PaperItem":
        """The target with rows that are not run, by number, and why."""
        numbers = iter(range(1, len(self.rows) + 1))
        parts = [
            replace(
                part,
                conditions=tuple(
                    replace(one, not_run=one.not_run or reasons.get(number, ""))
                    for one, number in zip(part.conditions, numbers, strict=False)
                ),
            )
            for part in self.experiments
        ]
        return replace(self, experiments=tuple(parts))


def make_target(
    table: str,
    *,
    scale: Scale | str = "full",
    data: str | Path | None = None,
    output: str | Path = "runs",
    corpus: str | Path | None = None,
    checkpoints: Sequence[str] = (),
    context_lengths: Sequence[str] = (),
    lm: str | None = None,
    api_base: str | None = None,
    rows: str | None = None,
    models: str | None = None,
    budget_hours: float | None = None,
    train: bool = False,
    serve: bool = False,
) -> PaperItem:
    """What is asked for; the options are those of ``reproduce``.

    Raises:
        ValueError: unknown table, scale, row or model, or an option that means nothing for it.
        DataError: a file of ours has an unknown, missing or ill-formed entry.
    """
    if table == "mini":
        raise ValueError("mini is a command of its own: dspy-infill mini")
    experiments = tuple(files.load_experiments(table, scale=scale))
    if corpus is not None and all(one.task != "hover" for one in experiments):
        raise ValueError(f"corpus (--corpus) is what HoVer searches, and {table} is not on HoVer")
    if api_base is not None and lm is None:
        raise ValueError("api_base is the address of an LM: give lm too (--lm openai/NAME)")
    if lm is not None and all(one.only_fills for one in experiments):
        raise ValueError(f"lm (--lm) is what answers, and {table} asks no LM: use --model")
    specs: Mapping[str, ModelSpec] = files.load_models(experiments[0].scale)
    if lm is not None:
        specs = files.with_lm(specs, lm, api_base=api_base)
    changed = files.with_context_lengths(
        files.with_checkpoints(specs, checkpoints), context_lengths
    )
    target = PaperItem(
        table=table,
        experiments=experiments,
        specs=changed,
        data=None if data is None else Path(data),
        corpus=None if corpus is None else Path(corpus),
        output=Path(output),
        budget_hours=budget_hours,
        train=train,
        serve=serve,
    )
    _check_options(target, [name for name in changed if changed[name] != specs[name]])
    return _selected(target, rows, models)


def _check_options(target: PaperItem, changed: Sequence[str]) -> None:
    """Refuses options that mean nothing for the table."""
    specs, table, budget = target.specs, target.table, target.budget_hours
    used = {name for row in target.rows for name in row.denoisers(specs)}
    for name in changed:
        if name not in used:
            raise ValueError(
                f"{table} does not use the denoiser of {name!r} (--model, --context-length); it "
                f"uses those of {', '.join(sorted(used)) or 'no model'}"
            )
    if target.train and not any(specs[name].recipe for name in used):
        raise ValueError(f"train (--train): {table} uses no checkpoint that is trained here")
    asked = {name for row in target.rows for name in row.lms(specs)}
    if target.serve and not any(specs[name].serve for name in asked):
        raise ValueError(f"serve (--serve): {table} asks no LM that is served here")
    if budget is None:
        return
    if not budget > 0:
        raise ValueError(f"budget_hours (--budget-hours) must be above 0, got {budget:g}")
    if all(specs[name].billions is None for name in used | asked):
        raise ValueError(
            "budget_hours (--budget-hours) counts GPU hours, and no model here has a known size"
        )


def _selected(target: PaperItem, rows: str | None, models: str | None) -> PaperItem:
    """The target with only the rows that are asked for to run."""
    every = target.rows
    numbers = {row.number for row in every} if rows is None else _numbers(rows, len(every))
    measured = list(dict.fromkeys(row.condition.model for row in every))
    names = measured if models is None else [name.strip() for name in models.split(",")]
    for name in names:
        if name not in measured:
            raise ValueError(
                f"models (--models) must be of those that {target.table} measures, "
                f"{', '.join(measured)}; got {name!r}"
            )
    reasons = {row.number: "not asked for" for row in every if row.condition.model not in names}
    reasons |= {row.number: "not asked for" for row in every if row.number not in numbers}
    if len(reasons) == len(every):
        raise ValueError(f"rows (--rows) and models (--models) leave no row of {target.table}")
    return target.without(reasons)


def _numbers(text: str, most: int) -> set[int]:
    """The numbers of ``1-6,9``."""
    found: set[int] = set()
    for part in text.split(","):
        parsed = _ROWS.fullmatch(part.strip())
        first, last = (int(parsed[1]), int(parsed[2] or parsed[1])) if parsed else (0, 0)
        if not 1 <= first <= last <= most:
            raise ValueError(
                f"rows (--rows) must be numbers and ranges of 1..{most}, such as 1-3,{most}, "
                f"got {part.strip()!r}"
            )
        found |= set(range(first, last + 1))
    return found


def numbers_text(numbers: Sequence[int]) -> str:
    """``1-6, 9``: the numbers as ranges."""
    spans: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if spans and number == spans[-1][1] + 1:
            spans[-1] = spans[-1][0], number
        else:
            spans.append((number, number))
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)
