"""Rows as examples: what the hub's forms may hold, and what is refused by name."""

from typing import Any

import pytest

from dspy_diffusion_infill.errors import DataError
from dspy_diffusion_infill.evaluation.examples import (
    DIMENSIONS,
    article_examples,
    constructed_examples,
    hover_example,
)
from dspy_diffusion_infill.evaluation.rows import Record

ARTICLE: dict[str, Any] = {
    "id": "article-1",
    "text": "It rained in Oslo.",
    "machine_summaries": ["Rain.", ""],
    "human_summaries": ["Rain in Oslo.", "Wet."],
    **{name: [4.0, 2.5] for name in DIMENSIONS},
}


def row(**values: Any) -> Record:
    return Record(values, "data/rows.jsonl", 3)


def test_an_article_of_the_hub_gives_a_row_for_each_system() -> None:
    first, second = article_examples(row(**ARTICLE, other="kept out"))
    assert (first.system_output, first.reference, first.score) == ("Rain.", "Rain in Oslo.", 4.0)
    assert (second.system_output, second.system_id, second.overall) == ("", "system 1", 2.5)
    assert set(first.inputs().keys()) == {"source", "reference", "system_output"}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"human_summaries": []}, "field 'human_summaries' must hold at least one text"),
        ({"human_summaries": [7]}, "field 'human_summaries' must be text, got int"),
        ({"machine_summaries": ["Rain.", None]}, "field 'machine_summaries' is missing"),
        ({"fluency": [4.0]}, "field 'fluency' must have 2 scores, got 1"),
        ({"fluency": [4.0, "good"]}, "field 'fluency' must be a number, got 'good'"),
        ({"relevance": [6.0, 2.0]}, r"field 'relevance' must be in 1\.\.5, got 6\.0"),
    ],
)
def test_a_bad_article_is_refused_by_its_field(change: dict, problem: str) -> None:
    with pytest.raises(DataError, match=f"data/rows.jsonl, row 3: {problem}"):
        list(article_examples(row(**{**ARTICLE, **change})))


@pytest.mark.parametrize("fact", [{"key": "Rain", "value": 0}, ["Rain", 0]])
def test_both_forms_of_a_fact_name_their_page_once(fact: Any) -> None:
    example = hover_example(row(claim="It rained.", supporting_facts=[fact, fact], label=1))
    assert (example.titles, example.label) == (("Rain",), "SUPPORTED")


@pytest.mark.parametrize("fact", [[], {}, "Rain", {"key": ""}, [7, 0], None])
def test_a_fact_without_a_title_is_refused(fact: Any) -> None:
    with pytest.raises(DataError, match="field 'supporting_facts' must hold"):
        hover_example(row(claim="It rained.", supporting_facts=[fact], label=0))


@pytest.mark.parametrize("label", [2, "MAYBE", True])
def test_a_label_that_hover_does_not_have_is_refused(label: Any) -> None:
    with pytest.raises(DataError, match="field 'label' must be"):
        hover_example(row(claim="It rained.", supporting_facts=[["Rain", 0]], label=label))


def test_constructed_pairs_take_another_tasks_reference_for_the_worst() -> None:
    rubric = {"criteria": "Is it right?"} | {f"score{k}_description": "…" for k in range(1, 6)}
    tasks = [
        row(id=name, input="Ask.", reference_answer=f"Answer {name}.", score_rubric=rubric)
        for name in "ab"
    ]
    made = list(constructed_examples(tasks))
    assert [(one.doc_id, one.orig_response, one.score) for one in made] == [
        ("a", "Answer a.", 5.0),
        ("a", "Answer b.", 1.0),
        ("b", "Answer b.", 5.0),
        ("b", "Answer a.", 1.0),
    ]
