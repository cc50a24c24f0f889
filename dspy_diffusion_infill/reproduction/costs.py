"""The cost of an experiment, estimated before anything starts."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import dspy

from dspy_diffusion_infill.programs import instructions_of, signature_of, with_instructions
from dspy_diffusion_infill.reproduction.experiment import (
    DIFFUSION,
    PERPLEXITY,
    Condition,
    ModelSpec,
    PromptStep,
    SearchSpec,
)
from dspy_diffusion_infill.reproduction.hours import pass_hours, served_hours
from dspy_diffusion_infill.reproduction.prompt_search import (
    SearchTask,
    add_demos,
)
from dspy_diffusion_infill.reproduction.runner import Cell, Runner
from dspy_diffusion_infill.reproduction.tasks import drawn, shortened
from dspy_diffusion_infill.windows import take_marks

CHARS_PER_TOKEN = 4  # English text under the usual tokenizers
_RESPONSE_TOKENS = 128  # the paper, table 6, where the options say nothing else
_SAMPLED_ROWS = 50  # over which the length of a row is taken


@dataclass(frozen=True, slots=True)
class ModelCost:
    """What one model can still cost: the most, and of GPU hours also what is expected.

    Attributes:
        model: its name.
        calls: of its LM, if every verdict needs all of its retries.
        prompt_tokens: over all calls, at four characters a token.
        completion_tokens: over all calls, if each is as long as allowed.
        denoiser_passes: forward passes for proposals and for diffusion perplexity.
        gpu_hours: if each verdict is read at the first call, where the model's size is known; else
            None. What is assumed is in ``hours``.
        most_gpu_hours: if every verdict needs all of its retries.
        dollars: where litellm knows the price; else None.
    """

    model: str
    calls: int
    prompt_tokens: int
    completion_tokens: int
    denoiser_passes: int
    gpu_hours: float | None
    most_gpu_hours: float | None
    dollars: float | None

    def __str__(self) -> str:
        parts = [f"{self.calls:,} calls"] if self.calls else []
        if self.calls:
            parts.append(f"{self.prompt_tokens:,} prompt tokens")
            parts.append(f"up to {self.completion_tokens:,} completion tokens")
        if self.denoiser_passes:
            parts.append(f"up to {self.denoiser_passes:,} denoiser passes")
        if parts and self.gpu_hours is not None:
            parts.append(hours_text(self.gpu_hours, self.most_gpu_hours))
        if self.dollars is not None:
            parts.append(f"up to ${self.dollars:,.2f}")
        return f"{self.model}: " + (", ".join(parts) or "nothing left to do")


def hours_text(expected: float, most: float | None) -> str:
    """``about 310 GPU hours (at most 930)``."""
    bound = "" if most is None or f"{most:.2g}" == f"{expected:.2g}" else f" (at most {_two(most)})"
    return f"about {_two(expected)} GPU hours{bound}"


def _two(number: float) -> str:
    """Two digits that count, never as a power of ten."""
    return f"{float(f'{number:.2g}'):,.10g}"


def remaining_costs(runner: Runner) -> list[ModelCost]:
    """The most that the rest of a run can cost, by model; no LM is called.

    Journaled rows and prompts cost nothing. Models are loaded only to look rows up in a journal:
    their identity is part of its keys. Diffusion perplexity is counted even if it is journaled, and
    so are rows that turn out to be too long for a model.
    """
    counted = {name: _Count() for name in runner.experiment.models}
    searched: set[str] = set()
    for cell in runner.cells():
        _add_cell(counted, runner, cell, searched)
    return _costs(runner, counted)


def condition_costs(runner: Runner) -> list[tuple[Condition, list[ModelCost]]]:
    """What each row of the table costs, all seeds together, in their order.

    A search that rows share counts for the first of them.
    """
    searched: set[str] = set()
    found = []
    for condition in runner.experiment.measured:
        counted = {name: _Count() for name in runner.experiment.models}
        for seed in runner.experiment.seeds:
            _add_cell(counted, runner, Cell(condition, seed), searched)
        used = {name: one for name, one in counted.items() if one.calls or one.passes}
        found.append((condition, _costs(runner, used)))
    return found


@dataclass(slots=True)
class _Count:
    """Calls as (at most, expected, characters of a prompt), passes as (number, characters)."""

    asked: list[tuple[int, int, int]] = field(default_factory=list)
    passed: list[tuple[int, int]] = field(default_factory=list)

    @property
    def calls(self) -> int:
        return sum(most for most, _, _ in self.asked)

    @property
    def passes(self) -> int:
        return sum(number for number, _ in self.passed)


@dataclass(frozen=True, slots=True)
class Length:
    """Characters of a prompt, on average.

    Attributes:
        instructions: of a predictor.
        row: what a row puts in.
        response: its gold response, in worked examples.
        num_demos: worked examples.
    """

    instructions: int
    row: int
    response: int
    num_demos: int

    @classmethod
    def of(cls, runner: Runner, cell: Cell, program: dspy.Module) -> "Length":
        """The lengths of a cell's prompts before any step, over its first test rows."""
        texts = list(instructions_of(program).values())
        limit = runner.experiment.test.max_chars
        rows = [
            runner.task.prepared(shortened(example, limit), cell.condition.template)
            for example in runner.test[:_SAMPLED_ROWS]
        ]
        inputs = sum(len(str(value)) for row in rows for value in row.inputs().values())
        row = inputs // len(rows) + runner.task.context_chars
        outputs = {name for one in program.predictors() for name in signature_of(one).output_fields}
        responses = sum(len(str(row[name])) for row in rows for name in outputs if name in row)
        return cls(
            sum(map(len, texts)) // len(texts), row, responses // len(rows), cell.condition.demos
        )

    @property
    def prompt(self) -> int:
        """Characters of a whole prompt: the template is repeated with every demo."""
        one = self.instructions + self.row
        return one + self.num_demos * (one + self.response)

    def context(self, search: SearchSpec, max_tokens: int | None) -> int:
        """Characters that a denoiser sees around a window: the mean of 1 to ``search.examples``.

        Examples that do not fit its context are left out.
        """
        chars = self.instructions + (1 + search.examples) * (self.row + self.response) // 2
        return chars if max_tokens is None else min(chars, max_tokens * CHARS_PER_TOKEN)


def _add_cell(
    counted: Mapping[str, _Count], runner: Runner, cell: Cell, searched: set[str]
) -> None:
    program = start_of(runner, cell)
    length = Length.of(runner, cell, program)
    _add_rows(counted[cell.condition.model], runner, cell, program, length)
    asked = runner.search_task(cell)
    for step in _steps_left(runner, asked, searched):
        _add_step(counted, runner, step, asked, program, length)


def start_of(runner: Runner, cell: Cell) -> dspy.Module:
    """The cell's program before any step."""
    spec = runner.models.spec(cell.condition.model)
    return runner.task.program(cell.condition.template, spec, seed=cell.seed)


def _add_rows(
    count: _Count, runner: Runner, cell: Cell, program: dspy.Module, length: Length
) -> None:
    experiment, measures = runner.experiment, set(runner.experiment.measures)
    num_rows = len(drawn(runner.test, experiment.test.num, seed=0))
    if experiment.answers_rows:
        left = num_rows - _num_settled(runner, cell, program)
        task = runner.task
        count.asked.append((left * task.num_calls, left * task.expected_calls, length.prompt))
    if PERPLEXITY in measures and runner.models.spec(cell.condition.model).denoiser:
        measured = min(num_rows, experiment.perplexity_rows or num_rows)
        count.passed.append((measured * experiment.perplexity_samples, length.prompt))


def _num_settled(runner: Runner, cell: Cell, program: dspy.Module) -> int:
    """Rows of the cell that an earlier run has finished: 0 while its prompt is not known.

    All of them where the prompt could not be filled, since it is then not measured.
    """
    if not runner.journal.values() or not _is_known(runner, asked := runner.search_task(cell)):
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
    length: Length,
) -> None:
    experiment, search, task = runner.experiment, runner.experiment.search, runner.task
    windows = [
        masks
        for text in instructions_of(program).values()
        for masks in _windows(search, step, text)
    ]
    prompt = length.instructions + length.row
    if not experiment.only_fills:
        runs = _program_runs(search, step, len(asked.shots), len(windows))
        calls = runs * task.num_calls, runs * task.expected_calls, prompt
        counted[asked.lm].asked.append(calls)
    if step.kind == "infill":
        passes = sum(min(search.steps, masks) for masks in windows)
        passes *= search.sweeps * search.proposals
        context = length.context(search, runner.models.spec(step.by).max_context)
        counted[step.by].passed.append((passes, context))
        return
    asked_for = search.copro_breadth * search.copro_depth
    # GEPA scores three rows before and three after what it asks for.
    calls = asked_for if step.kind == "copro" else search.gepa_metric_calls // 4
    counted[step.by].asked.append((calls, calls, prompt))


def _windows(search: SearchSpec, step: PromptStep, text: str) -> list[int]:
    """The masks of each window of a text, as if all of it could be masked."""
    if step.kind != "infill":
        return []
    if step.prefix is not None:
        return [step.prefix]
    if (marked := take_marks(text)[1]) is not None:
        return [marked.num_masks]
    return [search.mask] * max(1, len(text) // CHARS_PER_TOKEN // search.stride)


def _program_runs(search: SearchSpec, step: PromptStep, num_shots: int, num_windows: int) -> int:
    if step.kind == "copro":
        return search.copro_breadth * search.copro_depth * num_shots
    if step.kind == "gepa":
        return search.gepa_metric_calls
    runs = (num_windows * search.sweeps * search.proposals + 1) * num_shots
    return runs if search.max_metric_calls is None else min(runs, search.max_metric_calls)


def _costs(runner: Runner, counted: Mapping[str, _Count]) -> list[ModelCost]:
    return [_cost(name, runner.models.spec(name), one) for name, one in counted.items()]


def _cost(name: str, spec: ModelSpec, count: _Count) -> ModelCost:
    length = int(spec.options.get("max_tokens", _RESPONSE_TOKENS))
    chars = sum(most * each for most, _, each in count.asked)
    prompt, completion = chars // CHARS_PER_TOKEN, count.calls * length
    dollars = None
    if count.calls and not (spec.is_local or spec.lm.startswith("hosted_vllm/")):
        dollars = _dollars(spec.lm, prompt, completion)
    most = _hours(spec, count, length, [(calls, each) for calls, _, each in count.asked])
    expected = _hours(spec, count, length, [(calls, each) for _, calls, each in count.asked])
    return ModelCost(name, count.calls, prompt, completion, count.passes, expected, most, dollars)


def _hours(
    spec: ModelSpec, count: _Count, length: int, calls: Sequence[tuple[int, int]]
) -> float | None:
    """GPU hours of passes and of calls with prompts of so many characters; None is unknown.

    The size is that of the denoiser where there is one: then an LM that is not the denoiser runs
    elsewhere.
    """
    if spec.billions is None:
        return None
    hours = sum(pass_hours(spec.billions, n, each / CHARS_PER_TOKEN) for n, each in count.passed)
    for number, each in calls:
        tokens = each / CHARS_PER_TOKEN + length
        if spec.lm == DIFFUSION:  # prompt and answer are read in every step
            steps = min(int(spec.options.get("steps", _RESPONSE_TOKENS)), length)
            hours += pass_hours(spec.billions, number * steps, tokens)
        elif spec.denoiser is None:
            hours += served_hours(spec.billions, number * tokens)
    return hours


def _dollars(model: str, prompt_tokens: int, completion_tokens: int) -> float | None:
    try:
        from litellm import cost_per_token

        costs = cost_per_token(
            model=model, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens
        )
    except Exception:  # litellm raises a bare Exception for models that it has no price of
        return None
    return sum(costs) or None
