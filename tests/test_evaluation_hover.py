import copy
import json
from pathlib import Path

import dspy
import pytest
from loopback import loopback, prompt_of

from dspy_diffusion_infill.errors import DataError
from dspy_diffusion_infill.evaluation.hover import (
    HoverProgram,
    hover_f1,
    hover_metric,
    hover_recall,
    hover_success,
)
from dspy_diffusion_infill.evaluation.loading import load_dataset
from dspy_diffusion_infill.evaluation.retrieval import Bm25Index, Page
from dspy_diffusion_infill.template_adapter import TemplateAdapter

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "hover"
PAGES = [
    Page("Ada Lovelace", "An English mathematician."),
    Page("Charles Babbage", "He designed the Analytical Engine."),
    Page("Analytical Engine", "A mechanical computer."),
    Page("Rain", "Water that falls from clouds."),
]


@pytest.fixture(scope="session")
def index() -> Bm25Index:
    return Bm25Index(PAGES)


def answer(number: int, body: dict) -> str:
    """Five calls a claim: notes, query, notes, query, verdict."""
    return ["They met.", "Babbage", "He designed it.", "analytical engine", "Not supported."][
        number % 5
    ]


def test_search_ranks_pages_by_shared_words(index: Bm25Index) -> None:
    found = index.search("the Analytical Engine of Babbage", num_pages=3)
    assert {page.title for page in found[:2]} == {"Analytical Engine", "Charles Babbage"}
    assert len(index.search("english rain", num_pages=1)) == 1
    assert index.search("zebra", num_pages=7) == []
    assert index.search("of the", num_pages=7) == []


def test_pages_are_read_from_sentences_or_text(tmp_path: Path) -> None:
    rows = [{"title": "A", "text": ["One.", " Two."]}, {"title": "B", "text": "Three."}]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert Bm25Index.from_file(tmp_path / "c.jsonl").pages == (
        Page("A", "One. Two."),
        Page("B", "Three."),
    )
    (tmp_path / "d.json").write_text('[{"title": "A", "text": [1]}]', encoding="utf-8")
    with pytest.raises(DataError, match="row 1: field 'text' must hold sentences"):
        Bm25Index.from_file(tmp_path / "d.json")


def test_an_empty_corpus_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one page"):
        Bm25Index([])


def test_three_hops_of_seven_pages_and_a_label(index: Bm25Index) -> None:
    program = HoverProgram(index, num_pages=2)
    with (
        loopback(answer) as server,
        dspy.context(lm=server.lm(), adapter=TemplateAdapter()),
    ):
        found = program(claim="Ada Lovelace knew an engine's designer.")
    assert found.titles[0] == "Ada Lovelace"
    assert {"Charles Babbage", "Analytical Engine"} <= set(found.titles)
    assert len(set(found.titles)) == len(found.titles)
    assert found.label == "NOT_SUPPORTED"
    assert len(server.bodies) == 5
    assert "Charles Babbage | He designed" in prompt_of(server.bodies[2])
    assert HoverProgram(index).search.num_pages == 7


def test_a_label_that_cannot_be_read_is_none(index: Bm25Index) -> None:
    with (
        loopback(lambda *_: "Who knows?") as server,
        dspy.context(lm=server.lm(), adapter=TemplateAdapter()),
    ):
        assert HoverProgram(index)(claim="Ada").label is None


def test_copies_of_the_program_share_the_index(index: Bm25Index) -> None:
    program = HoverProgram(index)
    assert copy.deepcopy(program).search.index is index
    assert len(program.named_predictors()) == 5


def test_measures_of_retrieval() -> None:
    gold = ("Ada Lovelace", "The Analytical Engine", "Rain")
    retrieved = ["ada lovelace", "Analytical Engine", "Snow", "Wind"]
    assert hover_recall(gold, retrieved) == pytest.approx(2 / 3)
    assert hover_f1(gold, retrieved) == pytest.approx(2 * 2 / (3 + 4))
    assert not hover_success(gold, retrieved)
    assert hover_success(gold, [*retrieved, "Rain"])
    assert hover_f1(gold, []) == hover_recall(gold, []) == 0


def test_the_metric_joins_recall_and_label() -> None:
    example = dspy.Example(titles=("A", "B"), label="SUPPORTED")
    assert hover_metric(example, dspy.Prediction(titles=("A", "B"), label="SUPPORTED")) == 1
    assert hover_metric(example, dspy.Prediction(titles=("B",), label="SUPPORTED")) == 0.75
    assert hover_metric(example, dspy.Prediction(titles=(), label=None)) == 0


def test_zero_pages_a_hop_are_refused(index: Bm25Index) -> None:
    with pytest.raises(ValueError, match="num_pages must be at least 1"):
        HoverProgram(index, num_pages=0)


@pytest.mark.skipif(not SHARED.exists(), reason="the shared HoVer files are not here")
def test_gold_pages_of_the_covered_claims_are_found_by_their_titles() -> None:
    index = Bm25Index.from_file(SHARED / "hotpot_mini" / "corpus.jsonl")
    claims = load_dataset("hover_mini", data=SHARED.parent)
    assert (len(index.pages), len(claims)) == (994, 8)
    for claim in claims:
        queries = [claim.claim, *claim.titles]
        found = [p.title for query in queries for p in index.search(query, num_pages=7)]
        assert hover_success(claim.titles, found)
