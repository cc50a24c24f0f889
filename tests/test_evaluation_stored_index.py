import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_diffusion_infill.errors import DataError
from dspy_diffusion_infill.evaluation.retrieval import Bm25Index, Page
from dspy_diffusion_infill.evaluation.stored_index import StoredIndex, open_index, write_index

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "hover"
PAGES = [
    Page("Ada Lovelace", "An English mathematician."),
    Page("Charles Babbage", "He designed the Analytical Engine."),
    Page("The", ""),  # stop words alone
    Page("Zoë\u2028\n", "Rain, “rain”."),
]
TEXT = st.text("ab é“\n", max_size=12)


def check_same(pages: list[Page], folder: Path, queries: list[str]) -> None:
    assert write_index(iter(pages), folder) == len(pages)
    stored, memory = open_index(folder), Bm25Index(pages)
    assert isinstance(stored, StoredIndex)
    assert (stored.fingerprint, stored.page_chars) == (memory.fingerprint, memory.page_chars)
    assert list(stored.pages) == list(memory.pages)
    for query in queries:
        assert stored.search(query, num_pages=3) == memory.search(query, num_pages=3)


def test_an_index_on_disk_finds_what_one_in_memory_finds(tmp_path: Path) -> None:
    check_same(
        PAGES, tmp_path / "a/index", ["the engine of Babbage", "rain", "zoë", "the", "x", ""]
    )
    index = open_index(tmp_path / "a/index")
    assert index.search("analytical babbage", num_pages=1) == [PAGES[1]]
    assert (index.pages[-1], index.pages[1:3]) == (PAGES[3], PAGES[1:3])
    with pytest.raises(IndexError):
        index.pages[4]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["index"]


@pytest.mark.skipif(not SHARED.exists(), reason="the shared HoVer files are not here")
def test_the_smoke_corpus_is_searched_alike(tmp_path: Path) -> None:
    pages = list(Bm25Index.from_file(SHARED / "hotpot_mini/corpus.jsonl").pages)
    claims = json.loads((SHARED / "hotpot_mini/hover_dev_covered_claims.json").read_text())
    check_same(pages, tmp_path / "index", [claim["claim"] for claim in claims])


@settings(max_examples=12)
@given(st.lists(st.builds(Page, TEXT, TEXT), min_size=1, max_size=6), st.lists(TEXT, max_size=4))
def test_any_pages_are_searched_alike(
    tmp_path_factory: pytest.TempPathFactory, pages: list[Page], queries: list[str]
) -> None:
    check_same([*pages, PAGES[0]], tmp_path_factory.mktemp("any") / "index", queries)


def test_a_build_that_ends_early_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> Iterator[Page]:
        yield PAGES[0]
        raise DataError("line 2")

    for pages, message in ((broken(), "line 2"), (iter([]), "a page with a word in it, got none")):
        with pytest.raises(DataError, match=message):
            write_index(pages, tmp_path / "index")
        assert list(tmp_path.iterdir()) == []


def test_an_index_is_never_written_over_something(tmp_path: Path) -> None:
    (tmp_path / "index").write_text("mine")
    with pytest.raises(
        ValueError, match=r"the index must be a new folder, got .*index, which exists"
    ):
        write_index(PAGES, tmp_path / "index")
    assert (tmp_path / "index").read_text() == "mine"


@pytest.mark.parametrize("about", [None, "{}", "no", "[]", '{"fingerprint": "1", "page_chars": 1}'])
def test_a_folder_without_an_index_is_refused(tmp_path: Path, about: str | None) -> None:
    if about is not None:
        (tmp_path / "corpus.json").write_text(about)
    with pytest.raises(DataError, match=r"holds no index of pages .*make one with dspy-infill"):
        open_index(tmp_path)
