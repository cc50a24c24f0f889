"""Running an experiment: every condition with every seed, row by row; no row is paid for twice."""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Literal

import dspy
from dspy.utils.exceptions import ContextWindowExceededError

from dspy_diffusion_infill.errors import ExperimentError
from dspy_diffusion_infill.evaluation.loading import Examples
from dspy_diffusion_infill.identity import key_of
from dspy_diffusion_infill.journal import Journal
from dspy_diffusion_infill.programs import instructions_of, with_instructions
from dspy_diffusion_infill.reproduction.experiment import Condition, Experiment
from dspy_diffusion_infill.reproduction.journals import Stop
from dspy_diffusion_infill.reproduction.models import Models
from dspy_diffusion_infill.reproduction.perplexity import (
    PERPLEXITY,
    GoldPerplexity,
    gold_perplexity,
)
from dspy_diffusion_infill.reproduction.prompt_search import (
    PromptOutcome,
    PromptSearch,
    SearchTask,
    add_demos,
)
from dspy_diffusion_infill.reproduction.tasks import (
    Benchmark,
    Figures,
    RowResult,
    drawn,
    shortened,
)

logger = logging.getLogger(__name__)

Left = Literal["failed", "too long"]  # why a row is left out


@dataclass(frozen=True, slots=True)
class Cell:
    """A condition with one seed."""

    condition: Condition
    seed: int

    def __str__(self) -> str:
        return f"{', '.join(self.condition.label.values())} (seed {self.seed})"


OnProgress = Callable[[Cell, int, int], None]
Serving = Callable[[Cell], AbstractContextManager[None]]


def no_progress(cell: Cell, done: int, total: int) -> None:
    """Ignores the progress of a cell."""


def always_up(cell: Cell) -> AbstractContextManager[None]:
    """The servers that a cell needs are not ours to start."""
    return nullcontext()


@dataclass(frozen=True, slots=True)
class CellResult:
    """The measures of a cell, and what was left out.

    Attributes:
        cell: condition and seed.
        figures: the measures; none is defined where a masked prompt was not filled.
        rows: the journaled result of each row, in the order of the test examples.
        num_failed: rows whose call failed; they are not measured, and the next run asks again.
        num_too_long: rows that do not fit the model's context; they are not measured either.
        perplexity: diffusion perplexity with its error and counts, where it was measured.
        instructions: the prompt that was measured.
        outcome: what became of the search for it.
        row_numbers: of each of ``rows``, its place among the test examples, from 0.
    """

    cell: Cell
    figures: Figures
    rows: tuple[RowResult, ...]
    num_failed: int
    num_too_long: int
    perplexity: GoldPerplexity | None
    instructions: dict[str, str]
    outcome: PromptOutcome
    row_numbers: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class _Measured:
    """The rows of a cell with their places, and why the others are missing."""

    rows: tuple[RowResult, ...] = ()
    row_numbers: tuple[int, ...] = ()
    num_failed: int = 0
    num_too_long: int = 0


@dataclass(slots=True)
class Runner:
    """Runs an experiment's cells.

    Attributes:
        experiment: what to run.
        task: its program and measures.
        models: who answers and who proposes.
        prompts: finds the conditions' prompts.
        journal: finished rows.
        test: examples to measure on.
        shots: the pool that few-shot examples are drawn from.
        stop: asked before every row.
        on_progress: called with a cell, how many of its rows are done, and of how many.
        serving: what must be up while a cell is run.
    """

    experiment: Experiment
    task: Benchmark
    models: Models
    prompts: PromptSearch
    journal: Journal
    test: Examples
    shots: Examples
    stop: Stop
    on_progress: OnProgress = no_progress
    serving: Serving = always_up
    _num_errors: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def cells(self) -> list[Cell]:
        """The conditions that are run with all seeds, in the order in which they run."""
        return [Cell(c, seed) for c in self.experiment.measured for seed in self.experiment.seeds]

    def results(self) -> Iterator[CellResult]:
        """Runs every cell, one after the other.

        Raises:
            RunStopped: the run was asked to stop; what is done is journaled.
            ExperimentError: more than ``max_errors`` calls failed.
        """
        for cell in self.cells():
            with self.serving(cell):
                yield self.run_cell(cell)

    def run_cell(self, cell: Cell) -> CellResult:
        """Finds the cell's prompt and measures it; a prompt with a hole is not measured.

        Raises:
            RunStopped: as ``run``.
            ExperimentError: as ``run``.
        """
        condition, spec = cell.condition, self.experiment.test
        self.stop.check()
        program, outcome = self._program(cell)
        examples = [
            self.task.prepared(shortened(example, spec.max_chars), condition.template)
            for example in drawn(self.test, spec.num, seed=0)
        ]
        measured, perplexity = _Measured(), None
        if outcome != "unfilled":
            if self.experiment.answers_rows:
                measured = self._measure(cell, program, examples)
            perplexity = self._perplexity(cell, program, examples)
        figures = self.task.figures(measured.rows)
        figures[PERPLEXITY] = perplexity and perplexity.value
        return CellResult(
            cell=cell,
            figures=figures,
            rows=measured.rows,
            num_failed=measured.num_failed,
            num_too_long=measured.num_too_long,
            perplexity=perplexity,
            instructions=instructions_of(program),
            outcome=outcome,
            row_numbers=measured.row_numbers,
        )

    def search_task(self, cell: Cell) -> SearchTask:
        """The chain of rewritings that gives the cell's prompt."""
        condition, spec = cell.condition, self.experiment.shots
        chosen = drawn(self.shots, spec.num, seed=cell.seed)
        shots = (
            self.task.prepared(shortened(e, spec.max_chars), condition.template) for e in chosen
        )
        return SearchTask(
            template=condition.template,
            steps=condition.steps,
            lm=condition.found_with or condition.model,
            shots=tuple(shots),
            seed=cell.seed,
        )

    def row_key(self, cell: Cell, program: dspy.Module, example: dspy.Example) -> str:
        """Digest of all that a row's result depends on; no two calls have equal keys."""
        demos = [dict(demo) for predictor in program.predictors() for demo in predictor.demos]
        return key_of(
            self.models.identity(cell.condition.model),
            self.task.identity,
            instructions_of(program),
            demos,
            example.toDict(),
            cell.seed,
        )

    def _program(self, cell: Cell) -> tuple[dspy.Module, PromptOutcome]:
        """The program with the prompt that was found for it, and how that search ended."""
        condition = cell.condition
        asked = self.search_task(cell)
        spec = self.models.spec(condition.model)
        program = self.task.program(condition.template, spec, seed=cell.seed)
        found = self.prompts.find(asked)
        program = with_instructions(program, found.instructions)
        add_demos(program, asked.shots, condition.demos, seed=cell.seed)
        return program, found.outcome

    def _measure(
        self, cell: Cell, program: dspy.Module, examples: Sequence[dspy.Example]
    ) -> _Measured:
        """Runs every example that is not journaled; equal rows are run once."""
        keys = [self.row_key(cell, program, example) for example in examples]
        missing = {k: e for k, e in zip(keys, examples, strict=True) if self.journal.get(k) is None}
        done = len(set(keys)) - len(missing)
        self.on_progress(cell, done, len(set(keys)))
        left: dict[str, Left | None] = {}
        threads = self.models.threads(cell.condition.model, self.experiment.threads)
        with ThreadPoolExecutor(threads) as pool:
            tasks = {k: pool.submit(self._row, cell, program, e, k) for k, e in missing.items()}
            try:
                for key, task in tasks.items():
                    left[key] = task.result()
                    done += 1
                    self.on_progress(cell, done, len(set(keys)))
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)  # answers under way are kept
                raise
        found = {
            number: row
            for number, key in enumerate(keys)
            if (row := self.journal.get(key)) is not None
        }
        why = [left.get(key) for key in keys]
        failed, too_long = why.count("failed"), why.count("too long")
        return _Measured(tuple(found.values()), tuple(found), failed, too_long)

    def _row(
        self, cell: Cell, program: dspy.Module, example: dspy.Example, key: str
    ) -> Left | None:
        """Runs one row and journals it; else returns why it is left out.

        A failed call counts against ``max_errors``; a row that is too long does not.
        """
        self.stop.check()
        if self._num_errors > self.experiment.max_errors:
            return "failed"  # another thread has ended the run
        name = cell.condition.model
        adapter = self.task.adapter(program) or self.models.adapter(name)
        try:
            lm = self.models.lm(name, seed=cell.seed)
            with dspy.context(lm=lm, adapter=adapter, disable_history=True):
                prediction = program(**example.inputs())
            row = self.task.row(example, prediction, self.models.token_counter(name))
        except ContextWindowExceededError as error:
            logger.info("%s: a row is too long (%s)", cell, error)
            return "too long"
        except Exception as error:
            self._note_error(cell, error)
            return "failed"
        self.journal.put(key, row, about=f"{self.experiment.name}: {cell}")
        return None

    def _note_error(self, cell: Cell, error: Exception) -> None:
        with self._lock:
            self._num_errors += 1
            reason = str(error).strip().partition("\n")[0]
            logger.warning("%s: a call failed (%s: %s)", cell, type(error).__name__, reason)
            if self._num_errors > self.experiment.max_errors:
                raise ExperimentError(
                    f"more than max_errors={self.experiment.max_errors} calls failed, the last "
                    f"with {type(error).__name__}: {error}; run the same command again to go on"
                ) from error

    def _perplexity(
        self, cell: Cell, program: dspy.Module, examples: Sequence[dspy.Example]
    ) -> GoldPerplexity | None:
        """Diffusion perplexity of prompts with gold responses; None where it is not asked for."""
        name = cell.condition.model
        if PERPLEXITY not in self.experiment.measures or self.models.spec(name).denoiser is None:
            return None
        self.stop.check()
        (predictor,) = program.predictors()
        return gold_perplexity(
            self.models.denoiser(name),
            predictor,
            self.task.adapter(program) or self.models.adapter(name),
            examples,
            experiment=self.experiment,
            journal=self.journal,
            seed=cell.seed,
            about=f"{self.experiment.name}: perplexity of {cell}",
        )
