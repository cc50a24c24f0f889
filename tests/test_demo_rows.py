"""The demo's rows: balanced, of one length, and no sentence that stands in two splits."""

import itertools
import json
import re
from collections import Counter
from pathlib import Path

import pytest

import dspy_diffusion_infill

DEMO = Path(dspy_diffusion_infill.__file__).parent / "data" / "demo"
SIZES = {"train": 16, "valid": 32, "heldout": 64}
LABELS = {"sentiment": {"positive", "negative"}, "topic": {"sports", "food", "weather"}}
COMMON = {*"the a an and of in to was is it with for on i my we our that this at so".split()}


def _rows(task: str, split: str) -> list[dict[str, str]]:
    text = (DEMO / f"{task}_{split}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("task", LABELS)
@pytest.mark.parametrize("split", SIZES)
def test_classes_are_balanced(task, split):
    counts = Counter(row["label"] for row in _rows(task, split))
    assert set(counts) == LABELS[task]
    assert sum(counts.values()) == SIZES[split]
    assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize("task", LABELS)
def test_sentences_are_short_and_no_two_are_alike(task):
    texts = [row["text"] for split in SIZES for row in _rows(task, split)]
    assert all(6 <= len(text.split()) <= 18 for text in texts)
    words = [set(re.findall(r"\w+", text.lower())) - COMMON for text in texts]
    for (a, x), (b, y) in itertools.combinations(zip(texts, words, strict=True), 2):
        assert len(x & y) / len(x | y) <= 0.3, (a, b)
