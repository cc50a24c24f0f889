"""The cost of an experiment, estimated before anything starts."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import dspy

from dspy_diffusion_infill.programs import instructions_of, with_instructions
from dspy_diffusion_infill.reproduction.experiment import (
    DIFFUSION,
    ModelSpec,
    PromptStep,
    SearchSpec,
)
from dspy_diffusion_infill.reproduction.perplexity import PERPLEXITY
from dspy_diffusion_infill.reproduction.prompt_search import (
    SearchTask,
    add_demos,
)
from dspy_diffusion_infill.reproduction.runner import Cell, Runner
from dspy_diffusion_infill.reproduction.tasks import drawn, shortened
from dspy_diffusion_infill.windows import take_marks

_CHARS_PER_TOKEN = 4  # English text under the usual tokenizers
_RESPONSE_TOKENS = 128  # the paper, table 6, where the options say nothing else
_FLOPS = 1e14  # a second, that a bfloat16 GPU of 300 to 1000 peak TFLOP/s really gives
_SAMPLED_ROWS = 50  # over which the length of a row is taken


@dataclass(frozen=True, slots=True)
class ModelCost:
    """The most that one model can still cost.

    Attributes:
        model: its name.
        calls: of its LM, if every verdict needs all of its retries.
        prompt_tokens: over all calls, at four characters a token.
        completion_tokens: over all calls, if each is as long as allowed.
        denoiser_passes: forward passes for proposals and for diffusion perplexity.
        gpu_hours: at 100 TFLOP/s, where the model is run locally and its size is known; else None.
        dollars: where litellm knows the price; else None.
    """

    model: str
    calls: int
    prompt_tokens: int
    completion_tokens: int
    denoiser_passes: int
    gpu_hours: float | None
    dollars: float | None

    def __str__(self) -> str:
        parts = [f"{self.calls:,} calls"] if self.calls else []
        if self.calls:
            parts.append(f"{self.prompt_tokens:,} prompt tokens")
            parts.append(f"up to {self.completion_tokens:,} completion tokens")
        if self.denoiser_passes:
            parts.append(f"up to {self.denoiser_passes:,} denoiser passes")
        if parts and self.gpu_hours is not None:
            parts.append(f"about {self.gpu_hours:.2g} GPU hours at 100 TFLOP/s")
        if self.dollars is not None:
            parts.append(f"up to ${self.dollars:,.2f}")
        return f"{self.model}: " + (", ".join(parts) or "nothing left to do")


def remaining_costs(runner: Runner) -> list[ModelCost]:
    """The most that the rest of a run can cost, by model; no LM is called.

    Journaled rows and prompts cost nothing. Models are loaded only to look rows up in a journal:
    their identity is part of its keys. Diffusion perplexity is counted even if it is journaled, and
    so are rows that turn out to be too long for a model.
    """
    counted = {name: _Count() for name in runner.experiment.models}
    searched: set[str] = set()
    for cell in runner.cells():
        asked = runner.search_task(cell)
        program = _start(runner, cell)
        length = _Length.of(runner, cell, program)
        _add_rows(counted[cell.condition.model], runner, cell, program, length)
        for step in _steps_left(runner, asked, searched):
            _add_step(counted, runner, step, asked, program, length)
    return [_cost(name, runner.models.spec(name), one) for name, one in counted.items()]


@dataclass(slots=True)
class _Count:
    calls: int = 0
    chars: int = 0
    passes: int = 0
    pass_chars: int = 0

    def add_calls(self, calls: int, chars: int) -> None:
        self.calls += calls
        self.chars += calls * chars

    def add_passes(self, passes: int, chars: int) -> None:
        self.passes += passes
        self.pass_chars += passes * chars


@dataclass(frozen=True, slots=True)
class _Length:
    """Characters of a prompt: of a predictor's instructions, and of what a row puts in."""

    instructions: int
    row: int
    num_demos: int

    @classmethod
    def of(cls, runner: Runner, cell: Cell, program: dspy.Module) -> "_Length":
        texts = list(instructions_of(program).values())
        limit = runner.experiment.test.max_chars
        rows = [
            runner.task.prepared(shortened(example, limit), cell.condition.template)
            for example in runner.test[:_SAMPLED_ROWS]
        ]
        inputs = sum(len(str(value)) for row in rows for value in row.inputs().values())
        row = inputs // len(rows) + runner.task.context_chars
        return cls(sum(map(len, texts)) // len(texts), row, cell.condition.demos)

    @property
    def prompt(self) -> int:
        """Characters of a whole prompt: the template is repeated with every demo."""
        return (self.instructions + self.row) * (1 + self.num_demos)

    def context(self, num_examples: int) -> int:
        """Characters that a denoiser sees around a window."""
        return self.instructions + num_examples * self.row


def _start(runner: Runner, cell: Cell) -> dspy.Module:
    """The cell's program before any step."""
    spec = runner.models.spec(cell.condition.model)
    return runner.task.program(cell.condition.template, spec, seed=cell.seed)


def _add_rows(
    count: _Count, runner: Runner, cell: Cell, program: dspy.Module, length: _Length
) -> None:
    experiment, measures = runner.experiment, set(runner.experiment.measures)
    num_rows = len(drawn(runner.test, experiment.test.num, seed=0))
    if measures != {PERPLEXITY}:
        left = num_rows - _num_settled(runner, cell, program)
        count.add_calls(left * runner.task.num_calls, length.prompt)
    if PERPLEXITY in measures and runner.models.spec(cell.condition.model).denoiser:
        measured = min(num_rows, experiment.perplexity_rows or num_rows)
        count.add_passes(measured * experiment.perplexity_samples, length.prompt)


def _num_settled(runner: Runner, cell: Cell, program: dspy.Module) -> int:
    """Rows of the cell that an earlier run has finished: 0 while its prompt is not known.

    All of them where the prompt could not be filled, since it is then not measured.
    """
    asked = runner.search_task(cell)
    if not runner.journal.values() or not _is_known(runner, asked):
        return 0
    spec, found = runner.experiment.test, runner.prompts.find(asked)
    rows = drawn(runner.test, spec.num, seed=0)
    if found.outcome == "unfilled":
        return len(rows)
    program = with_instructions(program, found.instructions)
    add_demos(program, asked.shots, cell.condition.demos, seed=cell.seed)
    examples = (
        runner.task.prepared(shortened(row, spec.max_chars), cell.condition.template)
        for row in rows
    )
    keys = (runner.row_key(cell, program, example) for example in examples)
    return sum(runner.journal.get(key) is not None for key in keys)


def _is_known(runner: Runner, asked: SearchTask) -> bool:
    if not asked.steps:
        return True
    return bool(runner.prompts.journal.values()) and runner.prompts.is_known(asked)


def _steps_left(runner: Runner, asked: SearchTask, searched: set[str]) -> Iterator[PromptStep]:
    """The steps of a chain that are not journaled; a beginning that chains share counts once."""
    for number, step in enumerate(asked.steps, start=1):
        begun = replace(asked, steps=asked.steps[:number])
        name = f"{begun.template}/{begun.lm}/{begun.seed}/{begun.steps}"
        if name not in searched and not _is_known(runner, begun):
            searched.add(name)
            yield step


def _add_step(
    counted: Mapping[str, _Count],
    runner: Runner,
    step: PromptStep,
    asked: SearchTask,
    program: dspy.Module,
    length: _Length,
) -> None:
    search = runner.experiment.search
    windows = [
        masks
        for text in instructions_of(program).values()
        for masks in _windows(search, step, text)
    ]
    runs = _program_runs(search, step, len(asked.shots), len(windows))
    counted[asked.lm].add_calls(runs * runner.task.num_calls, length.instructions + length.row)
    if step.kind == "infill":
        passes = sum(min(search.steps, masks) for masks in windows)
        passes *= search.sweeps * search.proposals
        counted[step.by].add_passes(passes, length.context(search.examples))
        return
    asked_for = search.copro_breadth * search.copro_depth
    # GEPA scores three rows before and three after what it asks for.
    calls = asked_for if step.kind == "copro" else search.gepa_metric_calls // 4
    counted[step.by].add_calls(calls, length.instructions + length.row)


def _windows(search: SearchSpec, step: PromptStep, text: str) -> list[int]:
    """The masks of each window of a text, as if all of it could be masked."""
    if step.kind != "infill":
        return []
    if step.prefix is not None:
        return [step.prefix]
    if (marked := take_marks(text)[1]) is not None:
        return [marked.num_masks]
    return [search.mask] * max(1, len(text) // _CHARS_PER_TOKEN // search.stride)


def _program_runs(search: SearchSpec, step: PromptStep, num_shots: int, num_windows: int) -> int:
    if step.kind == "copro":
        return search.copro_breadth * search.copro_depth * num_shots
    if step.kind == "gepa":
        return search.gepa_metric_calls
    runs = (num_windows * search.sweeps * search.proposals + 1) * num_shots
    return runs if search.max_metric_calls is None else min(runs, search.max_metric_calls)


def _cost(name: str, spec: ModelSpec, count: _Count) -> ModelCost:
    length = int(spec.options.get("max_tokens", _RESPONSE_TOKENS))
    prompt, completion = count.chars // _CHARS_PER_TOKEN, count.calls * length
    hours = dollars = None
    if spec.billions is not None:
        per_call = min(int(spec.options.get("steps", _RESPONSE_TOKENS)), length)
        passes = per_call if spec.lm == DIFFUSION else 1
        tokens = (prompt + completion) * passes + count.pass_chars // _CHARS_PER_TOKEN
        hours = 2 * spec.billions * 1e9 * tokens / _FLOPS / 3600
    if not spec.is_local and count.calls:
        dollars = _dollars(spec.lm, prompt, completion)
    return ModelCost(name, count.calls, prompt, completion, count.passes, hours, dollars)


def _dollars(model: str, prompt_tokens: int, completion_tokens: int) -> float | None:
    try:
        from litellm import cost_per_token

        costs = cost_per_token(
            model=model, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens
        )
    except Exception:  # litellm raises a bare Exception for models that it has no price of
        return None
    return sum(costs) or None
