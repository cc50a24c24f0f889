"""Contexts: the messages around the instructions, rendered by the program's own adapter.

Where the masked window lies in the rendered messages is found by marking it: a character that no
text holds is put before and after each piece, the adapter renders, and the marks are found again in
what it made. So any adapter works, whatever it does to the instructions, and an adapter that
repeats the instructions shows itself by repeating the marks.
"""

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import dspy

from dspy_diffusion_infill.chat_spans import Message
from dspy_diffusion_infill.programs import Part, signature_with
from dspy_diffusion_infill.shortening import shorter, size_of
from dspy_diffusion_infill.template_adapter import TemplateAdapter, field_lines
from dspy_diffusion_infill.windows import Window

OPEN, CLOSE = "\ufdd0", "\ufdd1"
"""Noncharacters: Unicode keeps them for a program's own use, so the values of examples, into which
private-use characters find their way from web pages and PDFs, do not hold them."""

_MARKED = re.compile(rf"{OPEN}[^{CLOSE}]*{CLOSE}")
_SHORTEST_VALUE = 64  # characters that a field value keeps when contexts are shortened


@dataclass(frozen=True, slots=True)
class WorkedExample:
    """The inputs of a predictor and the outputs that it should have given.

    Attributes:
        inputs: value by field.
        outputs: value by field.
        row: number of the trainset's row that it comes from; None where that is not known.
    """

    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    row: int | None = field(default=None, compare=False)

    def as_demo(self) -> dict[str, Any]:
        """Inputs and outputs in one dict, as DSPy's demos are."""
        return {**self.inputs, **self.outputs}

    @classmethod
    def of_demo(cls, demo: Mapping[str, Any], signature: type[dspy.Signature]) -> "WorkedExample":
        """A demo of a predictor, without what is no field of it."""
        sides = signature.input_fields, signature.output_fields
        inputs, outputs = ({k: demo[k] for k in side if k in demo} for side in sides)
        return cls(inputs, outputs)


@dataclass(frozen=True, slots=True)
class Slot:
    """One text of a predictor, mostly its instructions, and all that is needed to render it.

    Attributes:
        name: the predictor's name in the program; of another text than instructions its own.
        signature: the predictor's; the text in it is replaced at rendering.
        adapter: the program's adapter.
        examples: worked examples with gold or traced responses.
        demos: the predictor's own demos, which its prompts hold too.
        in_pairs: whether the instructions are stated with the first example alone, before a
            template's further examples; for ``TemplateAdapter``.
        others: the predictor's other texts where they are not the signature's any more, by name.
    """

    name: str
    signature: type[dspy.Signature]
    adapter: dspy.Adapter
    examples: tuple[WorkedExample, ...]
    demos: tuple[Mapping[str, Any], ...] = field(default=())
    in_pairs: bool = False
    others: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def part(self) -> Part:
        """Which text of the program it is."""
        return Part.named(self.name)

    @property
    def own_text(self) -> str:
        """The text that the program came with."""
        return self.part.text_in(self.signature)

    def signature_with(self, text: str) -> type[dspy.Signature]:
        """The predictor's signature with this text, and the others as they are now."""
        signature = self.signature
        for name, other in self.others.items():
            signature = Part.named(name).put(signature, other)
        return self.part.put(signature, text)


def render_messages(
    slot: Slot, instructions: str, examples: Sequence[WorkedExample]
) -> list[Message]:
    """The messages that the adapter sends for the last example, and its response.

    The other examples stand before it as demos, or as turns where the slot is ``in_pairs``. The
    last message is the assistant's: the gold response of the last example.
    """
    if slot.in_pairs and len(examples) > 1:
        return _messages_in_pairs(slot, instructions, examples)
    signature = slot.signature_with(instructions)
    demos = [example.as_demo() for example in examples[:-1]]
    last = examples[-1]
    messages = render_prompt(slot, signature, last.inputs, demos)
    response = render_response(slot, signature, last)
    return [*messages, {"role": "assistant", "content": response}]


def render_prompt(
    slot: Slot,
    signature: type[dspy.Signature],
    inputs: Mapping[str, Any],
    demos: Sequence[Mapping[str, Any]] = (),
) -> list[Message]:
    """The messages that the adapter sends for these inputs, after the slot's demos and others."""
    shown = [dict(demo) for demo in (*slot.demos, *demos)]
    return [_plain(message) for message in slot.adapter.format(signature, shown, dict(inputs))]


def _messages_in_pairs(
    slot: Slot, instructions: str, examples: Sequence[WorkedExample]
) -> list[Message]:
    """The whole template with the first example, and the lines of the fields with the others.

    What is marked stands in the first alone. Each example is a user's and an assistant's turn.
    """
    assert isinstance(slot.adapter, TemplateAdapter), "in_pairs is for templates"
    bare = signature_with(slot.signature, _MARKED.sub("", instructions))
    shown = signature_with(slot.signature, field_lines(slot.adapter.template(bare).text, bare))
    messages = render_messages(replace(slot, demos=()), instructions, examples[:1])
    for example in examples[1:]:
        prompt = slot.adapter.format(shown, [], dict(example.inputs))[-1]
        response = render_response(slot, bare, example)
        messages += [_plain(prompt), {"role": "assistant", "content": response}]
    return messages


def render_response(slot: Slot, signature: type[dspy.Signature], example: WorkedExample) -> str:
    """The gold response of an example as the adapter would have the LM write it.

    Unknown output fields are left out. DSPy's adapters would write None for them, so these are
    shown a signature without them; ``TemplateAdapter`` needs the whole one, to know which name its
    prompt ends with.
    """
    known = signature
    if not isinstance(slot.adapter, TemplateAdapter):
        for name in signature.output_fields:
            if name not in example.outputs:
                known = known.delete(name)
    return slot.adapter.format_assistant_message_content(known, dict(example.outputs)).strip()


def mark_window(instructions: str, window: Window) -> str:
    """Puts the marks around each piece of the window.

    Raises:
        ValueError: the text already holds one of the two marks.
    """
    if OPEN in instructions or CLOSE in instructions:
        raise ValueError(
            "the instructions hold U+FDD0 or U+FDD1, which mark windows: remove these characters"
        )
    fills = [f"{OPEN}{instructions[piece.start : piece.end]}{CLOSE}" for piece in window.pieces]
    return window.splice(instructions, fills)


def is_stated_once(messages: Sequence[Message], window: Window) -> bool:
    """Whether each piece of the window stands in the rendered messages exactly once."""
    return sum(message["content"].count(OPEN) for message in messages) == len(window.pieces)


def indentation(messages: Sequence[Message], instructions: str) -> str:
    """The white space that the adapter put at the start of the instructions' further lines.

    ChatAdapter puts eight spaces.
    """
    lines = inspect.cleandoc(instructions).splitlines()
    if len(lines) < 2:
        return ""
    text = (
        "\n".join(message["content"] for message in messages).replace(OPEN, "").replace(CLOSE, "")
    )
    match = re.search(rf"{re.escape(lines[0])}\n([ \t]*){re.escape(lines[1])}", text)
    return match[1] if match else ""


def ever_smaller(slot: Slot) -> Iterator[tuple[Slot, str]]:
    """The slot itself, then less and less of it, each with what it lost; never the instructions.

    Worked examples are left out first, all but the last one, then demos, and then long values are
    cut. So whoever renders all examples of a slot takes the first that fits.
    """
    yield slot, ""
    while len(slot.examples) > 1:
        slot = replace(slot, examples=slot.examples[1:])
        yield slot, "examples are left out"
    while slot.demos:
        slot = replace(slot, demos=slot.demos[1:])
        yield slot, "the program's demos are left out"
    while shortened := shorten_longest_value(slot.examples, keep=_SHORTEST_VALUE):
        slot = replace(slot, examples=tuple(shortened))
        yield slot, "values are cut"


def shorten_longest_value(
    examples: Sequence[WorkedExample], *, keep: int
) -> list[WorkedExample] | None:
    """Halves the longest value of the examples, as ``shortening.shorter`` does it.

    None where nothing can be made shorter.
    """
    places = [
        (size_of(value), number, part, name)
        for number, example in enumerate(examples)
        for part in ("inputs", "outputs")
        for name, value in getattr(example, part).items()
    ]
    for size, number, part, name in sorted(places, reverse=True):
        if size <= keep:
            return None
        values = dict(getattr(examples[number], part))
        if (value := shorter(values[name], keep=keep)) is not None:
            shortened = list(examples)
            shortened[number] = replace(examples[number], **{part: {**values, name: value}})
            return shortened
    return None


def _plain(message: Mapping[str, Any]) -> Message:
    """A message whose content is text alone; parts of other kinds (images, audio) become a tag."""
    content = message["content"]
    if not isinstance(content, str):
        content = "".join(part.get("text", f"[{part.get('type', 'part')}]") for part in content)
    return {"role": str(message["role"]), "content": content}
