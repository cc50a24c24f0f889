"""HoVer: a claim is checked with three rounds of retrieval (the paper, appendix I)."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import dspy
from dspy.evaluate.metrics import normalize_text
from dspy.utils.exceptions import AdapterParseError

from dspy_diffusion_infill.evaluation.examples import HOVER_LABELS
from dspy_diffusion_infill.evaluation.retrieval import Page, PageIndex

PAGES_PER_HOP = 7


class SummarizeFirst(dspy.Signature):
    """Note down what these pages say about the claim, and what is still unknown."""

    claim: str = dspy.InputField()
    pages: str = dspy.InputField()
    notes: str = dspy.OutputField()


class AskSecond(dspy.Signature):
    """Write a search query for a page that is still missing to check the claim."""

    claim: str = dspy.InputField()
    notes: str = dspy.InputField()
    query: str = dspy.OutputField()


class SummarizeSecond(dspy.Signature):
    """Add to the notes what these pages say about the claim."""

    claim: str = dspy.InputField()
    notes: str = dspy.InputField()
    pages: str = dspy.InputField()
    more_notes: str = dspy.OutputField()


class AskThird(dspy.Signature):
    """Write a search query for the last page that is missing to check the claim."""

    claim: str = dspy.InputField()
    notes: str = dspy.InputField()
    more_notes: str = dspy.InputField()
    query: str = dspy.OutputField()


class Verify(dspy.Signature):
    """Say whether notes and pages support the whole claim: supported or not supported."""

    claim: str = dspy.InputField()
    notes: str = dspy.InputField()
    more_notes: str = dspy.InputField()
    pages: str = dspy.InputField()
    verdict: Literal["supported", "not supported"] = dspy.OutputField()


class HoverProgram(dspy.Module):
    """Retrieves, takes notes, asks on; after the third hop it labels the claim."""

    def __init__(self, index: PageIndex, *, num_pages: int = PAGES_PER_HOP) -> None:
        """Makes the program; nothing is called.

        Args:
            index: where to search; copies of the program share it.
            num_pages: pages a hop, >= 1.
        """
        super().__init__()
        if num_pages < 1:
            raise ValueError(f"num_pages must be at least 1, got num_pages={num_pages}")
        self.search = _Search(index, num_pages)
        self.summarize_first = dspy.Predict(SummarizeFirst)
        self.ask_second = dspy.Predict(AskSecond)
        self.summarize_second = dspy.Predict(SummarizeSecond)
        self.ask_third = dspy.Predict(AskThird)
        self.verify = dspy.Predict(Verify)

    def forward(self, claim: str) -> dspy.Prediction:
        """Checks one claim. An answer that cannot be read counts as empty.

        Returns:
            ``titles``: of all retrieved pages, each once; ``label``: one of HoVer's, None where the
            LM gave none that can be read.
        """
        first = self.search(claim)
        notes = _ask(self.summarize_first, claim=claim, pages=_shown(first))
        second = self.search(_ask(self.ask_second, claim=claim, notes=notes))
        more = _ask(self.summarize_second, claim=claim, notes=notes, pages=_shown(second))
        known = {"claim": claim, "notes": notes, "more_notes": more}
        third = self.search(_ask(self.ask_third, **known))
        verdict = _ask(self.verify, **known, pages=_shown(third))
        titles = tuple(dict.fromkeys(page.title for page in (*first, *second, *third)))
        return dspy.Prediction(titles=titles, label=_LABELS.get(verdict))


def _ask(predictor: dspy.Predict, **inputs: str) -> str:
    """The predictor's only output; empty where the LM's answer cannot be read."""
    try:
        (answer,) = predictor(**inputs).values()
    except AdapterParseError:
        return ""
    return answer


class _Search:
    """The index behind a program; deep copies of the program share it."""

    def __init__(self, index: PageIndex, num_pages: int) -> None:
        self.index, self.num_pages = index, num_pages

    def __call__(self, query: str) -> list[Page]:
        return self.index.search(query, num_pages=self.num_pages)

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Search":
        return self


def hover_recall(gold: Sequence[str], retrieved: Iterable[str]) -> float:
    """The share of the gold pages that were retrieved, in [0, 1]; higher is better.

    Titles are compared as DSPy normalises text.
    """
    wanted, found = _titles(gold), _titles(retrieved)
    return len(wanted & found) / len(wanted)


def hover_f1(gold: Sequence[str], retrieved: Iterable[str]) -> float:
    """F1 of the retrieved pages against the gold ones, in [0, 1].

    It stays low by design: up to 21 pages are retrieved for three gold ones.
    """
    wanted, found = _titles(gold), _titles(retrieved)
    return 2 * len(wanted & found) / (len(wanted) + len(found))


def hover_success(gold: Sequence[str], retrieved: Iterable[str]) -> bool:
    """Whether all gold pages were retrieved."""
    return _titles(gold) <= _titles(retrieved)


def hover_metric(example: dspy.Example, prediction: Any, trace: Any = None) -> float:
    """What the program is optimised with: the mean of recall and of a right label, in [0, 1]."""
    recall = hover_recall(example.titles, prediction.titles)
    return (recall + (prediction.label == example.label)) / 2


def _titles(titles: Iterable[str]) -> set[str]:
    return {normalize_text(title) for title in titles}


def _shown(pages: Sequence[Page]) -> str:
    return "\n".join(f"[{number}] {page}" for number, page in enumerate(pages, start=1)) or "none"


_LABELS = {"not supported": HOVER_LABELS[0], "supported": HOVER_LABELS[1]}
