"""What instructions took from worked examples, be it word for word or nearly so.

An instruction that quotes an example fits that row and no other, and hands its text to whoever
reads the instruction (of leaks through prompts: paper, appendix K).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from rapidfuzz import fuzz, process
from rapidfuzz.distance import Levenshtein

from dspy_diffusion_infill.contexts import WorkedExample
from dspy_diffusion_infill.infiller.details import DetailKind, find_details
from dspy_diffusion_infill.labels import Labels
from dspy_diffusion_infill.shortening import leaves_of
from dspy_diffusion_infill.words import folded, phrases_of, squashed, words_of

Leaks = Literal["refuse", "show", "off"]
LeakKind = Literal["value", "phrase", "near copy"] | DetailKind

_SHORTEST_VALUE = 3  # characters
_SHORTEST_NEAR = 8  # letters of what is found also with a slip or spaces in it
_LONGEST_NEAR_VALUE = 60  # letters; of longer ones phrases are found
_SIMILAR = 85.0  # per cent, by edit distance
_SHORTEST_NEAR_WORD = 4  # letters left of a word of an example, of five or more, after a slip
_SIMILAR_WORD = 0.799  # four letters of five; a cut-off of 0.8 leaves 0.8 itself out
_RUN = 20  # letters in a row that are a copy wherever spaces stand


@dataclass(frozen=True, slots=True)
class Likeness:
    """What a text has in common with an example. The example's own text is not in it.

    Attributes:
        row: number of the trainset's row, without the rows held out; None where that is unknown.
        field: of the example.
        text: the part of the instructions that is like it.
        similarity: 0 to 1; 1 is equal but for case, punctuation and spaces.
        kind: what kind of copy it is: a whole ``value``, a ``phrase`` of four words, a ``near
            copy``, a ``name``, ``mail``, ``number`` or ``code``; None where it is none.
    """

    row: int | None
    field: str
    text: str
    similarity: float
    kind: LeakKind | None = None


@dataclass(frozen=True, slots=True)
class _Text:
    """A text as it stands, its words in lower case with spaces around, and its letters alone."""

    text: str
    words: str
    letters: str

    @classmethod
    def of(cls, text: str) -> "_Text":
        return cls(text, f" {folded(text)} ", squashed(text)[0])


@dataclass(frozen=True, slots=True)
class _Source:
    """A text or number of an example, or a detail in one; its kind where it is a detail."""

    row: int | None
    field: str
    form: _Text
    kind: LeakKind = "value"

    def likeness(self, text: str, similarity: float, kind: LeakKind | None) -> Likeness:
        return Likeness(self.row, self.field, text.strip(), similarity, kind)


@dataclass(frozen=True)
class LeakGuard:
    """Finds what a text took from examples.

    Attributes:
        examples: the worked examples.
        labels: class labels of each field; a text may name them.
    """

    examples: tuple[WorkedExample, ...]
    labels: tuple[Labels, ...] = ()

    def find(self, text: str, original: str) -> Likeness | None:
        """The first copy in a text; None where there is none.

        Args:
            text: instructions.
            original: the instructions that the search began with; what they hold may stay.
        """
        new, old = _Text.of(text), _Text.of(original)
        finders = self._values_in, self._phrases_in, self._slips_in, self._near_copies_in
        return next((one for find in finders for one in find(new, old)), None)

    def nearest(self, text: str) -> Likeness | None:
        """The example's value that is nearest to a text by edit distance; None without any."""
        words = folded(text)
        values = [value.form.words for value in self._values]
        found = process.extractOne(words, values, scorer=fuzz.partial_ratio)
        if found is None or not words:
            return None
        place = fuzz.partial_ratio_alignment(words, found[0])
        part = _whole_words(words, place.src_start, place.src_end) if place else words
        return self._values[found[2]].likeness(part, round(found[1] / 100, 3), None)

    def _values_in(self, new: _Text, old: _Text) -> Iterator[Likeness]:
        """Whole values, and short details, as whole words."""
        for source in (*self._values, *self._details):
            words = source.form.words
            is_short = source.kind != "value" and len(source.form.letters) < _SHORTEST_NEAR
            if is_short or (source.kind == "value" and len(words) - 2 >= _SHORTEST_VALUE):
                if words in new.words and words not in old.words and words not in self._known:
                    yield source.likeness(words, 1.0, source.kind)

    def _phrases_in(self, new: _Text, old: _Text, kind: LeakKind = "phrase") -> Iterator[Likeness]:
        for phrase in sorted(phrases_of(new.words) - phrases_of(old.words)):
            words = f" {' '.join(phrase)} "
            if (place := self._words.find(words)) >= 0:
                yield self._source_at(self._words, place).likeness(words, 1.0, kind)

    def _slips_in(self, new: _Text, old: _Text) -> Iterator[Likeness]:
        """Details and short values with a slip or with spaces in them."""
        _, places = squashed(new.text)
        for source in (*self._values, *self._details):
            letters = source.form.letters
            if not _SHORTEST_NEAR <= len(letters) <= _LONGEST_NEAR_VALUE:
                continue
            found = _similar(letters, new.letters)
            if (
                found
                and source.form.words not in self._known
                and not _similar(letters, old.letters)
            ):
                start, end, similarity = found
                shown = new.text[places[start] : places[end - 1] + 1]
                yield source.likeness(shown, similarity, source.kind)

    def _near_copies_in(self, new: _Text, old: _Text) -> Iterator[Likeness]:
        """Phrases with slips in their words, and runs of letters whatever the spaces are."""
        known = set(words_of(old.text))
        words = [one if one in known else self._nearest_word(one) for one in words_of(new.text)]
        yield from self._phrases_in(_Text.of(" ".join(words)), old, "near copy")
        half = _RUN // 2  # in every run lies one whole stretch between two multiples of it
        for middle in range(0, len(new.letters), half):
            if new.letters[middle : middle + half] not in self._letters:
                continue
            for start in range(max(0, middle - half), middle + 1):
                run = new.letters[start : start + _RUN]
                if len(run) == _RUN and run not in old.letters and run in self._letters:
                    source = self._source_at(self._letters, self._letters.find(run))
                    yield source.likeness(run, 1.0, "near copy")

    def _nearest_word(self, word: str) -> str:
        """The word of the examples that a word is, or was before a slip."""
        if len(word) < _SHORTEST_NEAR_WORD or word in self._vocabulary:
            return word
        found = process.extractOne(
            word,
            self._vocabulary,
            scorer=Levenshtein.normalized_similarity,
            score_cutoff=_SIMILAR_WORD,
        )
        return word if found is None else found[0]

    def _source_at(self, lines: str, place: int) -> _Source:
        """The value whose line holds a place."""
        return self._values[lines.count("\n", 0, place)]

    # What is looked through is made when it is first needed.

    @cached_property
    def _values(self) -> list[_Source]:
        """Every text and number of an example, those inside of lists, dicts and models too."""
        return [
            _Source(example.row, name, _Text.of(str(leaf)))
            for example in self.examples
            for part in (example.inputs, example.outputs)
            for name, value in part.items()
            for leaf in leaves_of(value)
            if isinstance(leaf, str | int | float)
        ]

    @cached_property
    def _details(self) -> list[_Source]:
        """Names, mails, numbers and codes, each of the first value that holds it."""
        found: dict[str, _Source] = {}
        details = find_details([value.form.text for value in self._values])
        for value, own in zip(self._values, details, strict=True):
            for kind, text in own:
                form = _Text.of(text)
                found.setdefault(form.words, _Source(value.row, value.field, form, kind))
        return list(found.values())

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(f" {folded(label)} " for group in self.labels for label in group)

    @cached_property
    def _words(self) -> str:
        return "\n".join(value.form.words for value in self._values)

    @cached_property
    def _letters(self) -> str:
        return "\n".join(value.form.letters for value in self._values)

    @cached_property
    def _vocabulary(self) -> dict[str, str]:
        return {word: word for word in self._words.split()}


def _whole_words(text: str, start: int, end: int) -> str:
    """A part of a text, with the rest of the words that it cuts."""
    last = text.find(" ", end)
    return text[text.rfind(" ", 0, start + 1) + 1 : len(text) if last < 0 else last]


def _similar(part: str, whole: str) -> tuple[int, int, float] | None:
    """Where in a text something like the part stands: start, end, similarity."""
    if len(whole) < len(part) - 1:  # else the text would be looked for in the part
        return None
    found = fuzz.partial_ratio_alignment(part, whole, score_cutoff=_SIMILAR)
    if found is None or found.dest_end <= found.dest_start:
        return None
    return found.dest_start, found.dest_end, round(found.score / 100, 3)
