"""Test accuracy before and after ``DiffusionInfill`` on instruction-induction tasks.

The embedded pair, the first human instruction of each task, 16 training rows that are also the
valset, and a budget of metric calls. Any folder of files of the schema in ``induction`` will do::

    python tests/benchmarks/instruction_induction.py --data FOLDER [FOLDER ...] --json OUT.json

Tasks and seeds that OUT.json has already are not run again. ``--left-to-right`` sweeps over all
windows in place of the default search. ``--half`` takes one half of the tasks.
"""

import argparse
import json
import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import dspy
import numpy as np
from induction import HALVES, NUM_TRAIN, Task, accuracy, equals_one_of, load_tasks

from dspy_diffusion_infill import (
    DiffusionInfill,
    Sampling,
    TemplateAdapter,
    embedded_lm,
    load_denoiser,
)

LEFT_TO_RIGHT = {"sweeps": 12}


@dataclass(frozen=True)
class Result:
    """One task under one seed; accuracies in 0..1."""

    task: str
    seed: int
    test_before: float
    test_after: float
    metric_calls: int
    seconds: float
    instructions_before: str
    instructions_after: str
    end_reason: str = "all windows tried"

    def __str__(self) -> str:
        return (
            f"{self.task} seed {self.seed}: {self.test_before:.2f} -> {self.test_after:.2f} "
            f"({self.metric_calls} calls, {self.seconds:.0f} s) {self.instructions_after!r}"
        )


def run_task(task: Task, seed: int, options: argparse.Namespace, denoiser: Any) -> Result:
    program = task.program()
    started = time.perf_counter()
    optimizer = DiffusionInfill(
        equals_one_of,
        denoiser,
        max_metric_calls=options.max_metric_calls,
        seed=seed,
        max_errors=NUM_TRAIN,
        display_progress=False,
        **({"guidance": None} if options.no_guidance else {}),
        **(LEFT_TO_RIGHT if options.left_to_right else {}),
        sampling=Sampling(cache=options.cache),
    )
    better = optimizer.compile(program, task.rows(seed))
    seconds = time.perf_counter() - started
    test = task.test[: options.test_rows]
    return Result(
        task=task.name,
        seed=seed,
        test_before=accuracy(program, test),
        test_after=accuracy(better, test),
        metric_calls=better.detailed_results.metric_calls,
        seconds=round(seconds, 1),
        instructions_before=task.instructions[0],
        instructions_after=better.signature.instructions,
        end_reason=better.detailed_results.end_reason,
    )


def summary(results: list[Result]) -> str:
    """Every task's mean, and the mean gain over tasks with a bootstrap interval over tasks."""
    tasks = sorted({r.task for r in results})
    lines = [f"{'task':28} {'before':>7} {'after':>7} {'change':>7}"]
    gains = []
    for task in tasks:
        rows = [r for r in results if r.task == task]
        before = np.mean([r.test_before for r in rows])
        after = np.mean([r.test_after for r in rows])
        gains.append(after - before)
        lines.append(f"{task:28} {before:7.3f} {after:7.3f} {after - before:+7.3f}")
    means = np.random.default_rng(0).choice(gains, (10_000, len(gains))).mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    calls = max(r.metric_calls for r in results)
    lines.append(
        f"mean gain {100 * np.mean(gains):+.1f} points, 95 % interval over tasks "
        f"[{100 * low:+.1f}, {100 * high:+.1f}]; worst task {100 * min(gains):+.1f}; "
        f"at most {calls} metric calls, {np.mean([r.seconds for r in results]):.0f} s a task"
    )
    return "\n".join(lines)


def read_results(path: Path) -> list[Result]:
    """What an earlier run has left."""
    return [Result(**row) for row in json.loads(path.read_text())] if path.is_file() else []


def write_results(path: Path, results: list[Result]) -> None:
    """A kill leaves the old file or the new one."""
    whole = path.with_suffix(".partial")
    whole.write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")
    whole.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--tasks", help="comma-separated; all files of the folders by default")
    parser.add_argument("--half", choices=HALVES, default="all")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--max-metric-calls", type=int, default=400)
    parser.add_argument("--test-rows", type=int, default=None)
    parser.add_argument("--denoiser", default="smollm2-fs")
    parser.add_argument("--no-guidance", action="store_true", help="the paper's procedure")
    parser.add_argument("--left-to-right", action="store_true", help="the default before")
    parser.add_argument("--cache", choices=["off", "window", "around", "context"], default="off")
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    logging.getLogger("dspy").setLevel(logging.CRITICAL)  # answers that are empty are scored 0
    logging.getLogger("dspy_diffusion_infill").setLevel(logging.ERROR)
    tasks = load_tasks(options.data, options.half, options.tasks)
    denoiser = load_denoiser(options.denoiser)
    dspy.configure(lm=embedded_lm(), adapter=TemplateAdapter())
    results = read_results(options.json)
    done = {(result.task, result.seed) for result in results}
    for task in tasks:
        for seed in range(options.seeds):
            if (task.name, seed) not in done:
                results.append(run_task(task, seed, options, denoiser))
                print(results[-1], flush=True)
                write_results(options.json, results)
    print(summary(results))


if __name__ == "__main__":
    main()
