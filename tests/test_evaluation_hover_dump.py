"""HotpotQA's dump: a tar file in bzip2 of bzip2 files of JSON lines."""

import bz2
import io
import json
import tarfile
from pathlib import Path

import pytest

from dspy_diffusion_infill.errors import DataError
from dspy_diffusion_infill.evaluation.hover_dump import dump_pages
from dspy_diffusion_infill.evaluation.retrieval import Page


def line(title: str, text: object) -> str:
    """As published, links and offsets included."""
    links = [f'<a href="x">{title}</a>']
    offsets = [[0, len(title)]]
    row = {"id": "12", "url": "https://en.wikipedia.org/wiki?curid=12", "title": title}
    return json.dumps(row | {"text": text, "charoffset": offsets, "text_with_links": links})


def dump_of(files: dict[str, str | bytes], path: Path) -> Path:
    with tarfile.open(path, "w:bz2") as archive:
        folder = tarfile.TarInfo("enwiki/AA")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, text in files.items():
            content = bz2.compress(text.encode()) if isinstance(text, str) else text
            info = tarfile.TarInfo(f"enwiki/AA/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def test_pages_come_in_the_order_of_files_and_lines(tmp_path: Path) -> None:
    files = {
        "wiki_00.bz2": f"{line('Rain', ['It falls.', ' It is wet.'])}\n\n{line('Empty', [])}\n",
        "README.txt": b"no pages",
        "wiki_01.bz2": line("Zoë\u2028", ["Line."]),
    }
    assert list(dump_pages(dump_of(files, tmp_path / "d.tar.bz2"))) == [
        Page("Rain", "It falls. It is wet."),
        Page("Empty", ""),
        Page("Zoë\u2028", "Line."),
    ]


BAD_LINES = [
    ("{", r"wiki_01.bz2:2: no JSON"),
    ("[1]", r"wiki_01.bz2:2: must be a JSON object, got list"),
    ('{"id": 1}', r"wiki_01.bz2, row 2: field 'title' is missing; the row has id"),
    (line("A", [["A sentence."]]), r"wiki_01.bz2, row 2: field 'text' must hold sentences"),
    (line(" ", ["x"]), r"wiki_01.bz2, row 2: field 'title' is empty"),
]


@pytest.mark.parametrize(("bad", "message"), BAD_LINES)
def test_a_foreign_line_is_named_with_its_file(tmp_path: Path, bad: str, message: str) -> None:
    good = line("A", ["A."])
    path = dump_of({"wiki_00.bz2": good, "wiki_01.bz2": f"{good}\n{bad}\n"}, tmp_path / "d.tar.bz2")
    with pytest.raises(DataError, match=f"d.tar.bz2: enwiki/AA/{message}"):
        list(dump_pages(path))


def test_a_dump_that_is_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    files = {f"wiki_{k}.bz2": line(f"Page {k}", [str(hash(k) ** 9)] * 30) for k in range(5)}
    whole = dump_of(files, tmp_path / "d.tar.bz2").read_bytes()
    cut = tmp_path / "cut.tar.bz2"
    for size in (0, 3, len(whole) // 4, len(whole) // 2, len(whole) - 20, len(whole) - 1):
        cut.write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"cut.tar.bz2.*cut off"):
            list(dump_pages(cut))


def test_what_is_no_dump_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.tar.bz2"
    with pytest.raises(DataError, match="does not exist"):
        list(dump_pages(path))
    for content in (b"PK\3\4", bz2.compress(b"plain text, no tar"), bz2.compress(b"x" * 2000)):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"no \.tar\.bz2 as HotpotQA publishes it"):
            list(dump_pages(path))
    with pytest.raises(DataError, match=r"wiki_00.bz2: the dump is damaged"):
        list(dump_pages(dump_of({"wiki_00.bz2": b"no bzip2"}, path)))
    with pytest.raises(DataError, match=r"holds no \.bz2 files of pages"):
        list(dump_pages(dump_of({"a.txt": b"x"}, path)))
