"""Text that is never masked.

Placeholders, field names, what agent modules generate, and what the user names.
Everything here works on character spans of the instructions and knows no model.
"""

import re
from collections.abc import Iterable, Sequence

import dspy

from dspy_diffusion_infill.programs import signature_of

Span = tuple[int, int]
Protect = Sequence[str | re.Pattern[str]]

PLACEHOLDER = re.compile(r"\{\{?[^{}\n]*\}?\}")
FIELD_MARKER = re.compile(r"\[\[ ## .*? ## \]\]")

# The first words of what DSPy's agents append to the user's instructions; all that follows is
# theirs and names the tools. By class name, since CodeAct leaves DSPy in 3.5.
_AGENT_OPENINGS = {
    "ReAct": "You are an Agent. In each episode",
    "CodeAct": "You are an intelligent agent. For each episode",
    "RLM": "You are tasked with producing the following outputs given the inputs",
}


def protected_spans(
    instructions: str,
    signature: type[dspy.Signature],
    *,
    protect: Protect = (),
    agent_text: Sequence[str] = (),
) -> list[Span]:
    """Returns the character spans that no window may touch, sorted and merged.

    Args:
        instructions: the text to be rewritten.
        signature: its field names are protected where they stand as whole words.
        protect: the user's strings (every occurrence) and regular expressions (every match).
        agent_text: generated text, from ``generated_text``.
    """
    names = "|".join(sorted(map(re.escape, signature.fields), key=len, reverse=True))
    patterns = [FIELD_MARKER, re.compile(rf"(?<!\w)`?(?:{names})`?(?!\w)")]
    patterns += [re.compile(re.escape(p)) if isinstance(p, str) else p for p in protect if p]
    patterns += [re.compile(re.escape(text)) for text in agent_text if text]
    spans = [match.span() for pattern in patterns for match in pattern.finditer(instructions)]
    frame = _template_frame(instructions, signature)
    return merge_spans([*spans, *_brace_spans(instructions), *frame])


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


def _brace_spans(text: str) -> list[Span]:
    """Braces with what they hold, as far as that is in one line; others alone."""
    spans: list[Span] = []
    opened: list[int] = []
    for position, character in enumerate(text):
        if character == "{":
            opened.append(position)
            spans.append((position, position + 1))
        elif character == "}":
            spans.append((position, position + 1))
            if opened and "\n" not in text[(start := opened.pop()) : position]:
                spans.append((start, position + 1))
    return spans


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
