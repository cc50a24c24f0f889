"""What an experiment will cost, before anything starts."""

from collections.abc import Mapping
from dataclasses import dataclass

from dspy_diffusion_infill.evaluation.experiment import (
    DIFFUSION,
    Condition,
    Experiment,
    ModelSpec,
    SearchSpec,
    Step,
)
from dspy_diffusion_infill.evaluation.prompt_search import instructions_of
from dspy_diffusion_infill.evaluation.runner import Runner
from dspy_diffusion_infill.evaluation.tasks import drawn

_CHARS_PER_TOKEN = 4  # English text under the usual tokenizers
_RESPONSE_TOKENS = 128  # the paper, table 6, where the options say nothing else
_FLOPS = 1e14  # a second, that a bfloat16 GPU of 300 to 1000 peak TFLOP/s really gives


@dataclass(frozen=True, slots=True)
class ModelCost:
    """At most this much, for one model.

    Attributes:
        model: its name.
        calls: of its LM.
        prompt_tokens: over all calls, at four characters a token.
        completion_tokens: over all calls, if each is as long as allowed.
        denoiser_passes: forward passes for proposals.
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
        if self.gpu_hours is not None:
            parts.append(f"about {self.gpu_hours:.2g} GPU hours at 100 TFLOP/s")
        if self.dollars is not None:
            parts.append(f"up to ${self.dollars:,.2f}")
        return f"{self.model}: " + (", ".join(parts) or "nothing left to do")


def estimate(runner: Runner) -> list[ModelCost]:
    """The most that the rest of a run can cost, by model; what is journaled costs nothing."""
    counted: dict[str, _Count] = {name: _Count() for name in runner.experiment.models}
    searched: set[str] = set()
    for cell in runner.cells():
        condition = cell.condition
        asked = runner.search_task(cell)
        template = _num_chars(runner, condition)
        row_chars = _mean_chars(runner) + template * (1 + condition.demos)
        row_chars += condition.demos * _mean_chars(runner)
        num_rows = len(drawn(runner.test, runner.experiment.test.num, seed=0))
        calls = num_rows * runner.experiment.judge.runs
        counted[condition.model].add(calls, calls * row_chars // _CHARS_PER_TOKEN)
        chain = f"{asked.template}/{asked.lm}/{asked.seed}/{asked.steps}"
        if chain in searched or not asked.steps or runner.prompts.is_known(asked):
            continue
        searched.add(chain)
        for step in asked.steps:
            _add_step(counted, runner.experiment, step, asked.lm, len(asked.shots), row_chars)
    return [_cost(name, runner.models.spec(name), one) for name, one in counted.items()]


@dataclass(slots=True)
class _Count:
    calls: int = 0
    tokens: int = 0
    passes: int = 0
    pass_tokens: int = 0

    def add(self, calls: int, tokens: int) -> None:
        self.calls += calls
        self.tokens += tokens


def _add_step(
    counted: Mapping[str, _Count],
    experiment: Experiment,
    step: Step,
    validator: str,
    num_shots: int,
    row_chars: int,
) -> None:
    search = experiment.search
    runs = _program_runs(search, step, num_shots, row_chars)
    counted[validator].add(runs, runs * row_chars // _CHARS_PER_TOKEN)
    if step.kind == "infill":
        windows = _num_windows(search, step, row_chars)
        passes = windows * search.sweeps * search.proposals * min(search.steps, search.mask)
        counted[step.by].passes += passes
        counted[step.by].pass_tokens += passes * row_chars // _CHARS_PER_TOKEN
    else:
        asked = search.copro_breadth * search.copro_depth
        calls = asked if step.kind == "copro" else search.gepa_metric_calls // 4
        counted[step.by].add(calls, calls * row_chars // _CHARS_PER_TOKEN)


def _program_runs(search: SearchSpec, step: Step, num_shots: int, row_chars: int) -> int:
    if step.kind == "copro":
        return search.copro_breadth * search.copro_depth * num_shots
    if step.kind == "gepa":
        return search.gepa_metric_calls
    trials = _num_windows(search, step, row_chars) * search.sweeps * search.proposals
    runs = (trials + 1) * num_shots
    return runs if search.max_metric_calls is None else min(runs, search.max_metric_calls)


def _num_windows(search: SearchSpec, step: Step, row_chars: int) -> int:
    """An upper bound: as if the whole prompt could be masked."""
    return 1 if step.prefix else max(1, row_chars // _CHARS_PER_TOKEN // search.stride)


def _num_chars(runner: Runner, condition: Condition) -> int:
    program = runner.task.program(condition.template, runner.models.spec(condition.model))
    return sum(map(len, instructions_of(program).values()))


def _mean_chars(runner: Runner) -> int:
    """Characters of a row's inputs."""
    limit = runner.experiment.test.max_chars
    lengths = [
        sum(len(v) if limit is None else min(len(v), limit) for v in e.inputs().values())
        for e in runner.test[:50]
    ]
    return sum(lengths) // len(lengths)


def _cost(name: str, spec: ModelSpec, count: _Count) -> ModelCost:
    length = int(spec.options.get("max_tokens", _RESPONSE_TOKENS))
    completion = count.calls * length
    hours = dollars = None
    if spec.billions is not None:
        per_call = min(int(spec.options.get("steps", _RESPONSE_TOKENS)), length)
        passes = per_call if spec.lm == DIFFUSION else 1
        tokens = (count.tokens + completion) * passes + count.pass_tokens
        hours = 2 * spec.billions * 1e9 * tokens / _FLOPS / 3600
    if not spec.is_local and count.calls:
        dollars = _dollars(spec.lm, count.tokens, completion)
    return ModelCost(name, count.calls, count.tokens, completion, count.passes, hours, dollars)


def _dollars(model: str, prompt_tokens: int, completion_tokens: int) -> float | None:
    try:
        from litellm import cost_per_token

        costs = cost_per_token(
            model=model, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens
        )
    except Exception:  # litellm raises a bare Exception for models that it has no price of
        return None
    return sum(costs) or None
