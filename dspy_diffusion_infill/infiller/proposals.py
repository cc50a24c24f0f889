"""Proposals, and the checks that drop the worthless ones before any LM call."""

import inspect
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from dspy_diffusion_infill.contexts import WorkedExample
from dspy_diffusion_infill.infiller.bounds import NO_BOUNDS, BoundReason, Bounds
from dspy_diffusion_infill.infiller.leaks import LeakGuard, Leaks, Likeness
from dspy_diffusion_infill.labels import Labels, find_labels
from dspy_diffusion_infill.marks import STARTS_A_MARK
from dspy_diffusion_infill.protection import Protection
from dspy_diffusion_infill.windows import Window
from dspy_diffusion_infill.words import (
    WORD,
    WORD_OR_DECIMAL,
    folded,
    is_character,
    words_of,
)

Reason = (
    Literal[
        "unchanged",
        "duplicate",
        "degenerate",
        "new_placeholder",
        "touches_protected",
        "copies_example",
        "partial_labels",
    ]
    | BoundReason
)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What edits of a predictor's instructions must keep to, beside being worth a metric call.

    Attributes:
        protection: what no edit may touch; None where marks say what is filled.
        bounds: how far the sum of all edits may go.
        num_tokens: counts the tokens of a text for the bounds; None counts words.
        leaks: whether copies of examples are refused.
        by_content: whether a proposal is dropped for what it says: ``degenerate``,
            ``copies_example``, ``partial_labels``, and for case and punctuation alone. Without it
            only those are that cannot be tried or may not be: no text, text that DSPy would read
            otherwise, a placeholder, protected text, one beyond a bound, one that was tried before.
    """

    protection: Protection | None = None
    bounds: Bounds = NO_BOUNDS
    num_tokens: Callable[[str], int] | None = None
    leaks: Leaks = "refuse"
    by_content: bool = True


@dataclass(slots=True)
class ProposalFilter:
    """Drops proposals and counts each reason; keeps those that it has let through.

    Attributes:
        original: the instructions that the search began with.
        guard: knows the worked examples, whose text no proposal may copy, and their labels; a
            proposal that adds some of one field's labels but not all of them is dropped.
        rules: what else is dropped.
        counts: how many proposals were dropped for each reason.
        seen: what was let through, by predictor and text.
    """

    original: str
    guard: LeakGuard
    rules: Rules
    counts: Counter[str]
    seen: set[tuple[str, str]]

    @classmethod
    def over(
        cls,
        examples: Sequence[WorkedExample],
        original: str,
        rules: Rules = Rules(),
        demos: Sequence[WorkedExample] = (),
    ) -> "ProposalFilter":
        """A filter that has seen nothing yet.

        Args:
            examples: of a predictor.
            original: its instructions.
            rules: what else is dropped.
            demos: its own, which the denoiser sees too; no proposal may copy them either.
        """
        labels = tuple(find_labels([example.outputs for example in examples]).values())
        guard = LeakGuard((*examples, *demos), labels)
        return cls(original, guard, rules, Counter(), set())

    def keep(self, proposals: Sequence[Proposal], old: str) -> list[Proposal]:
        """Returns the proposals that are worth a metric call, in their order."""
        reasons = self.judge(proposals, old)
        return [one for one, reason in zip(proposals, reasons, strict=True) if reason is None]

    def judge(self, proposals: Sequence[Proposal], old: str) -> list[Reason | None]:
        """Of each proposal why it is dropped, None where it is kept; counts them."""
        reasons: list[Reason | None] = []
        for proposal in proposals:
            self.counts["proposed"] += 1
            if reason := self.reason_against(proposal, old):
                self.counts[reason] += 1
            else:
                self.seen.add((proposal.predictor, self._form(proposal.instructions)))
            reasons.append(reason)
        return reasons

    def forget(self, proposal: Proposal) -> None:
        """Lets a proposal pass again that was let through and then not tried."""
        self.seen.discard((proposal.predictor, self._form(proposal.instructions)))

    def reason_against(self, proposal: Proposal, old: str) -> Reason | None:
        """Why a proposal is worthless or not allowed; None where nothing speaks against it."""
        new, rules = proposal.instructions, self.rules
        inserted = " ".join(proposal.fills)
        if self._form(new) == self._form(old):
            return "unchanged"
        if (proposal.predictor, self._form(new)) in self.seen:
            return "duplicate"
        if not new.strip() or not keeps_its_lines(new, old):
            return "degenerate"
        if rules.by_content and is_degenerate(proposal, old):
            return "degenerate"
        if re.search(r"\{[^{}\n]*\}|\[\[ ?##", inserted) or STARTS_A_MARK.search(inserted):
            return "new_placeholder"
        if rules.protection and touches_protected(proposal, old, rules.protection):
            return "touches_protected"
        count = rules.num_tokens or _num_words
        if reason := rules.bounds.reason_against(new, self.original, count):
            return reason
        if not rules.by_content:
            return None
        if rules.leaks == "refuse" and self.guard.find(new, self.original):
            return "copies_example"
        if adds_some_labels(new, old, self.guard.labels):
            return "partial_labels"
        return None

    def likeness(self, proposal: Proposal) -> Likeness | None:
        """What a proposal copies, where copies are shown, or else the example nearest to it."""
        if self.rules.leaks == "off":
            return None
        copied = self.guard.find(proposal.instructions, self.original)
        return copied or self.guard.nearest(" ".join(proposal.fills))

    def _form(self, text: str) -> str:
        """What two texts that are the same share: by content, words alone."""
        return folded(text) if self.rules.by_content else text


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


def touches_protected(proposal: Proposal, old: str, protection: Protection) -> bool:
    """Whether a proposal changes protected text, or makes something else of it."""
    spans = [(piece.start, piece.end) for piece in proposal.window.pieces]
    return not protection.allows(old, list(zip(spans, proposal.fills, strict=True)))


def adds_some_labels(new: str, old: str, labels: Sequence[Labels]) -> bool:
    """Whether a text names labels of a field that the old one did not, and yet not all of them."""
    new_text, old_text = _padded(new), _padded(old)
    for group in labels:
        present = {label for label in group if f" {folded(label)} " in new_text}
        before = {label for label in group if f" {folded(label)} " in old_text}
        if present - before and present != set(group):
            return True
    return False


def _num_words(text: str) -> int:
    return len(words_of(text))


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
