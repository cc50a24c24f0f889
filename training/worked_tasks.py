r"""Small text tasks with worked examples, written for teaching a dLM to infill instructions.

A task is a handful of instructions that different people would write for it, and examples with
their answers. The wording of every task and the examples that need knowledge stand in
``data/tasks_*.txt`` (``_read_line`` says how); examples that can be computed come from
``worked_numbers``, ``worked_times``, ``worked_strings`` and ``worked_extracts``. A row of output
is one wording of one task:

    {"instructions": "Name the capital.", "examples": [["Input: France\nOutput:", "Paris"], ...]}

The tasks that the project measures itself on are left out on purpose: a test names them.

Run it as ``python -m dspy_diffusion_infill.training.worked_tasks OUT.jsonl --seed 0``.
"""

import argparse
import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dspy_diffusion_infill.training.rows import Group
from dspy_diffusion_infill.training.worked_extracts import EXTRACTS
from dspy_diffusion_infill.training.worked_numbers import NUMBERS
from dspy_diffusion_infill.training.worked_registry import Make
from dspy_diffusion_infill.training.worked_strings import STRINGS
from dspy_diffusion_infill.training.worked_times import TIMES
from dspy_diffusion_infill.training.worked_wording import Wording, wordings

DATA = Path(__file__).with_name("data")
COMPUTED: dict[str, Make] = {**NUMBERS, **TIMES, **STRINGS, **EXTRACTS}
PLAIN_MARKERS = ("Input", "Output")
OTHER_MARKERS = (("Q", "A"), ("Question", "Answer"), ("Text", "Answer"), ("Input", "Answer"))
LABEL_MARKERS = (("Text", "Label"), ("Input", "Label"), ("Text", "Category"), ("Input", "Class"))


@dataclass(frozen=True, slots=True)
class Task:
    """One task: how it may be worded, how its examples are marked, and (input, answer) examples."""

    task_id: str
    wording: Wording
    markers: tuple[tuple[str, str], ...]
    examples: tuple[tuple[str, str], ...]


@dataclass(slots=True)
class _Block:
    """A task's lines in a data file, while they are read."""

    task_id: str
    fields: dict[str, list[str]] = field(default_factory=dict)
    examples: list[tuple[str, str]] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    label: str = ""


def load_tasks(*, seed: int) -> list[Task]:
    """All tasks, by id; ``seed`` decides the computed examples."""
    blocks = (block for path in sorted(DATA.glob("tasks_*.txt")) for block in _read_blocks(path))
    tasks = [_to_task(block, random.Random(f"{seed}/{block.task_id}")) for block in blocks]
    if len({task.task_id for task in tasks}) < len(tasks):
        raise ValueError("two tasks in training/data/tasks_*.txt have the same id")
    return sorted(tasks, key=lambda task: task.task_id)


def worked_groups(
    tasks: Iterable[Task], *, seed: int, num_wordings: int = 12, plain_share: float = 0.65
) -> Iterator[tuple[str, Group]]:
    """One (task id, group) for each wording of each task, with 12-20 of the task's examples."""
    for task in tasks:
        rng = random.Random(f"{seed}/{task.task_id}/rows")
        for text in wordings(task.wording, rng, count=num_wordings):
            given, asked = PLAIN_MARKERS if rng.random() < plain_share else rng.choice(task.markers)
            examples = rng.sample(task.examples, min(rng.randint(12, 20), len(task.examples)))
            blocks = tuple((f"{given}: {x}\n{asked}:", y) for x, y in examples)
            yield task.task_id, Group(text, blocks)


def _read_blocks(path: Path) -> Iterator[_Block]:
    block: _Block | None = None
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        if line.startswith("## "):
            if block:
                yield block
            block = _Block(line[3:].strip())
        elif block is None:
            raise ValueError(f"{path.name}:{number}: a task must begin with '## id', got {line!r}")
        else:
            _read_line(block, line.strip())
    if block:
        yield block


def _read_line(block: _Block, line: str) -> None:
    """One line below ``## id``: a field, an example, or inputs that share a label.

    Fields are ``key: text``: noun phrases for what is given (``in``) and asked (``out``), verb
    phrases (``act``), whole instructions (``say``), rules of format (``rule``), who answers
    (``role``), pairs of markers (``mark``), labels that no example line gives (``labels``), and
    where other examples come from (``from: code NAME`` or ``from: table NAME column column``).
    An example is ``input > answer``. ``= label: a, b`` gives the inputs of a label at once, and
    after ``= label`` every line is an input of it.
    """
    key, colon, value = line.partition(": ")
    if colon and key in {"in", "out", "act", "say", "rule", "role", "mark", "from", "labels"}:
        block.fields.setdefault(key, []).append(value.strip())
    elif line.startswith("= "):
        block.label, _, listed = line[2:].partition(": ")
        block.label = block.label.strip()
        block.labels += [block.label] if block.label not in block.labels else []
        block.examples += [
            (item.strip(), block.label) for item in listed.split(",") if item.strip()
        ]
    elif " > " in line:
        given, _, answer = line.rpartition(" > ")
        block.examples.append((given.strip(), answer.strip()))
    elif block.label:
        block.examples.append((line, block.label))
    else:
        raise ValueError(f"task {block.task_id}: neither a field nor an example: {line!r}")


def _to_task(block: _Block, rng: random.Random) -> Task:
    fields = block.fields
    labels = block.labels + [x for line in fields.get("labels", ()) for x in line.split(", ")]
    examples = list(dict.fromkeys([*block.examples, *_examples_from(fields.get("from", []), rng)]))
    marks = [part.partition("/") for part in _alternatives(fields.get("mark", []))]
    own = [(given, asked) for given, _, asked in marks]
    markers = [*own, *own, *OTHER_MARKERS, *(LABEL_MARKERS if labels else ())]
    wording = Wording(
        says=tuple(fields.get("say", ())),
        acts=tuple(fields.get("act", ())),
        inputs=_alternatives(fields.get("in", [])),
        outputs=_alternatives(fields.get("out", [])),
        rules=tuple(fields.get("rule", ())),
        roles=tuple(fields.get("role", ())),
        labels=tuple(labels),
    )
    return Task(block.task_id, wording, tuple(markers), tuple(examples))


def _alternatives(lines: list[str]) -> tuple[str, ...]:
    return tuple(part for line in lines for part in line.split("; "))


def _examples_from(sources: list[str], rng: random.Random) -> list[tuple[str, str]]:
    examples: list[tuple[str, str]] = []
    for source in sources:
        kind, *names = source.split()
        if kind == "code":
            examples += _computed(COMPUTED[names[0]], rng)
        else:
            table, given, answer = names
            examples += _columns(DATA / f"table_{table}.txt", given, answer)
    return examples


def _computed(make: Make, rng: random.Random) -> list[tuple[str, str]]:
    found = dict(make(rng) for _ in range(120))
    return list(found.items())[:60]


def _columns(path: Path, given: str, answer: str) -> list[tuple[str, str]]:
    header, *lines = path.read_text(encoding="utf-8").splitlines()
    names = [name.strip() for name in header.split("|")]
    i, j = names.index(given), names.index(answer)
    rows = [[cell.strip() for cell in line.split("|")] for line in lines]
    answers: dict[str, list[str]] = {}
    for row in rows:
        if row[i] and row[j]:
            answers.setdefault(row[i], []).append(row[j])
    # An input with two possible answers (peso: Mexico, Chile) would teach nothing: left out.
    return [(x, found[0]) for x, found in answers.items() if len(set(found)) == 1]


def main() -> None:
    """Writes the rows as JSON lines."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    tasks = load_tasks(seed=options.seed)
    groups = [group for _, group in worked_groups(tasks, seed=options.seed)]
    with options.out.open("w", encoding="utf-8") as file:
        for group in groups:
            row = {
                "instructions": group.instructions,
                "examples": [list(pair) for pair in group.examples],
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    print(f"{len(tasks)} tasks, {len(groups)} rows -> {options.out}")


if __name__ == "__main__":
    main()
