"""The rows that ``dspy-infill demo`` is given, and the program that it makes of them."""

import json
import re
import sys
from pathlib import Path
from typing import Literal

import pytest
from test_cli_demo import FIRST, rows_of, write_task

from dspy_diffusion_infill.cli import app as cli
from dspy_diffusion_infill.cli import demo_run
from dspy_diffusion_infill.errors import DataError


@pytest.fixture
def task(tmp_path: Path) -> Path:
    return write_task(tmp_path)


# The user's own rows


def own_rows(path: Path, seed: int = 0) -> demo_run.DemoRows:
    return demo_run.own_rows(path, "note", "colour", seed)


def test_rows_are_split_at_random_and_none_is_lost(task):
    rows = own_rows(task)
    assert [len(part) for part in (rows.train, rows.valid, rows.heldout)] == [15, 15, 30]
    notes = [row.note for row in rows.train + rows.valid + rows.heldout]
    assert sorted(notes) == sorted(row["note"] for row in rows_of(60))
    assert notes != [row["note"] for row in rows_of(60)]
    assert own_rows(task) == rows
    assert own_rows(task, seed=1) != rows
    assert rows.train[0].inputs().keys() == ["note"]


def test_other_line_breaks_and_blank_lines_do_not_end_or_begin_a_row(tmp_path):
    path = tmp_path / "rows.jsonl"
    breaks = "".join(map(chr, (0x2028, 0x2029, 0x85)))
    rows = [{**row, "note": f"{row['note']}{breaks}"} for row in rows_of(12)]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_bytes("\ufeff".encode() + "\r\n\n".join(lines).encode())
    found = own_rows(path)
    notes = {row.note for row in found.train + found.valid + found.heldout}
    assert notes == {row["note"] for row in rows}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"note": "caf\xe9", "colour": "red"}', "rows.jsonl:13: invalid UTF-8 at byte 13"),
        (b'{"note": "cut off', "rows.jsonl:13: no JSON: "),
        (b'{"note": "a"}', "rows.jsonl:13: no field 'colour' (found ['note'])"),
        (b"[1]", "rows.jsonl:13: must be a JSON object, got list"),
        (b'{"note": "a", "colour": null}', "rows.jsonl:13: the field 'colour' is None"),
        (b'{"note": NaN, "colour": "red"}', "rows.jsonl:13: the field 'note' is nan"),
        (b'{"note": "a", "colour": " "}', "rows.jsonl:13: the field 'colour' is ' '"),
        (b'{"note": "\\ud83d", "colour": "a"}', "rows.jsonl:13: the text holds \\ud83d"),
    ],
)
def test_a_bad_line_is_named_with_file_and_number(tmp_path, line, message):
    path = tmp_path / "rows.jsonl"
    good = [json.dumps(row).encode() for row in rows_of(12)]
    path.write_bytes(b"\n".join([*good, line]))
    with pytest.raises(DataError, match=re.escape(message)):
        own_rows(path)


def test_too_few_rows_are_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows_of(11)))
    with pytest.raises(DataError, match="at least 12 rows are needed to split them, got 11"):
        own_rows(path)


def test_a_file_that_is_not_there_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dspy-infill", "demo", "--task", str(tmp_path / "no.jsonl")])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    assert re.fullmatch(r"dspy-infill: \S+no\.jsonl does not exist\n", capsys.readouterr().err)


# The program


def options(**changes) -> demo_run.DemoOptions:
    given = {"input_field": "note", "output_field": "colour", "instructions": FIRST}
    limits = {"max_metric_calls": 15, "max_heldout": 10, "seed": 0}
    rest = {"lm": None, "denoiser": None, "log_dir": None}
    return demo_run.DemoOptions(**{**given, **limits, **rest, **changes})


def test_few_values_that_recur_are_labels(task):
    program = demo_run.make_program(own_rows(task), options())
    assert program.signature.output_fields["colour"].annotation == Literal["blue", "green", "red"]
    assert list(program.signature.input_fields) == ["note"]
    assert program.signature.instructions == FIRST


def test_values_that_do_not_recur_are_free_text(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"note": f"thing {k}", "colour": f"name {k}"} for k in range(12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    program = demo_run.make_program(own_rows(path), options())
    assert program.signature.output_fields["colour"].annotation is str


def test_the_first_instructions_name_the_fields():
    text = demo_run.first_instructions(Path("rows.jsonl"), "note", "colour")
    assert text == "Given the note, write the colour."
    assert demo_run.first_instructions(None, "text", "label") == demo_run.BUNDLED_INSTRUCTIONS
