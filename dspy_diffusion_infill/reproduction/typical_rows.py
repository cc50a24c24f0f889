"""Rows of the usual length, where the data are not here yet: costs are counted over them."""

import dspy

from dspy_diffusion_infill.evaluation.examples import (
    DIMENSIONS,
    FEEDBACK_FIELDS,
    HOVER_LABELS,
    SUMMARY_FIELDS,
)
from dspy_diffusion_infill.evaluation.loading import Examples
from dspy_diffusion_infill.evaluation.retrieval import Page

_NUM_ROWS = {
    ("summeval", "test"): 1440,
    ("summeval", "dev"): 160,
    ("biggen", "test"): 2780,
    ("feedback_collection", "dev"): 5000,
    ("gsm8k", "train"): 7099,
    ("gsm8k", "test"): 1319,
    ("hover", "train"): 9000,
    ("hover", "dev"): 1835,  # of three hops
}
_NUM_OTHERWISE = 100

# Mean characters: of SummEval's dev split, the constructed rows of BiGGen-Bench, GSM8K, HoVer.
_FEEDBACK = (760, 974, 974, 174, 165, 187, 205, 212, 248)
_SUMMARY = (2439, 308, 345)
_QUESTION, _ANSWER = 240, 293
_CLAIM = 142
_TITLE, _PAGE = 20, 400


def typical_rows(name: str, split: str) -> Examples:
    """As many rows as a split has, each of the data set's usual length."""
    row = _row(name.removesuffix("_mini").removesuffix("_tasks"))
    return Examples([row] * _NUM_ROWS.get((name, split), _NUM_OTHERWISE), source="typical rows")


def typical_page() -> Page:
    """A page as long as an abstract of Wikipedia."""
    return Page(_text(_TITLE), _text(_PAGE))


def _row(name: str) -> dspy.Example:
    if name == "gsm8k":
        texts = {"question": _text(_QUESTION), "answer": _text(_ANSWER)}
        return dspy.Example(**texts, number="1").with_inputs("question")
    if name == "hover":
        titles = tuple(_text(_TITLE) for _ in range(3))
        row = dspy.Example(claim=_text(_CLAIM), titles=titles, label=HOVER_LABELS[0])
        return row.with_inputs("claim")
    names, lengths = (
        (SUMMARY_FIELDS, _SUMMARY) if name == "summeval" else (FEEDBACK_FIELDS, _FEEDBACK)
    )
    texts = {field: _text(size) for field, size in zip(names, lengths, strict=True)}
    scores = dict.fromkeys(("score", *DIMENSIONS), 3.0)
    return dspy.Example(**texts, **scores, doc_id="1", system_id="1").with_inputs(*names)


def _text(num_chars: int) -> str:
    return ("word " * num_chars)[:num_chars]
