r"""Leaves out of training text whatever the project measures itself on.

``python -m tools.worked_tasks.exclusion IN.jsonl OUT.jsonl --measured FOLDER [FOLDER ...]`` copies
the rows of a training file that share nothing with the tasks of the folders (the schema of
instruction induction: ``human_instructions``, and ``train`` and ``test`` rows) nor with the demo's,
and prints how many it left out, and why:

* ``wording``: the instructions are near those of a measured task, by cosine over one to three
  words in a row, rare ones counting more; or they name what such a task is about.
* ``labels``: two answers or more are labels of a measured task.
* ``pairs``: an example has input and answer of a measured task's row.
* ``inputs``: a text of six words or more stands in a measured task's row too. Of groups, examples
  with the same input as a measured row are taken out one by one, whatever their answer is.

Two tasks can be cousins without sharing any of that ("second letter" and "first letter"). With
``--nearest 3`` the three kept wordings that are nearest to each measured task are printed.
"""

import argparse
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dspy_diffusion_infill.jsonl import objects_of
from dspy_diffusion_infill.words import folded, words_of

DEMO = Path(__file__).resolve().parents[2] / "dspy_diffusion_infill" / "data" / "demo"
FEWEST_EXAMPLES = 7  # of a group that is kept
LENGTHS = (1, 2, 3)  # words in a row by which instructions are compared
NEAR = 0.5  # cosine above which two instructions say the same
RUN = 6  # words in a row that are a copy
MOST_LABELS = 5  # different answers of a task that has labels

ABOUT = re.compile(
    r"passive|active voice|subtract|minus\b|\bdifference|first letter|initial letter|\w*formal\b"
    r"|animal that is (larger|bigger|smaller)|(larger|bigger|smaller|heavier) (of the two )?animal"
    r"|numbers? (in|as|to|into) (English )?words|(start|begin)\w* with the letter"
    r"|sentiment|\breview|\bpositive|\bnegative|plural|synonym|(same|similar) meaning|German"
    r"|same sense|word sense|meaning of the word|\bpolite|\brude|impolite|courte"
    r"|(first|second|third) person|grammatical person|city or (a )?country|country or (a )?city"
    r"|food or (a )?tool|tool or (a )?food|\btopics?\b",
    re.IGNORECASE,
)
"""What instructions and prompts of the measured tasks are about."""


@dataclass(frozen=True)
class MeasuredTask:
    """A task that the project is measured on.

    Attributes:
        name: of its file.
        instructions: that people wrote for it.
        pairs: (input, answer) of every row.
    """

    name: str
    instructions: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]

    @cached_property
    def labels(self) -> frozenset[str]:
        """The answers, where there are few of them; else empty."""
        found = frozenset(folded(answer) for _, answer in self.pairs)
        return found if len(found) <= MOST_LABELS else frozenset()


def read_measured(folders: Iterable[Path]) -> list[MeasuredTask]:
    """The tasks of folders in instruction induction's schema, and the demo's two."""
    tasks = []
    for path in (path for folder in folders for path in sorted(folder.glob("*.json"))):
        task = json.loads(path.read_text(encoding="utf-8"))
        rows = [*task["train"], *task["test"]]
        pairs = tuple((row["input"], answer) for row in rows for answer in row["outputs"])
        tasks.append(MeasuredTask(path.stem, tuple(task["human_instructions"]), pairs))
    for name in ("sentiment", "topic"):
        rows = [row for path in sorted(DEMO.glob(f"{name}_*.jsonl")) for _, row in objects_of(path)]
        pairs = tuple((row["text"], row["label"]) for row in rows)
        tasks.append(MeasuredTask(f"demo_{name}", (f"Classify the {name} of the text.",), pairs))
    return tasks


@dataclass(frozen=True)
class Exclusion:
    """Finds what training text shares with measured tasks.

    Attributes:
        tasks: the measured tasks.
    """

    tasks: tuple[MeasuredTask, ...]

    def reason_against(self, row: dict[str, Any]) -> str | None:
        """Why a training row is left out; None where nothing speaks against it.

        Args:
            row: ``instructions`` with ``examples``, or ``prompt`` with ``response``.
        """
        examples = row.get("examples")
        text = row["instructions"] if examples is not None else row["prompt"]
        if ABOUT.search(text) or self._nearest(text) >= NEAR:
            return "wording"
        pairs = [(_input_of(given), folded(answer)) for given, answer in examples or ()]
        answers = {answer for _, answer in pairs} or {folded(row.get("response", ""))}
        if any(len(answers & task.labels) >= min(2, len(answers)) for task in self.tasks):
            return "labels"
        if self._pairs.intersection(pairs):
            return "pairs"
        shown = [
            text,
            row.get("response", ""),
            *(f"{given} {one}" for given, one in examples or ()),
        ]
        if any(self._runs & _grams(one, RUN) for one in shown):
            return "inputs"
        return None

    def without_inputs(self, row: dict[str, Any]) -> dict[str, Any] | None:
        """The row without examples that have a measured input; None where too few are left."""
        if "examples" not in row:
            return row
        kept = [one for one in row["examples"] if _input_of(one[0]) not in self._inputs]
        return {**row, "examples": kept} if len(kept) >= FEWEST_EXAMPLES else None

    def nearest_to(
        self, task: MeasuredTask, texts: Iterable[str], count: int
    ) -> list[tuple[float, str]]:
        """The texts that are nearest to a measured task's instructions, with their cosines."""
        known = [self._weighted(text) for text in task.instructions]
        weighted = [(self._beginning(text), text) for text in texts]
        found = [(max(_dot(own, one) for one in known), text) for own, text in weighted]
        return sorted(found, reverse=True)[:count]

    def _nearest(self, text: str) -> float:
        """The cosine to the nearest instructions of a measured task, 0 to 1."""
        own = self._beginning(text)
        return max((_dot(own, other) for other in self._known), default=0.0)

    def _beginning(self, text: str) -> dict[str, float]:
        """Of a prompt its first words, where it says what to do."""
        return self._weighted(" ".join(words_of(text)[:60]))

    def _weighted(self, text: str) -> dict[str, float]:
        weights = {gram: self._rarity.get(gram, self._unseen) for gram in _grams(text, *LENGTHS)}
        length = math.sqrt(sum(weight * weight for weight in weights.values()))
        return {gram: weight / length for gram, weight in weights.items()} if length else {}

    @cached_property
    def _instructions(self) -> list[str]:
        return [text for task in self.tasks for text in task.instructions]

    @cached_property
    def _rarity(self) -> dict[str, float]:
        """How much a gram tells: log of tasks over the tasks whose instructions have it."""
        counts = Counter(
            gram
            for task in self.tasks
            for gram in {g for t in task.instructions for g in _grams(t, *LENGTHS)}
        )
        return {gram: math.log(1 + len(self.tasks) / count) for gram, count in counts.items()}

    @cached_property
    def _unseen(self) -> float:
        return math.log(1 + len(self.tasks))

    @cached_property
    def _known(self) -> list[dict[str, float]]:
        return [self._weighted(text) for text in self._instructions]

    @cached_property
    def _pairs(self) -> frozenset[tuple[str, str]]:
        return frozenset(
            (folded(given), folded(answer)) for task in self.tasks for given, answer in task.pairs
        )

    @cached_property
    def _inputs(self) -> frozenset[str]:
        return frozenset(given for given, _ in self._pairs)

    @cached_property
    def _runs(self) -> frozenset[str]:
        texts = [*self._instructions, *(given for task in self.tasks for given, _ in task.pairs)]
        return frozenset(run for text in texts for run in _grams(text, RUN))


def filtered(
    rows: Iterable[dict[str, Any]], exclusion: Exclusion, counts: Counter[str]
) -> Iterator[dict[str, Any]]:
    """The rows that may be trained on; counts those that may not, by reason."""
    for row in rows:
        rest = exclusion.without_inputs(row)
        reason = "few examples left" if rest is None else exclusion.reason_against(rest)
        counts[reason or "kept"] += 1
        if rest is not None and reason is None:
            yield rest


def _input_of(block: str) -> str:
    """The input of an example's block, which its marker stands before and the answer's behind."""
    lines = block.splitlines()
    return folded("\n".join(lines[:-1]).partition(": ")[2])


def _grams(text: str, *lengths: int) -> set[str]:
    """All words in a row of these lengths."""
    words = words_of(text)
    return {
        " ".join(words[start : start + length])
        for length in lengths
        for start in range(len(words) - length + 1)
    }


def _dot(one: dict[str, float], other: dict[str, float]) -> float:
    return sum(weight * other.get(gram, 0.0) for gram, weight in one.items())


def main(arguments: Sequence[str] | None = None) -> None:
    """Copies the rows that may be trained on."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("rows", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--measured", type=Path, nargs="+", required=True, metavar="FOLDER")
    parser.add_argument("--nearest", type=int, default=0, metavar="N", help="wordings to print")
    options = parser.parse_args(arguments)
    exclusion = Exclusion(tuple(read_measured(options.measured)))
    counts, texts = Counter[str](), set[str]()
    with options.out.open("w", encoding="utf-8") as file:
        for row in filtered((row for _, row in objects_of(options.rows)), exclusion, counts):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            texts.add(row["instructions"] if "examples" in row else row["prompt"])
    shown = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    print(f"{options.rows}: {shown} -> {options.out}")
    for task in exclusion.tasks if options.nearest else ():
        for cosine, text in exclusion.nearest_to(task, texts, options.nearest):
            print(f"{task.name:24} {cosine:.2f} {text:.80}")


if __name__ == "__main__":
    main()
