"""What the benchmarks on instruction-induction tasks share: tasks, halves, program, metric, scores.

A task is a file of the schema ``{task, human_instructions, train, test}`` with rows ``{input,
outputs}``. Options are chosen on one half of the tasks and reported on the other: of the sorted
names, ``choose`` is the 1st, 3rd, … and ``report`` the 2nd, 4th, ….
"""

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import dspy
import numpy as np

from dspy_diffusion_infill.cli.demo_run import BUNDLED_INSTRUCTIONS, BUNDLED_TASK, bundled_rows
from dspy_diffusion_infill.labels import are_labels

NUM_TRAIN = 16
HALVES = ("choose", "report", "all")
Rows = Sequence[dspy.Example]


@dataclass(frozen=True, slots=True)
class Task:
    """A task, with rows for the search and rows that it never sees.

    Attributes:
        name: of the file.
        half: ``choose`` or ``report``.
        instructions: by humans; a search starts from the first.
        train: the search draws its rows from these.
        test: held out.
    """

    name: str
    half: str
    instructions: tuple[str, ...]
    train: tuple[dspy.Example, ...]
    test: tuple[dspy.Example, ...]

    def rows(self, seed: int) -> list[dspy.Example]:
        """The rows of one search, drawn anew for each seed."""
        num = min(NUM_TRAIN, len(self.train))
        return random.Random(f"{self.name}/{seed}").sample(self.train, num)

    def labels(self) -> tuple[str, ...]:
        """The labels, where the outputs are some."""
        values = Counter(output for row in (*self.train, *self.test) for output in row.outputs)
        return tuple(sorted(values)) if are_labels(values) else ()

    def program(self, *, is_typed: bool = False) -> dspy.Predict:
        """One step from the first instructions; a typed output takes nothing but the labels."""
        kind: Any = Literal[self.labels()] if is_typed else str
        fields = {"input": (str, dspy.InputField()), "output": (kind, dspy.OutputField())}
        return dspy.Predict(dspy.Signature(fields, self.instructions[0]))


def equals_one_of(example: dspy.Example, prediction: Any, trace: Any = None) -> float:
    """Right if the answer is one of the outputs, ignoring case and a final full stop."""

    def folded(text: str) -> str:
        return " ".join(text.lower().split()).removesuffix(".")

    return float(folded(str(prediction.output)) in {folded(text) for text in example.outputs})


def accuracy(program: dspy.Module, rows: Rows) -> float:
    evaluate = dspy.Evaluate(devset=list(rows), metric=equals_one_of, max_errors=len(rows) + 1)
    return float(np.mean([float(score) for *_, score in evaluate(program).results]))


def halves_of(folders: Sequence[Path]) -> dict[Path, str]:
    """The half of each task's file, in the order of their names."""
    found = {path.stem: path for folder in folders for path in folder.glob("*.json")}
    return {found[name]: HALVES[number % 2] for number, name in enumerate(sorted(found))}


def load_tasks(folders: Sequence[Path], half: str = "all", asked: str | None = None) -> list[Task]:
    """The tasks of a half, or those of its names that are asked for, with commas between them."""
    half_of = halves_of(folders)
    files = {path.stem: path for path in half_of if half in ("all", half_of[path])}
    chosen = asked.split(",") if asked else list(files)
    if unknown := [name for name in chosen if name not in files]:
        raise SystemExit(f"--tasks must be among {list(files)}, got {unknown}")
    return [_read(files[name], half_of[files[name]]) for name in chosen]


def demo_task() -> Task:
    """The demo's reviews; its start and its rows were looked at, so it is of the half to choose."""
    rows = bundled_rows()
    train, test = (
        tuple(_example({"input": row.text, "outputs": [row.label]}) for row in part)
        for part in (rows.train + rows.valid, rows.heldout)
    )
    return Task(f"demo_{BUNDLED_TASK}", "choose", (BUNDLED_INSTRUCTIONS,), train, test)


def _read(path: Path, half: str) -> Task:
    task = json.loads(path.read_text(encoding="utf-8"))
    train, test = (tuple(map(_example, task[part])) for part in ("train", "test"))
    return Task(path.stem, half, tuple(task["human_instructions"]), train, test)


def _example(row: dict[str, Any]) -> dspy.Example:
    outputs = row["outputs"]
    example = dspy.Example(input=row["input"], output=outputs[0], outputs=outputs)
    return example.with_inputs("input")
