"""Training text shares nothing with the measured tasks, and a planted leak is found."""

import json
import random
import re
from collections import Counter
from pathlib import Path

import pytest

from dspy_diffusion_infill.words import folded
from tools.worked_tasks.exclusion import Exclusion, MeasuredTask, filtered, main, read_measured
from tools.worked_tasks.tasks import load_tasks, worked_groups

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
FOLDERS = [SHARED / "instruction_induction", SHARED / "labels"]
FRUIT = MeasuredTask(
    "fruit",
    ("Say whether the fruit is sweet or sour.", "Sort the fruit by its taste."),
    (("lemon", "sour"), ("mango", "sweet"), ("the ripe banana that lay on the table", "sweet")),
)
EXCLUSION = Exclusion((FRUIT,))


def group(instructions: str, *pairs: tuple[str, str]) -> dict:
    examples = [[f"Input: {given}\nOutput:", answer] for given, answer in pairs]
    return {"instructions": instructions, "examples": examples}


CLEAN = [("cat", "c"), ("dog", "d")]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (group("Write the first character.", *CLEAN), None),
        (group("Is the fruit sweet or sour?", *CLEAN), "wording"),
        (group("Label the sentiment.", *CLEAN), "wording"),
        (group("How does it taste?", ("kiwi", "sour"), ("fig", "sweet")), "labels"),
        (group("Give the taste.", ("lemon", "sour"), ("cat", "c")), "pairs"),
        (group("Answer.", ("We ate the ripe banana that lay on it", "x"), *CLEAN), "inputs"),
        ({"prompt": "Name a bird.", "response": " wren"}, None),
        ({"prompt": "Kiwi?", "response": " Sour."}, "labels"),
        ({"prompt": "Sort the fruit by its taste: kiwi", "response": ""}, "wording"),
    ],
)
def test_a_planted_leak_is_found_and_its_kind_is_named(row: dict, reason: str | None) -> None:
    assert EXCLUSION.reason_against(row) == reason


def test_examples_with_a_measured_input_leave_a_group_and_too_small_a_group_leaves_the_text() -> (
    None
):
    words = ["cat", "dog", "hen", "owl", "bee", "ant", "fox"]
    large = group("Count the letters.", *((word, "3") for word in [*words, "lemon"]))
    kept = EXCLUSION.without_inputs(large)
    assert kept == group("Count the letters.", *((word, "3") for word in words))
    small = group("Count the letters.", *((word, "3") for word in [*words[1:], "Lemon"]))
    counts = Counter[str]()
    assert list(filtered([large, small], EXCLUSION, counts)) == [kept]
    assert counts == {"kept": 1, "few examples left": 1}


def test_the_command_copies_what_may_be_trained_on(tmp_path: Path, capsys) -> None:
    task = {"human_instructions": ["Sort the fruit."], "train": [], "test": []}
    task["test"] = [{"input": "lemon", "outputs": ["sour"]}, {"input": "fig", "outputs": ["sweet"]}]
    (tmp_path / "fruit.json").write_text(json.dumps(task))
    rows = [
        {"prompt": text, "response": ""}
        for text in ("Sort the fruit.", "Hum.", "Sort these old coins by weight.")
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--measured", str(tmp_path), "--nearest", "1"]
    main([str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"), *options])
    kept = (tmp_path / "out.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in kept] == rows[1:]
    shown = capsys.readouterr().out
    assert "2 kept, 1 wording" in shown
    assert re.search(r"^fruit +0\.\d\d Sort these old coins by weight\.$", shown, re.MULTILINE)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared tasks")
def test_what_is_kept_of_the_worked_tasks_is_none_of_a_measured_task() -> None:
    """Whole instructions and pairs of input and answer are compared, apart from the filter."""
    measured = read_measured(FOLDERS)
    assert len(measured) == 18
    groups = [one for _, one in worked_groups(load_tasks(seed=3), seed=3)]
    rows = [
        {"instructions": one.instructions, "examples": [list(pair) for pair in one.examples]}
        for one in random.Random(0).sample(groups, 500)
    ]
    counts = Counter[str]()
    kept = list(filtered(rows, Exclusion(tuple(measured)), counts))
    assert 0.9 < counts["kept"] / len(rows) < 1
    known = {folded(text) for task in measured for text in task.instructions}
    assert not known & {folded(row["instructions"]) for row in kept}
    pairs = {pair for task in measured for pair in task.pairs}
    shown = {
        (given.split(": ", 1)[1].rsplit("\n", 1)[0], a)
        for row in kept
        for given, a in row["examples"]
    }
    assert not shown & pairs
