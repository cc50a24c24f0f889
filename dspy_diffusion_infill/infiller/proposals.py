"""Proposals, and the checks that drop the worthless ones before any LM call."""

import inspect
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dspy_diffusion_infill.contexts import WorkedExample
from dspy_diffusion_infill.labels import Labels, find_labels
from dspy_diffusion_infill.shortening import leaves_of
from dspy_diffusion_infill.windows import Window
from dspy_diffusion_infill.words import (
    WORD,
    WORD_OR_DECIMAL,
    folded,
    is_character,
    phrases_of,
)

Reason = Literal[
    "unchanged", "duplicate", "degenerate", "copies_example", "partial_labels", "new_placeholder"
]


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


@dataclass(slots=True)
class ProposalFilter:
    """Drops proposals and counts each reason; keeps those that it has let through.

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
        labels = tuple(find_labels([example.outputs for example in examples]).values())
        return cls(tuple(examples), labels, Counter(), set())

    def keep(self, proposals: Sequence[Proposal], old: str) -> list[Proposal]:
        """Returns the proposals that are worth a metric call, in their order."""
        kept = []
        for proposal in proposals:
            self.counts["proposed"] += 1
            if reason := self.reason_against(proposal, old):
                self.counts[reason] += 1
                continue
            self.seen.add((proposal.predictor, folded(proposal.instructions)))
            kept.append(proposal)
        return kept

    def forget(self, proposal: Proposal) -> None:
        """Lets a proposal pass again that was let through and then not tried."""
        self.seen.discard((proposal.predictor, folded(proposal.instructions)))

    def reason_against(self, proposal: Proposal, old: str) -> Reason | None:
        """Why a proposal is worthless; None where nothing speaks against it."""
        inserted = " ".join(proposal.fills)
        if folded(proposal.instructions) == folded(old):
            return "unchanged"
        if (proposal.predictor, folded(proposal.instructions)) in self.seen:
            return "duplicate"
        if is_degenerate(proposal, old) or not keeps_its_lines(proposal.instructions, old):
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
    if not inserted.strip() or "\ufffd" in inserted or not WORD.search(inserted):
        return True
    # A decimal is one word: "Score 2: 2.5" does not say 2 twice.
    words, before = (WORD_OR_DECIMAL.findall(t.lower()) for t in (text, old))
    if _has_run(words, length=3) and not _has_run(before, length=3):
        return True
    return _num_stutters(words) > _num_stutters(before)


def keeps_its_lines(text: str, old: str) -> bool:
    """Whether the text stays the same when DSPy saves and loads it, if the old one does.

    DSPy reads instructions through ``inspect.cleandoc``: it takes away the indentation that all
    lines but the first share, which may be text outside of the window.
    """
    return inspect.cleandoc(text) == text or inspect.cleandoc(old) != old


def copies_example(
    inserted: str, old: str, examples: Sequence[WorkedExample], labels: Sequence[Labels]
) -> bool:
    """Whether the inserted text, unlike the old one, holds a value of an example.

    Or four words in a row of one.
    """
    known = {folded(label) for group in labels for label in group}
    new_text, old_text = _padded(inserted), _padded(old)
    phrases = phrases_of(inserted) - phrases_of(old)
    for value in (str(v) for example in examples for v in _values(example)):
        short = folded(value)
        if (
            len(short) >= 3
            and short not in known
            and f" {short} " in new_text
            and f" {short} " not in old_text
        ):
            return True
        if phrases & phrases_of(value):
            return True
    return False


def adds_some_labels(new: str, old: str, labels: Sequence[Labels]) -> bool:
    """Whether a text names labels of a field that the old one did not, and yet not all of them."""
    new_text, old_text = _padded(new), _padded(old)
    for group in labels:
        present = {label for label in group if f" {folded(label)} " in new_text}
        before = {label for label in group if f" {folded(label)} " in old_text}
        if present - before and present != set(group):
            return True
    return False


def _values(example: WorkedExample) -> list[object]:
    """Every text and number of an example, those inside of lists, dicts and models too."""
    return [
        leaf
        for part in (example.inputs, example.outputs)
        for value in part.values()
        for leaf in leaves_of(value)
        if isinstance(leaf, str | int | float)
    ]


def _padded(text: str) -> str:
    return f" {folded(text)} "


def _has_run(words: Sequence[str], *, length: int) -> bool:
    return any(len(set(words[k : k + length])) == 1 for k in range(len(words) - length + 1))


def _num_stutters(words: Sequence[str]) -> int:
    """How often one to four words stand twice in a row ("of the of the").

    A single character of a script without spaces may: it is doubled in many words.
    """
    return sum(
        list(words[k : k + n]) == list(words[k + n : k + 2 * n])
        and not (n == 1 and is_character(words[k]))
        for n in range(1, 5)
        for k in range(len(words) - 2 * n + 1)
    )
