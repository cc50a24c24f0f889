"""JSONL is read alike by every reader: byte order marks, pipes, line breaks, bad lines."""

import codecs
import json
import os
import threading
from pathlib import Path

import pytest

from dspy_diffusion_infill import jsonl
from dspy_diffusion_infill.cli.demo_run import own_rows
from dspy_diffusion_infill.errors import DataError
from dspy_diffusion_infill.evaluation.rows import read_rows
from dspy_diffusion_infill.jsonl import lines_of, objects_of
from dspy_diffusion_infill.training.options import SourceOptions
from dspy_diffusion_infill.training.probe import read_probe_rows
from dspy_diffusion_infill.training.sources import read_source

ROW = {"text": "zwei\u2028Zeilen \N{GRINNING FACE}", "start": 0, "end": 4}
ROW |= {"prompt": "p", "response": "r"}
CONTENT = "\n".join([json.dumps(ROW, ensure_ascii=False)] * 12 + ["", "  "]).encode()

READERS = {
    "objects_of": lambda path: [row["text"] for _, row in objects_of(path)],
    "evaluation": lambda path: [record.text("text") for record in read_rows(path)],
    "probe": lambda path: [row.text for row in read_probe_rows(path)],
    "training": lambda path: [ROW["text"]] * len(read_source(SourceOptions(path=str(path))).rows),
    "demo": lambda path: [
        row.text for part in vars_of(own_rows(path, "text", "response", seed=0)) for row in part
    ],
}


def vars_of(rows):
    return rows.train, rows.valid, rows.heldout


def through_a_pipe(content: bytes, folder: Path, read):
    pipe = folder / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(content))
    writer.start()
    try:
        return read(pipe)
    finally:
        writer.join(10)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
def test_every_reader_takes_files_and_pipes_with_and_without_a_mark(name, mark, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(mark + CONTENT)
    assert READERS[name](file) == [ROW["text"]] * 12
    if hasattr(os, "mkfifo"):
        assert through_a_pipe(mark + CONTENT, tmp_path, READERS[name]) == [ROW["text"]] * 12


def test_a_json_file_with_a_mark_is_read(tmp_path):
    file = tmp_path / "rows.json"
    file.write_bytes(codecs.BOM_UTF8 + json.dumps([ROW]).encode())
    assert read_rows(file)[0].text("prompt") == "p"


BAD = {
    "no UTF-8": (b'{"text": "caf\xe9"}', r"invalid UTF-8 at byte 13 of the line \(0xe9\)"),
    "UTF-16": ('{"text": "a"}'.encode("utf-16-le"), "no JSON"),
    "no JSON": (b'{"text": "cut', "no JSON"),
    "half a pair": (rb'{"text": "\ud83d"}', r"the text holds \\ud83d, half of a surrogate pair"),
    "half a pair in a key": (rb'{"\uDC00": 1}', r"the text holds \\udc00"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("reader", READERS)
def test_a_bad_line_is_named_by_every_reader(name, reader, tmp_path):
    bad, message = BAD[name]
    file = tmp_path / "rows.jsonl"
    file.write_bytes(CONTENT.rstrip() + b"\n\n" + bad + b"\n")
    with pytest.raises(DataError, match=rf"rows\.jsonl:14: {message}"):
        READERS[reader](file)


def test_a_line_that_is_no_object_is_named(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"a": 1}\n[1]\n')
    with pytest.raises(DataError, match=r"rows\.jsonl:2: must be a JSON object, got list"):
        list(objects_of(file))


@pytest.mark.parametrize("reader", READERS)
def test_what_cannot_be_read_is_said(reader, tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.jsonl (does not exist|is no file)"):
        READERS[reader](tmp_path / "nowhere.jsonl")
    with pytest.raises(DataError, match=r"Is a directory|is no file"):
        READERS[reader](tmp_path)


def test_lines_are_numbered_blank_ones_too(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("\n1\n \n2")
    assert [(line.number, line.parse()) for line in lines_of(file)] == [(2, 1), (4, 2)]


@pytest.mark.parametrize(
    ("line", "match"),
    [
        (b'{"a": ' + b"9" * 5000 + b"}", "no JSON"),
        (b'{"a":' * 101 + b"1" + b"}" * 101, "at most 100 inside one another"),
        (b"[" * 100_000, "at most 100 inside one another"),
        (b'{"a": "' + b"x" * 2**10 + b'"}', "a line must be at most 1024 bytes"),
    ],
    ids=["digits", "deep", "endless", "long"],
)
def test_a_line_that_would_only_do_harm_is_refused_with_its_place(
    line, match, tmp_path, monkeypatch
):
    if b"x" * 2**10 in line:
        monkeypatch.setattr(jsonl, "MAX_LINE", 2**10)
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"{}\n" + line + b"\n")
    with pytest.raises(DataError, match=rf"rows\.jsonl:2: .*{match}"):
        list(objects_of(file))


def test_what_is_nested_a_hundred_deep_is_read(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"a":' * 100 + b"1" + b"}" * 100)
    assert len(list(objects_of(file))) == 1
