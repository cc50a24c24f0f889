"""Rows of data files: read as written, and every error names file, row and field."""

import json
import math
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_diffusion_infill.errors import DataError
from dspy_diffusion_infill.evaluation.rows import Record, read_rows

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
# Half a pair of surrogates is no text that a file could hold.
TEXT = st.text(st.characters(exclude_categories=["Cs"]))


def row(**values) -> Record:
    return Record(values, "data/rows.jsonl", 7)


@given(st.lists(st.dictionaries(TEXT, TEXT, max_size=3), min_size=1, max_size=5), st.booleans())
def test_rows_are_read_as_written_and_numbered_by_their_lines(rows: list, is_spaced: bool) -> None:
    gap = "\n\n" if is_spaced else "\n"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        text = gap.join(json.dumps(one, ensure_ascii=False) for one in rows)
        path.write_bytes(text.encode())
        found = read_rows(path)
    assert [one.values for one in found] == rows
    assert [one.number for one in found] == [1 + k * len(gap) for k in range(len(rows))]
    assert {one.source for one in found} == {str(path)}


@given(JSON, st.floats(-5, 0), st.floats(0.5, 5))
def test_a_number_is_in_its_range_or_an_error(value, low: float, high: float) -> None:
    try:
        number = row(score=value).number_of("score", low=low, high=high)
    except DataError as error:
        assert str(error).startswith("data/rows.jsonl, row 7: field 'score' ")
        assert len(str(error)) < 400
    else:
        assert low <= number <= high
        assert number == pytest.approx(float(value))


@given(JSON)
def test_any_value_is_of_the_kind_asked_for_or_an_error(value) -> None:
    one = row(field=value)
    for read, kind in ((one.text, str), (one.items, list), (one.inner, Record)):
        try:
            found = read("field")
        except DataError as error:
            assert "field 'field' " in str(error)
        else:
            assert isinstance(found, kind)


@pytest.mark.parametrize("value", ["4", "4.0", 4, 4.0])
def test_digits_in_quotes_are_a_number(value) -> None:
    assert row(score=value).number_of("score", low=1, high=5) == 4


@pytest.mark.parametrize("value", [True, math.nan, math.inf, "five", 10**400, 5.1, None, [4]])
def test_what_is_no_number_of_the_range_is_refused(value) -> None:
    with pytest.raises(DataError, match=r"row 7: field 'score' (must be|is missing)"):
        row(score=value).number_of("score", low=1, high=5)


def test_an_error_names_the_field_inside_a_field() -> None:
    inner = row(scores={"fluency": "good"}).inner("scores")
    with pytest.raises(DataError, match=r"field 'scores\.fluency' must be a number, got 'good'"):
        inner.number_of("scores.fluency", low=1, high=5)
    with pytest.raises(DataError, match=r"'scores\.relevance' is missing; the row has scores\.flu"):
        inner.number_of("scores.relevance", low=1, high=5)


def test_an_empty_text_must_be_allowed() -> None:
    assert row(text=" ").text("text", may_be_empty=True) == " "
    with pytest.raises(DataError, match="field 'text' is empty"):
        row(text=" ").text("text")


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    rows = [{"text": "zwei\u2028Zeilen", "score": 3.5}, {"text": "", "score": 1.0}]
    path = tmp_path / f"rows{suffix}"
    if suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow.parquet import write_table

        write_table(pyarrow.Table.from_pylist(rows), path)
    elif suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    else:
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert [dict(one.values) for one in read_rows(path)] == rows
