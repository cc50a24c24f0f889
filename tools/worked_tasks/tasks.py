r"""Small text tasks with worked examples, written to train a dLM to infill instructions.

A task is a handful of instructions that different people would write for it, and examples with
their answers. The wording of every task and the examples that need knowledge stand in
``data/tasks_*.txt`` (``_read_line`` says how); examples that can be computed come from
``numbers``, ``times``, ``strings`` and ``extracts``. A row of output
is one wording of one task:

    {"instructions": "Name the capital.", "examples": [["Input: France\nOutput:", "Paris"], ...]}

The tasks that the project measures itself on are left out on purpose: a test names them.

Run it as ``python -m tools.worked_tasks OUT.jsonl --seed 0``. With
``--hold-out science --windows HELD_OUT.jsonl`` the tasks of ``data/tasks_science.txt`` stay out of
OUT.jsonl, and HELD_OUT.jsonl gets windows in their instructions for ``dspy-infill probe``.
"""

import argparse
import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dspy_diffusion_infill.denoisers import load_denoiser
from dspy_diffusion_infill.training.rows import SEPARATOR, Group
from tools.worked_tasks.extracts import EXTRACTS
from tools.worked_tasks.numbers import NUMBERS
from tools.worked_tasks.registry import Make
from tools.worked_tasks.strings import STRINGS
from tools.worked_tasks.times import TIMES
from tools.worked_tasks.wording import Wording, wordings

DATA = Path(__file__).with_name("data")
COMPUTED: dict[str, Make] = {**NUMBERS, **TIMES, **STRINGS, **EXTRACTS}
PLAIN_MARKERS = ("Input", "Output")
OTHER_MARKERS = (("Q", "A"), ("Question", "Answer"), ("Text", "Answer"), ("Input", "Answer"))
LABEL_MARKERS = (("Text", "Label"), ("Input", "Label"), ("Text", "Category"), ("Input", "Class"))
FIELDS = {"in", "out", "act", "say", "plain", "rule", "role", "mark", "from", "labels"}


@dataclass(frozen=True, slots=True)
class Task:
    """One task: how it may be worded, how its examples are marked, and (input, answer) examples.

    ``topic`` is the data file that it stands in: ``science`` for ``tasks_science.txt``.
    """

    task_id: str
    topic: str
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
    tasks = [
        _to_task(block, topic_of(path), random.Random(f"{seed}/{block.task_id}"))
        for path in sorted(DATA.glob("tasks_*.txt"))
        for block in _read_blocks(path)
    ]
    if len({task.task_id for task in tasks}) < len(tasks):
        raise ValueError("two tasks in tools/worked_tasks/data/tasks_*.txt have the same id")
    return sorted(tasks, key=lambda task: task.task_id)


def worked_groups(
    tasks: Iterable[Task],
    *,
    seed: int,
    num_plain: int = 10,
    num_others: int = 8,
    plain_share: float = 0.65,
) -> Iterator[tuple[str, Group]]:
    """One (task id, group) for each wording of each task, with 12-20 of the task's examples.

    Args:
        tasks: what is worded.
        seed: decides wordings, markers and examples.
        num_plain: plain wordings of a task, if it has so many.
        num_others: wordings of a task in other styles.
        plain_share: of the rows whose examples are marked with "Input:" and "Output:".
    """
    for task in tasks:
        rng = random.Random(f"{seed}/{task.task_id}/rows")
        for text in wordings(task.wording, rng, num_plain=num_plain, num_others=num_others):
            given, asked = PLAIN_MARKERS if rng.random() < plain_share else rng.choice(task.markers)
            examples = rng.sample(task.examples, min(rng.randint(12, 20), len(task.examples)))
            blocks = tuple((f"{given}: {x}\n{asked}:", y) for x, y in examples)
            yield task.task_id, Group(text, blocks)


def topic_of(path: Path) -> str:
    """The topic of the tasks in ``tasks_TOPIC.txt``."""
    return path.stem.removeprefix("tasks_")


def windows(
    groups: Iterable[Group],
    offsets: Callable[[str], Sequence[tuple[int, int]]],
    *,
    seed: int,
    num_tokens: int = 8,
    num_examples: int = 4,
) -> Iterator[dict[str, str | int]]:
    """Rows of the infill probe: a window in each of the instructions, above worked examples.

    Args:
        groups: instructions of fewer than ``num_tokens`` tokens are masked as a whole.
        offsets: of the tokens of a text, (start, end) characters.
        seed: decides the examples and the place of the window.
        num_tokens: of a window.
        num_examples: that stand below the instructions, as the optimizer's contexts have them.
    """
    for number, group in enumerate(groups):
        rng = random.Random(f"{seed}/{number}/window")
        examples = rng.sample(group.examples, min(num_examples, len(group.examples)))
        blocks = [f"{question} {answer}" for question, answer in examples]
        tokens = offsets(group.instructions)
        first = rng.randint(0, max(0, len(tokens) - num_tokens))
        last = min(first + num_tokens, len(tokens)) - 1
        text = SEPARATOR.join([group.instructions, *blocks])
        yield {"text": text, "start": tokens[first][0], "end": tokens[last][1]}


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
    phrases (``act``), whole instructions in many styles (``say``) and as people word them who were
    shown some examples only (``plain``), rules of format (``rule``), who answers (``role``), pairs
    of markers (``mark``), labels that no example line gives (``labels``), and where other examples
    come from (``from: code NAME`` or ``from: table NAME column column``). An example is
    ``input > answer``. ``= label: a, b`` gives the inputs of a label at once, and after ``= label``
    every line is an input of it.
    """
    key, colon, value = line.partition(": ")
    if colon and key in FIELDS:
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


def _to_task(block: _Block, topic: str, rng: random.Random) -> Task:
    fields = block.fields
    labels = block.labels + [x for line in fields.get("labels", ()) for x in line.split(", ")]
    examples = list(dict.fromkeys([*block.examples, *_examples_from(fields.get("from", []), rng)]))
    marks = [part.partition("/") for part in _alternatives(fields.get("mark", []))]
    own = [(given, asked) for given, _, asked in marks]
    markers = [*own, *own, *OTHER_MARKERS, *(LABEL_MARKERS if labels else ())]
    wording = Wording(
        plain=tuple(fields.get("plain", ())),
        says=tuple(fields.get("say", ())),
        acts=tuple(fields.get("act", ())),
        inputs=_alternatives(fields.get("in", [])),
        outputs=_alternatives(fields.get("out", [])),
        rules=tuple(fields.get("rule", ())),
        roles=tuple(fields.get("role", ())),
        labels=tuple(labels),
    )
    return Task(block.task_id, topic, wording, tuple(markers), tuple(examples))


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
    # An input with two possible answers (peso: Mexico, Chile) says nothing, and is left out.
    return [(x, found[0]) for x, found in answers.items() if len(set(found)) == 1]


def main() -> None:
    """Writes the rows as JSON lines."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hold-out", action="append", default=[], metavar="TOPIC")
    parser.add_argument("--windows", type=Path, metavar="HELD_OUT.jsonl")
    options = parser.parse_args()
    tasks = load_tasks(seed=options.seed)
    if unknown := set(options.hold_out) - {task.topic for task in tasks}:
        topics = ", ".join(sorted({task.topic for task in tasks}))
        parser.error(f"no topic {sorted(unknown)[0]!r}; there are: {topics}")
    if bool(options.hold_out) != bool(options.windows):
        parser.error("--hold-out and --windows need each other")
    trained_on = [task for task in tasks if task.topic not in options.hold_out]
    groups = [group for _, group in worked_groups(trained_on, seed=options.seed)]
    _write(
        options.out,
        ({"instructions": g.instructions, "examples": list(map(list, g.examples))} for g in groups),
    )
    print(f"{len(trained_on)} tasks, {len(groups)} rows -> {options.out}")
    if options.windows:
        held_out = [task for task in tasks if task.topic in options.hold_out]
        rows = worked_groups(
            held_out, seed=options.seed, num_plain=2, num_others=2, plain_share=1.0
        )
        found = list(windows((group for _, group in rows), _offsets(), seed=options.seed))
        _write(options.windows, found)
        print(f"{len(held_out)} held-out tasks, {len(found)} windows -> {options.windows}")


def _offsets() -> Callable[[str], Sequence[tuple[int, int]]]:
    denoiser = load_denoiser("smollm2-fs", device="cpu")
    return lambda text: denoiser.encode(text).offsets


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
