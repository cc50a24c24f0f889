"""Running an experiment: every condition with every seed, row by row, each paid for once."""

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Protocol

import dspy

from dspy_diffusion_infill.denoisers import Denoiser
from dspy_diffusion_infill.errors import ExperimentError
from dspy_diffusion_infill.evaluation.experiment import DIFFUSION, Condition, Experiment
from dspy_diffusion_infill.evaluation.journals import Journal, Stop, key_of
from dspy_diffusion_infill.evaluation.loading import Examples
from dspy_diffusion_infill.evaluation.models import Models
from dspy_diffusion_infill.evaluation.prompt_search import (
    PromptSearch,
    SearchTask,
    add_demos,
    apply_instructions,
    instructions_of,
    signature_of,
)
from dspy_diffusion_infill.evaluation.tasks import Figures, RowResult, Task, drawn, shortened

logger = logging.getLogger(__name__)

PERPLEXITY = "perplexity"


class Perplexity(Protocol):
    """Diffusion perplexity of responses, given their prompts."""

    def __call__(
        self,
        denoiser: Denoiser,
        prompts: Sequence[str],
        responses: Sequence[str],
        *,
        num_samples: int,
        seed: int,
    ) -> float:
        """Lower is better."""
        ...


@dataclass(frozen=True, slots=True)
class Cell:
    """A condition with one seed."""

    condition: Condition
    seed: int

    def __str__(self) -> str:
        return f"{', '.join(self.condition.label.values())} (seed {self.seed})"


@dataclass(frozen=True, slots=True)
class CellResult:
    """What a cell gave.

    Attributes:
        cell: which.
        figures: the measures.
        rows: what each row left behind, in the order of the test examples.
        num_failed: rows whose call failed; they are not measured, and the next run asks again.
        instructions: the prompt that was measured.
    """

    cell: Cell
    figures: Figures
    rows: tuple[RowResult, ...]
    num_failed: int
    instructions: dict[str, str]


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
        perplexity: measures diffusion perplexity; None where no measure asks for it.
        stop: asked before every row.
        on_progress: told the cell and how many of its rows are done.
    """

    experiment: Experiment
    task: Task
    models: Models
    prompts: PromptSearch
    journal: Journal
    test: Examples
    shots: Examples
    perplexity: Perplexity | None
    stop: Stop
    on_progress: Callable[[Cell, int, int], None]
    _num_errors: int = 0
    _last_error: Exception | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def cells(self) -> list[Cell]:
        """All conditions with all seeds, in the order in which they run."""
        return [Cell(c, seed) for c in self.experiment.conditions for seed in self.experiment.seeds]

    def run(self) -> list[CellResult]:
        """Runs every cell.

        Raises:
            RunStopped: the run was asked to stop; what is done is journaled.
            ExperimentError: more than ``max_errors`` calls failed.
        """
        return [self.run_cell(cell) for cell in self.cells()]

    def run_cell(self, cell: Cell) -> CellResult:
        """Finds the cell's prompt and measures it.

        Raises:
            RunStopped: as ``run``.
            ExperimentError: as ``run``.
        """
        condition, spec = cell.condition, self.experiment.test
        self.stop.check()
        program = self._program(cell)
        examples = [
            self.task.prepared(shortened(example, spec.max_chars), condition.template)
            for example in drawn(self.test, spec.num, seed=0)
        ]
        is_answered = set(self.experiment.measures) != {PERPLEXITY}
        results = self._measure(cell, program, examples) if is_answered else []
        rows = tuple(row for row in results if row is not None)
        figures = self.task.figures(rows)
        if PERPLEXITY in self.experiment.measures:
            figures[PERPLEXITY] = self._perplexity(cell, program, examples)
        num_failed = len(results) - len(rows)
        return CellResult(cell, figures, rows, num_failed, instructions_of(program))

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
        """Whatever a row's result depends on; equal keys are never asked for twice."""
        demos = [dict(demo) for predictor in program.predictors() for demo in predictor.demos]
        return key_of(
            self.models.identity(cell.condition.model),
            self.models.spec(cell.condition.model).system,
            self.experiment.task,
            asdict(self.experiment.judge),
            instructions_of(program),
            demos,
            example.toDict(),
            cell.seed,
        )

    def _program(self, cell: Cell) -> dspy.Module:
        condition = cell.condition
        asked = self.search_task(cell)
        spec = self.models.spec(condition.model)
        program = self.task.program(condition.template, spec, seed=cell.seed)
        apply_instructions(program, self.prompts.find(asked))
        add_demos(program, asked.shots, condition.demos, seed=cell.seed)
        return program

    def _measure(
        self, cell: Cell, program: dspy.Module, examples: Sequence[dspy.Example]
    ) -> list[RowResult | None]:
        """The result of each example, None where its call failed; equal rows are asked for once."""
        keys = [self.row_key(cell, program, example) for example in examples]
        missing = {k: e for k, e in zip(keys, examples, strict=True) if self.journal.get(k) is None}
        done = len(set(keys)) - len(missing)
        self.on_progress(cell, done, len(set(keys)))
        one_by_one = self.models.spec(cell.condition.model).lm == DIFFUSION
        with ThreadPoolExecutor(1 if one_by_one else self.experiment.threads) as pool:
            tasks = [pool.submit(self._row, cell, program, e, k) for k, e in missing.items()]
            try:
                for task in tasks:
                    task.result()
                    done += 1
                    self.on_progress(cell, done, len(set(keys)))
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)  # what is under way is still kept
                raise
        return [self.journal.get(key) for key in keys]

    def _row(self, cell: Cell, program: dspy.Module, example: dspy.Example, key: str) -> None:
        """Asks for one row and journals it; a failed call is counted and leaves nothing."""
        self.stop.check()
        if self._num_errors > self.experiment.max_errors:
            return  # another thread has ended the run
        name = cell.condition.model
        adapter = self.task.adapter(program) or self.models.adapter(name)
        try:
            lm = self.models.lm(name, seed=cell.seed)
            with dspy.context(lm=lm, adapter=adapter, disable_history=True):
                prediction = program(**example.inputs())
            row = self.task.row(example, prediction, self.models.token_counter(name))
        except Exception as error:
            self._note_error(cell, error)
            return
        self.journal.put(key, f"{self.experiment.name}: {cell}", row)

    def _note_error(self, cell: Cell, error: Exception) -> None:
        with self._lock:
            self._num_errors += 1
            self._last_error = error
            reason = str(error).strip().partition("\n")[0]
            logger.warning("%s: a call failed (%s: %s)", cell, type(error).__name__, reason)
            if self._num_errors > self.experiment.max_errors:
                raise ExperimentError(
                    f"more than max_errors={self.experiment.max_errors} calls failed, the last "
                    f"with {type(error).__name__}: {error}; run the same command again to go on"
                ) from error

    def _perplexity(
        self, cell: Cell, program: dspy.Module, examples: Sequence[dspy.Example]
    ) -> float | None:
        """Diffusion perplexity of the gold responses under the measured prompt."""
        name = cell.condition.model
        if self.perplexity is None or self.models.spec(name).denoiser is None:
            return None
        chosen = list(examples)[: self.experiment.perplexity_rows]
        adapter = self.task.adapter(program) or self.models.adapter(name)
        (predictor,) = program.predictors()
        prompts = [_prompt(adapter, predictor, example) for example in chosen]
        gold = [example.verdict for example in chosen]
        self.stop.check()
        key = key_of(
            PERPLEXITY,
            self.models.spec(name).denoiser,
            prompts,
            gold,
            self.experiment.perplexity_samples,
            cell.seed,
        )
        known = self.journal.get(key)
        if known is None:
            denoiser = self.models.denoiser(name)
            draws = self.experiment.perplexity_samples
            known = self.perplexity(denoiser, prompts, gold, num_samples=draws, seed=cell.seed)
            self.journal.put(key, f"{self.experiment.name}: perplexity of {cell}", known)
        return known


def _prompt(adapter: dspy.Adapter, predictor: dspy.Predict, example: dspy.Example) -> str:
    messages = adapter.format(signature_of(predictor), [], dict(example.inputs()))
    return "\n\n".join(message["content"] for message in messages)
