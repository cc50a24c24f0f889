"""The tasks that train infilling: right answers, many wordings, none that we are measured on."""

import ast
import json
import random
import re
import sys
from collections.abc import Callable
from datetime import datetime

import pytest

from dspy_diffusion_infill.training.probe import read_probe_rows
from dspy_diffusion_infill.training.rows import Group, with_worked_examples
from tools.worked_tasks.tasks import (
    COMPUTED,
    DATA,
    Task,
    _columns,
    load_tasks,
    main,
    windows,
    worked_groups,
)

# What instruction induction measures the project on: never trained on, nor a trivial variant of it.
EXCLUDED_IDS = re.compile(
    "passive|subtract|diff|first_letter|formal|animal_size|larger_animal|verbal|starts_with"
    "|sentiment|review|plural|synonym|german|in_context"
)
EXCLUDED_WORDING = re.compile(
    r"passive|active voice|subtract|minus\b|\bdifference|first letter|initial letter|\w*formal\b"
    r"|animal that is (larger|bigger|smaller)|(larger|bigger|smaller|heavier) (of the two )?animal"
    r"|numbers? (in|as|to|into) (English )?words|(start|begin)\w* with the letter"
    r"|sentiment|positive|review|plural|synonym|(same|similar) meaning|German|same sense",
    re.IGNORECASE,
)


@pytest.fixture(scope="module")
def tasks() -> list[Task]:
    return load_tasks(seed=0)


@pytest.fixture(scope="module")
def by_id(tasks: list[Task]) -> dict[str, Task]:
    return {task.task_id: task for task in tasks}


@pytest.fixture(scope="module")
def groups(tasks: list[Task]):
    return list(worked_groups(tasks, seed=0))


def test_no_task_is_one_that_the_project_is_measured_on(tasks, groups):
    assert [t.task_id for t in tasks if EXCLUDED_IDS.search(t.task_id)] == []
    assert [g.instructions for _, g in groups if EXCLUDED_WORDING.search(g.instructions)] == []


@pytest.mark.parametrize(
    "wording",
    [
        "Rewrite in passive voice.",
        "Subtract the numbers.",
        "Extract the first letter.",
        "Make it more formal.",
        "Write the larger animal.",
        "Write the number in words.",
        "Find words starting with the letter.",
        "Positive or negative?",
        "Write the plural.",
        "Give a synonym.",
        "Translate to German.",
    ],
)
def test_the_exclusion_list_knows_the_excluded_tasks(wording):
    assert EXCLUDED_WORDING.search(wording)


def test_there_are_many_tasks_and_many_wordings_of_each(tasks, groups):
    assert len(tasks) >= 1000
    for task in tasks:
        texts = [group.instructions for task_id, group in groups if task_id == task.task_id]
        assert 8 <= len(task.wording.plain) <= 10, task.task_id
        assert len(set(texts)) == len(texts) == 8 + len(task.wording.plain), task.task_id


def test_equal_seeds_give_equal_rows_and_other_seeds_other_rows(groups):
    assert list(worked_groups(load_tasks(seed=0), seed=0)) == groups
    assert list(worked_groups(load_tasks(seed=1), seed=1)) != groups


def test_every_example_is_one_block_that_ends_with_its_marker(groups):
    for task_id, group in groups:
        assert 7 <= len(group.examples) <= 20, task_id
        for block, answer in group.examples:
            assert re.fullmatch(r"[^\s:]+: \S[^\n]*\n[^\n:]+:", block), (task_id, block)
            assert answer == answer.strip() != "", (task_id, block)


def test_instructions_are_one_short_paragraph_with_every_slot_filled(groups):
    for task_id, group in groups:
        text = group.instructions
        assert "\n" not in text and len(text) < 400, (task_id, text)
        assert not re.search("; an? |[{}](in|out|act|role|rule|or|and|list)", text), (task_id, text)


def test_some_instructions_are_long_and_most_markers_are_plain(tasks, groups):
    others = worked_groups(tasks, seed=0, num_plain=0)
    sentences = [len(re.findall(r"[.?!](?:\s|$)", group.instructions)) for _, group in others]
    plain = ["\nOutput:" in group.examples[0][0] for _, group in groups]
    assert 0.10 < sum(n >= 3 for n in sentences) / len(sentences) < 0.35
    assert 0.60 < sum(plain) / len(plain) < 0.70


def test_no_input_has_two_answers_and_labels_are_the_stated_ones(tasks):
    for task in tasks:
        answers: dict[str, set[str]] = {}
        for given, answer in task.examples:
            answers.setdefault(given, set()).add(answer)
        assert {x: y for x, y in answers.items() if len(y) > 1} == {}, task.task_id
        labels = set(task.wording.labels)
        assert not labels or {answer for _, answer in task.examples} <= labels, task.task_id


def test_every_function_that_makes_examples_is_used():
    lines = "\n".join(path.read_text(encoding="utf-8") for path in DATA.glob("tasks_*.txt"))
    assert set(re.findall(r"^from: code (\w+)$", lines, re.MULTILINE)) == set(COMPUTED)


def test_a_table_cell_with_two_answers_is_left_out(tmp_path):
    table = tmp_path / "table.txt"
    table.write_text("a | b\nx | 1\ny | 2\ny | 3\nz | 4\nz | 4\nw |\n", encoding="utf-8")
    assert _columns(table, "a", "b") == [("x", "1"), ("z", "4")]


def _vowels(word: str) -> int:
    return len(re.findall("[aeiou]", word))


def _roman_value(text: str) -> int:
    values = [dict(I=1, V=5, X=10, L=50, C=100)[letter] for letter in text]
    following = [*values[1:], 0]
    return sum(-v if v < after else v for v, after in zip(values, following, strict=True))


def _ints(text: str) -> list[int]:
    return [int(x) for x in re.findall(r"\d+", text)]


PRIMES = {n for n in range(2, 100) if not any(n % k == 0 for k in (2, 3, 5, 7) if k < n)}
TRUTHS: dict[str, Callable[[str], object]] = {
    "add": lambda x: sum(_ints(x)),
    "add_three": lambda x: sum(_ints(x)),
    "multiply": lambda x: _ints(x)[0] * _ints(x)[1],
    "divide": lambda x: _ints(x)[0] // _ints(x)[1],
    "double": lambda x: int(x) + int(x),
    "triple": lambda x: int(x) + int(x) + int(x),
    "halve": lambda x: int(x) >> 1,
    "square": lambda x: int(x) ** 2,
    "even_odd": lambda x: "even" if x[-1] in "02468" else "odd",
    "larger_number": lambda x: sorted(_ints(x))[-1],
    "list_minimum": lambda x: sorted(_ints(x))[0],
    "from_roman": _roman_value,
    "to_binary": lambda x: bin(int(x))[2:],
    "digit_sum": lambda x: sum(int(digit) for digit in x),
    "round_ten": lambda x: min(range(0, 520, 10), key=lambda ten: abs(ten - int(x))),
    "count_letters": lambda x: sum(1 for _ in x),
    "count_vowels": _vowels,
    "last_letter": lambda x: list(x).pop(),
    "second_letter": lambda x: x[1:2],
    "reverse_word": lambda x: "".join(reversed(x)),
    "remove_vowels": lambda x: re.sub("[aeiou]", "", x),
    "sort_words": lambda x: ", ".join(sorted(re.split(", ", x))),
    "last_word": lambda x: re.findall(r"\w+", x)[-1],
    "in_brackets": lambda x: re.findall(r"\((\w+)\)", x)[0],
    "extract_number": lambda x: _ints(x)[0],
    "extract_email": lambda x: re.findall(r"\S+@\w+\.com", x)[0],
    "json_name": lambda x: ast.literal_eval(x)["name"],
    "email_domain": lambda x: x.split("@")[1],
    "date_to_iso": lambda x: datetime.strptime(x, "%B %d, %Y").strftime("%Y-%m-%d"),
    "to_24_hours": lambda x: datetime.strptime(x, "%I:%M %p").strftime("%H:%M"),
    "day_after": lambda x: dict(Sunday="Monday", Friday="Saturday", Monday="Tuesday").get(x),
    "prime": lambda x: "prime" if int(x) in PRIMES else "not prime",
}


@pytest.mark.parametrize("task_id", TRUTHS)
def test_computed_answers_are_right(by_id, task_id):
    checked = 0
    for given, answer in by_id[task_id].examples:
        truth = TRUTHS[task_id](given)
        assert truth is None or str(truth) == answer, (given, answer)
        checked += truth is not None
    assert checked >= 3


@pytest.mark.parametrize(
    ("task_id", "given", "answer"),
    [
        ("capital_of_country", "Australia", "Canberra"),
        ("country_of_capital", "Ottawa", "Canada"),
        ("past_tense", "fly", "flew"),
        ("past_participle", "choose", "chosen"),
        ("to_italian", "bread", "pane"),
        ("antonym", "wide", "narrow"),
        ("animal_young", "swan", "cygnet"),
        ("element_symbol", "gold", "Au"),
        ("animal_class", "bat", "mammal"),
    ],
)
def test_known_answers(by_id, task_id, given, answer):
    assert dict(by_id[task_id].examples)[given] == answer


def test_a_row_becomes_a_prompt_with_worked_examples(groups):
    _, group = groups[0]
    row = with_worked_examples(group, random.Random(0))
    assert row.prompt.startswith(group.instructions + "\n\n")
    assert row.response in {answer for _, answer in group.examples}


def test_the_command_writes_json_lines(tmp_path, monkeypatch, groups):
    out = tmp_path / "rows.jsonl"
    monkeypatch.setattr(sys, "argv", ["worked_tasks", str(out), "--seed", "0"])
    main()
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [row["instructions"] for row in rows] == [group.instructions for _, group in groups]
    assert all(set(row) == {"instructions", "examples"} for row in rows)


def _words(text: str) -> list[tuple[int, int]]:
    return [match.span() for match in re.finditer(r"\S+", text)]


def test_windows_lie_in_the_instructions_and_four_examples_stand_below():
    groups = [
        Group("Write the colour of the thing that is named.", (("Input: a\nOutput:", "red"),) * 6),
        Group("Name it.", (("Input: b\nOutput:", "blue"),) * 2),
    ]
    long, short = windows(groups, _words, seed=0)
    assert long["text"].startswith(groups[0].instructions + "\n\nInput: a\nOutput: red\n\n")
    assert long["text"].count("Output: red") == 4
    masked = long["text"][long["start"] : long["end"]]
    assert masked in groups[0].instructions and len(masked.split()) == 8
    assert short["text"][short["start"] : short["end"]] == "Name it."
    assert [long, short] == list(windows(groups, _words, seed=0))
    places = {next(windows(groups, _words, seed=seed))["start"] for seed in range(20)}
    assert places == {0, len("Write ")}


def test_held_out_topics_stay_out_of_the_rows_and_become_windows(tmp_path, monkeypatch, tasks):
    out, held_out = tmp_path / "rows.jsonl", tmp_path / "held_out.jsonl"
    arguments = [str(out), "--hold-out", "science", "--windows", str(held_out)]
    monkeypatch.setattr(sys, "argv", ["worked_tasks", *arguments])
    main()
    science = [task for task in tasks if task.topic == "science"]
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    others = [task for task in tasks if task.topic != "science"]
    assert len(science) > 50
    assert len(rows) == sum(8 + len(task.wording.plain) for task in others)
    rows = read_probe_rows(held_out)
    assert len(rows) == 4 * len(science)
    assert all(row.end <= row.text.index("\n\n") for row in rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hold-out", "cooking", "--windows", "w.jsonl"], "no topic 'cooking'; there are: "),
        (["--hold-out", "science"], "--hold-out and --windows need each other"),
    ],
)
def test_bad_arguments_are_named(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(sys, "argv", ["worked_tasks", str(tmp_path / "rows.jsonl"), *arguments])
    with pytest.raises(SystemExit):
        main()
    assert message in capsys.readouterr().err
    assert not (tmp_path / "rows.jsonl").exists()
