"""Text that is never masked.

Placeholders, field names, what agent modules generate, what looks like structure, and what the user
names. Everything here works on character spans of the instructions and knows no model.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import dspy

from dspy_diffusion_infill.programs import signature_of
from dspy_diffusion_infill.structure import Structure, find_structure

Span = tuple[int, int]
Protect = Sequence[str | re.Pattern[str]]
Kind = Literal["kept", "named", "agent", "field", "placeholder", "template"] | Structure

PLACEHOLDER = re.compile(r"\{\{?[^{}\n]*\}?\}")
FIELD_MARKER = re.compile(r"\[\[ ## .*? ## \]\]")

# The first words of what DSPy's agents append to the user's instructions; all that follows is
# theirs and names the tools. By class name, since CodeAct leaves DSPy in 3.5.
_AGENT_OPENINGS = {
    "ReAct": "You are an Agent. In each episode",
    "CodeAct": "You are an intelligent agent. For each episode",
    "RLM": "You are tasked with producing the following outputs given the inputs",
}
_BLOCKS = ("code", "table")


@dataclass(frozen=True, slots=True, order=True)
class Protected:
    """A passage that is never masked.

    Attributes:
        start: its first character.
        end: one past its last character.
        kind: ``kept`` (between ``[[keep]]`` marks), ``named`` (by the user's ``protect``),
            ``agent``, ``field``, ``placeholder``, ``template`` (the frame around inputs), or a kind
            of structure: ``code``, ``table``, ``json``, ``tag``, ``url``, ``number``.
    """

    start: int
    end: int
    kind: Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Protection:
    """What is never masked in the instructions of one predictor, however they change.

    Attributes:
        signature: its field names are protected where they stand as whole words.
        protect: the user's strings (every occurrence) and regular expressions (every match).
        agent_text: generated text, from ``generated_text``.
        kept: what stood between ``[[keep]]`` and ``[[/keep]]``.
        structure: whether text that looks like structure is protected too.
    """

    signature: type[dspy.Signature]
    protect: Protect = ()
    agent_text: Sequence[str] = ()
    kept: Sequence[str] = ()
    structure: bool = True

    def spans(self, text: str) -> list[Span]:
        """The character spans that no window may touch, sorted and merged."""
        # With a block goes the white space around it, without which it would be none.
        return merge_spans(
            _with_outer_space(text, one) if one.kind in _BLOCKS else (one.start, one.end)
            for one in self.found(text)
        )

    def found(self, text: str) -> list[Protected]:
        """Every protected passage of a text, sorted; passages may overlap."""
        names = "|".join(sorted(map(re.escape, self.signature.fields), key=len, reverse=True))
        field = re.compile(rf"(?<!\w)`?(?:{names})`?(?!\w)")
        spans: dict[Kind, Iterable[Span]] = {
            "field": [one.span() for one in field.finditer(text)],
            "placeholder": [
                *(one.span() for one in FIELD_MARKER.finditer(text)),
                *_brace_spans(text),
            ],
            "template": _template_frame(text, self.signature),
            "agent": _occurrences(self.agent_text, text),
            "named": _occurrences(self.protect, text),
            "kept": _occurrences(self.kept, text),
        }
        found = {Protected(*span, kind) for kind, own in spans.items() for span in own}
        if self.structure:
            found |= {Protected(start, end, kind) for kind, start, end in find_structure(text)}
        return sorted(one for one in found if one.end > one.start)

    def allows(self, old: str, pieces: Sequence[tuple[Span, str]]) -> bool:
        """Whether texts may be put in the place of spans of the old text, from left to right.

        They must overlap no protected passage, and each must be found again in its place: "5 km" is
        lost in "15 km", and code behind a second fence is none. The line of a placeholder can go on
        to the left, as it does behind a prefix.
        """
        new = old
        for (start, end), text in reversed(pieces):
            new = new[:start] + text + new[end:]
        again = set(self.found(new))
        lines = [one for one in again if one.kind == "template"]
        for one in self.found(old):
            if any(start < one.end and one.start < end for (start, end), _ in pieces):
                return False
            before = [(span, text) for span, text in pieces if span[1] <= one.start]
            shift = sum(len(text) - (end - start) for (start, end), text in before)
            moved = Protected(one.start + shift, one.end + shift, one.kind)
            if moved not in again and not any(_holds(line, moved) for line in lines):
                return False
        return True


def generated_text(program: dspy.Module) -> dict[str, list[str]]:
    """The text that ReAct, CodeAct or RLM put into instructions, by predictor name."""
    found: dict[str, list[str]] = {}
    for prefix, module in program.named_sub_modules():
        kinds = [_AGENT_OPENINGS.get(kind.__name__) for kind in type(module).__mro__]
        opening = next(filter(None, kinds), None)
        if opening is None:
            continue
        path = prefix.removeprefix("self").removeprefix(".")
        tools = [str(tool) for tool in getattr(module, "tools", {}).values()]
        for name, predictor in program.named_predictors():
            text = signature_of(predictor).instructions
            if path and not name.startswith(f"{path}."):
                continue
            if opening in text:
                found[name] = [text[text.index(opening) :]]
            elif kept := [tool for tool in tools if tool in text]:  # an optimizer rewrote the rest
                found[name] = kept
    return found


def agent_text_in(instructions: str) -> list[str]:
    """The same, found in instructions whose program is not at hand: all from an agent's opening."""
    openings = _AGENT_OPENINGS.values()
    return [instructions[instructions.index(text) :] for text in openings if text in instructions]


def merge_spans(spans: Iterable[Span]) -> list[Span]:
    """Sorts spans and joins those that touch or overlap; empty spans are dropped."""
    merged: list[Span] = []
    for start, end in sorted(span for span in spans if span[1] > span[0]):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _holds(outer: Protected, inner: Protected) -> bool:
    """Whether a passage of one kind lies in another one of that kind."""
    return outer.kind == inner.kind and outer.start <= inner.start and inner.end <= outer.end


def _occurrences(parts: Protect, text: str) -> Iterator[Span]:
    """Every place of each string, overlapping ones too, and of each pattern."""
    for part in parts:
        if isinstance(part, re.Pattern):
            yield from (match.span() for match in part.finditer(text))
        elif part:
            places = re.finditer(f"(?={re.escape(part)})", text)
            yield from ((one.start(), one.start() + len(part)) for one in places)


def _with_outer_space(text: str, one: Protected) -> Span:
    rest = text[one.end :]
    return len(text[: one.start].rstrip()), one.end + len(rest) - len(rest.lstrip())


def _brace_spans(text: str) -> list[Span]:
    """Braces with what they hold, as far as that is in one line; others alone."""
    spans: list[Span] = []
    opened: list[int] = []
    for position, character in enumerate(text):
        if character == "{":
            opened.append(position)
        elif character == "}":
            start = opened.pop() if opened else position
            is_in_line = "\n" not in text[start:position]
            spans += [(start if is_in_line else position, position + 1)]
            spans += [] if is_in_line else [(start, start + 1)]
    return [*spans, *((position, position + 1) for position in opened)]


def _template_frame(instructions: str, signature: type[dspy.Signature]) -> list[Span]:
    """The lines of a template that hold an input's placeholder, and an answer cue after them."""
    names = "|".join(map(re.escape, signature.input_fields)) or r"(?!)"
    placeholder = re.compile(rf"\{{(?:{names})\}}")
    spans, position, holds_placeholder = [], 0, False
    for line in instructions.splitlines(keepends=True):
        if placeholder.search(line):
            holds_placeholder = True
            spans.append((position, position + len(line)))
        elif holds_placeholder and line.rstrip().endswith(":"):
            spans.append((position, position + len(line)))
        position += len(line)
    return spans
