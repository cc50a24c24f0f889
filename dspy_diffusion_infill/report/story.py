"""What a report says of a search, computed from its records: outcomes, heat, rows, curves."""

import difflib
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from dspy_diffusion_infill.optimizer.results import DetailedResults, Edit, Scores, Trial
from dspy_diffusion_infill.windows import take_marks
from dspy_diffusion_infill.words import TOKEN

DiffKind = Literal["equal", "del", "ins"]
TrialOutcome = Literal["kept", "worse", "tie", "given up", "refused"]

OUTCOMES: Mapping[TrialOutcome, str] = {
    "kept": "The search went on from here.",
    "worse": "The mean score is lower than that of the best program.",
    "tie": "The mean score is that of the best program, and nothing else spoke for the edit.",
    "given up": "Racing ended the trial: its chance to beat the best program was too small.",
    "refused": "The mean score is higher, and the acceptance rule refused the edit all the same.",
}
DROPS: Mapping[str, str] = {
    "unchanged": "unchanged",
    "duplicate": "duplicates",
    "degenerate": "degenerate",
    "new_placeholder": "with new placeholders",
    "touches_protected": "in protected text",
    "edited_too_much": "with too many edits",
    "too_long": "too long",
    "grew_too_much": "grown too much",
    "copies_example": "copied from examples",
    "partial_labels": "with some labels only",
    "screened": "less likely or outranked",
}
"""How a count of dropped proposals is called."""

_EQUAL = 1e-9  # two means that differ by less are one


def changes(before: str, after: str) -> Iterator[tuple[DiffKind, str]]:
    """The pieces of a word diff, in order; what went stands before what came."""
    old, new = TOKEN.findall(before), TOKEN.findall(after)
    for tag, a, b, c, d in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if tag == "equal":
            yield "equal", "".join(old[a:b])
            continue
        if a < b:
            yield "del", "".join(old[a:b])
        if c < d:
            yield "ins", "".join(new[c:d])


@dataclass(frozen=True, slots=True)
class ToldTrial:
    """A trial as the report shows it.

    Attributes:
        trial: the trial.
        outcome: what became of it.
        best: the best program's scores when it was tried, of all rows.
        change: its mean score less that of the best program, over the rows that were scored.
    """

    trial: Trial
    outcome: TrialOutcome
    best: Scores
    change: float

    @property
    def height(self) -> float:
        """Its mean score; where racing ended it, the best program's and the change."""
        return sum(self.best) / max(1, len(self.best)) + self.change

    @property
    def gained(self) -> int:
        """Rows that score higher than under the best program."""
        return sum(new > old + _EQUAL for new, old in self._pairs())

    @property
    def lost(self) -> int:
        """Rows that score lower."""
        return sum(new < old - _EQUAL for new, old in self._pairs())

    def signs(self) -> list[int]:
        """For each row that was scored 1 where it is gained, -1 where lost, else 0."""
        return [(new > old + _EQUAL) - (new < old - _EQUAL) for new, old in self._pairs()]

    def _pairs(self) -> list[tuple[float, float]]:
        return _pairs(self.trial, self.best)


def told_trials(results: DetailedResults) -> list[ToldTrial]:
    """Every trial beside the program that it had to beat."""
    best, told = results.scores_before, list[ToldTrial]()
    for trial in results.trials:
        pairs = _pairs(trial, best)
        change = sum(new - old for new, old in pairs) / max(1, len(pairs))
        told.append(ToldTrial(trial, _outcome(trial, best, change), best, change))
        if trial.accepted:
            best = trial.scores
    return told


def _pairs(trial: Trial, best: Scores) -> list[tuple[float, float]]:
    rows = (number for number in trial.rows if number < len(best))
    return [(new, best[row]) for new, row in zip(trial.scores, rows, strict=False)]


def _outcome(trial: Trial, best: Scores, change: float) -> TrialOutcome:
    if trial.accepted:
        return "kept"
    if len(trial.rows) < len(best):
        return "given up"
    if abs(change) <= _EQUAL:
        return "tie"
    return "worse" if change < 0 else "refused"


@dataclass(frozen=True, slots=True)
class HeatedWord:
    """A word of the student's instructions, and what it brought to mask it.

    Attributes:
        text: with the white space before it.
        tries: trials that changed the instructions there.
        change: their mean change of the score; 0 where there were none.
    """

    text: str
    tries: int
    change: float


def heat(results: DetailedResults, told: Sequence[ToldTrial], predictor: str) -> list[HeatedWord]:
    """Where edits of a predictor's instructions helped, by word of the student's text.

    The places of later trials are traced back through the edits that were kept before them. A trial
    of other instructions than the student's or the best ones is left out.
    """
    before, _ = take_marks(results.instructions_before[predictor])  # places of trials are without
    words = TOKEN.findall(before)
    ends = list(accumulate(map(len, words)))
    tries, sums = [0] * len(words), [0.0] * len(words)
    text, origin = before, _origin(before, before)
    for one in told:
        for edit in (one.trial, *one.trial.also):
            if edit.predictor != predictor:
                continue
            if words and _is_of(edit, text):
                # White space at the end belongs to the next word, which stays.
                end = edit.end - len(edit.old_text) + len(edit.old_text.rstrip())
                first = min(bisect_right(ends, origin[edit.start]), len(words) - 1)
                last = bisect_right(ends, origin[max(edit.start, end)] - 1)
                for k in range(first, max(first, last) + 1):  # where text is put in, one word
                    tries[k] += 1
                    sums[k] += one.change
            if one.trial.accepted:
                text = edit.instructions
                origin = _origin(text, before)
    return [
        HeatedWord(word, n, total / n if n else 0.0)
        for word, n, total in zip(words, tries, sums, strict=True)
    ]


def _is_of(edit: Trial | Edit, text: str) -> bool:
    """Whether the window is of this text; of several pieces the first and the last stand there."""
    pieces = edit.old_text.split(" … ")
    is_inside = edit.end <= len(text) and text.startswith(pieces[0], edit.start)
    return is_inside and text.endswith(pieces[-1], edit.start, edit.end)


def _origin(text: str, before: str) -> list[int]:
    """For each place between characters of a text the place in the text that it was made of."""
    places, there = [0] * (len(text) + 1), 0
    here = 0
    for kind, piece in changes(before, text):
        if kind == "del":
            there += len(piece)
            continue
        for k in range(len(piece)):
            places[here + k] = there + k if kind == "equal" else there
        here += len(piece)
        there += len(piece) if kind == "equal" else 0
    places[here:] = [there] * (len(places) - here)
    return places


@dataclass(frozen=True, slots=True)
class RowChange:
    """A row whose score changed.

    Attributes:
        number: of the row in the valset, from 0.
        before: its score under the student.
        after: its score under the best program.
        inputs: of the row, shortened; None where they are not known.
        answer_before: what the student answered, shortened; None where it is not known.
        answer_after: what the best program answered.
    """

    number: int
    before: float
    after: float
    inputs: str | None
    answer_before: str | None
    answer_after: str | None


def changed_rows(results: DetailedResults) -> tuple[list[RowChange], list[RowChange]]:
    """(the rows that were gained, the rows that were lost), in order."""
    rows = [
        RowChange(
            k,
            old,
            new,
            _at(results.inputs, k),
            _at(results.answers_before, k),
            _at(results.answers_after, k),
        )
        for k, (old, new) in enumerate(
            zip(results.scores_before, results.scores_after, strict=False)
        )
    ]
    gained = [row for row in rows if row.after > row.before + _EQUAL]
    return gained, [row for row in rows if row.after < row.before - _EQUAL]


def _at(texts: Sequence[str | None], number: int) -> str | None:
    return texts[number] if number < len(texts) else None
