"""Proposals, and the checks that drop the worthless ones before any LM call."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from dspy_diffusion_infill.contexts import WorkedExample
from dspy_diffusion_infill.windows import Window

Reason = Literal[
    "unchanged", "duplicate", "degenerate", "copies_example", "partial_labels", "new_placeholder"
]

_WORD = re.compile(r"\w+")
_WORD_OR_DECIMAL = re.compile(r"\d+\.\d+|\w+")
_MAX_LABELS = 12

Labels = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Proposal:
    """New instructions that are not scored yet.

    Attributes:
        predictor: name of the predictor.
        window: the masked place in the old instructions.
        fills: the new text of each piece of the window.
        instructions: the whole new instructions.
        confidence: the denoiser's mean probability of the tokens that it filled in, in (0, 1].
    """

    predictor: str
    window: Window
    fills: tuple[str, ...]
    instructions: str
    confidence: float


def find_labels(examples: Sequence[WorkedExample]) -> dict[str, Labels]:
    """The output fields whose values look like labels: at most 12 short ones that repeat."""
    labels: dict[str, Labels] = {}
    for name in sorted({name for example in examples for name in example.outputs}):
        values = Counter(
            str(example.outputs[name]) for example in examples if name in example.outputs
        )
        repeats = len(values) <= min(_MAX_LABELS, sum(values.values()) / 2)
        if repeats and all(0 < len(value) <= 40 for value in values):
            labels[name] = tuple(sorted(values))
    return labels


@dataclass(slots=True)
class ProposalFilter:
    """Drops proposals and counts each reason; remembers what it has let through.

    Attributes:
        examples: the worked examples whose text no proposal may copy.
        labels: class labels of each field; a proposal that adds some of one field's but not all of
            them is dropped.
        counts: how many proposals were dropped for each reason.
    """

    examples: tuple[WorkedExample, ...]
    labels: tuple[Labels, ...]
    counts: Counter[str]
    seen: set[tuple[str, str]]

    @classmethod
    def over(cls, examples: Sequence[WorkedExample]) -> "ProposalFilter":
        """A filter over a predictor's examples that has seen nothing yet."""
        labels = tuple(find_labels(examples).values())
        return cls(tuple(examples), labels, Counter(), set())

    def keep(self, proposals: Sequence[Proposal], old: str) -> list[Proposal]:
        """Returns the proposals that are worth a metric call, in their order."""
        kept = []
        for proposal in proposals:
            self.counts["proposed"] += 1
            if reason := self.reason_against(proposal, old):
                self.counts[reason] += 1
                continue
            self.seen.add((proposal.predictor, _folded(proposal.instructions)))
            kept.append(proposal)
        return kept

    def forget(self, proposal: Proposal) -> None:
        """Lets a proposal pass again that was let through and then not tried."""
        self.seen.discard((proposal.predictor, _folded(proposal.instructions)))

    def reason_against(self, proposal: Proposal, old: str) -> Reason | None:
        """Why a proposal is worthless; None where nothing speaks against it."""
        inserted = " ".join(proposal.fills)
        if _folded(proposal.instructions) == _folded(old):
            return "unchanged"
        if (proposal.predictor, _folded(proposal.instructions)) in self.seen:
            return "duplicate"
        if is_degenerate(proposal, old):
            return "degenerate"
        if re.search(r"\{[^{}\n]*\}|\[\[ ?##|\[\[infill", inserted):
            return "new_placeholder"
        if copies_example(inserted, old, self.examples, self.labels):
            return "copies_example"
        if adds_some_labels(proposal.instructions, old, self.labels):
            return "partial_labels"
        return None


def is_degenerate(proposal: Proposal, old: str) -> bool:
    """Empty, broken characters, only punctuation, a word thrice in a row, or a stuttered phrase."""
    text = proposal.instructions
    inserted = "".join(proposal.fills)
    if not inserted.strip() or "\ufffd" in inserted or not _WORD.search(inserted):
        return True
    # A decimal is one word: "Score 2: 2.5" does not say 2 twice.
    words, before = (_WORD_OR_DECIMAL.findall(t.lower()) for t in (text, old))
    if _has_run(words, length=3) and not _has_run(before, length=3):
        return True
    return _num_stutters(words) > _num_stutters(before)


def copies_example(
    inserted: str, old: str, examples: Sequence[WorkedExample], labels: Sequence[Labels]
) -> bool:
    """Whether the inserted text, unlike the old one, holds a value of an example.

    Or four words in a row of one.
    """
    known = {_folded(label) for group in labels for label in group}
    new_text, old_text = _padded(inserted), _padded(old)
    grams = _grams(inserted) - _grams(old)
    for value in (str(v) for example in examples for v in _values(example)):
        short = _folded(value)
        if (
            len(short) >= 3
            and short not in known
            and f" {short} " in new_text
            and f" {short} " not in old_text
        ):
            return True
        if grams & _grams(value):
            return True
    return False


def adds_some_labels(new: str, old: str, labels: Sequence[Labels]) -> bool:
    """Whether a text names labels of a field that the old one did not, and yet not all of them."""
    new_text, old_text = _padded(new), _padded(old)
    for group in labels:
        present = {label for label in group if f" {_folded(label)} " in new_text}
        before = {label for label in group if f" {_folded(label)} " in old_text}
        if present - before and present != set(group):
            return True
    return False


def _values(example: WorkedExample) -> list[object]:
    mappings: tuple[Mapping[str, object], ...] = (example.inputs, example.outputs)
    return [
        value
        for mapping in mappings
        for value in mapping.values()
        if isinstance(value, str | int | float)
    ]


def _grams(text: str) -> set[tuple[str, ...]]:
    """Every four words in a row."""
    words = _WORD.findall(text.lower())
    return {tuple(words[k : k + 4]) for k in range(len(words) - 3)}


def _folded(text: str) -> str:
    return " ".join(_WORD.findall(text.lower())) if _WORD.search(text) else text.strip()


def _padded(text: str) -> str:
    return f" {_folded(text)} "


def _has_run(words: Sequence[str], *, length: int) -> bool:
    return any(len(set(words[k : k + length])) == 1 for k in range(len(words) - length + 1))


def _num_stutters(words: Sequence[str]) -> int:
    """How often one to four words stand twice in a row ("of the of the")."""
    return sum(
        list(words[k : k + n]) == list(words[k + n : k + 2 * n])
        for n in range(1, 5)
        for k in range(len(words) - 2 * n + 1)
    )
