"""Rows of prompt and response, and their tokens.

A row becomes the token sequence that a dLM meets at run time: the chat template's turns, the last
assistant's turn being the response. Worked examples that share their instructions are put under one
statement of them (``with_worked_examples``, ``with_adapter``), as the optimizer's contexts do.
"""

import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import dspy
from dspy.adapters.base import Adapter

from dspy_diffusion_infill.chat_spans import render_chat, tokens_inside
from dspy_diffusion_infill.contexts import CLOSE, OPEN, mark_window
from dspy_diffusion_infill.denoisers import Encoding
from dspy_diffusion_infill.protection import PLACEHOLDER
from dspy_diffusion_infill.windows import Piece, Window

SEPARATOR = "\n\n"
_TRIMMED = re.compile(r"\S(?:.*\S)?", re.DOTALL)
_MARKED = re.compile(f"{OPEN}(.*?){CLOSE}", re.DOTALL)
ExamplePairs = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Row:
    """One training text.

    Attributes:
        turns: (role, content) pairs as the chat template takes them; a final assistant turn is the
            response.
        instructions: the parts of the turns that an optimizer would rewrite, in their order; empty
            where they are not known.
    """

    turns: tuple[tuple[str, str], ...]
    instructions: tuple[str, ...] = ()

    @property
    def prompt(self) -> str:
        """The last user turn."""
        return next(content for role, content in reversed(self.turns) if role == "user")

    @property
    def response(self) -> str:
        """The final assistant turn; empty where there is none."""
        role, content = self.turns[-1]
        return content if role == "assistant" else ""


def pair(prompt: str, response: str = "", *, instructions: str = "") -> Row:
    """The row of one prompt and, where it is not blank, its response."""
    answer = (("assistant", response.strip()),) if response.strip() else ()
    return Row((("user", prompt), *answer), (instructions,) if instructions else ())


@dataclass(frozen=True, slots=True)
class Group:
    """Instructions and the worked examples that are known for them.

    Attributes:
        instructions: the text that stands once, above the examples.
        examples: (input block up to the answer, answer) pairs.
    """

    instructions: str
    examples: tuple[tuple[str, str], ...]


def group_by_instructions(
    rows: Iterable[Row], *, min_examples: int = 3
) -> tuple[list[Group], list[Row]]:
    """Splits off the rows whose prompts are instructions, a blank line, and worked examples.

    Returns the groups that have ``min_examples`` different examples, and all rows that are in no
    such group; rows with more turns than a prompt and its response are in none.
    """
    members: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        head, separator, _ = row.prompt.partition(SEPARATOR)
        is_pair = [role for role, _ in row.turns] == ["user", "assistant"]
        members[head if separator and is_pair and len(head) < 600 else ""].append(row)
    groups, rest = [], list(members.pop("", []))
    for head, same in members.items():
        examples = {block: answer for row in same for block, answer in _worked_examples(row)}
        if len(examples) >= min_examples and len(same) > 1:
            groups.append(Group(head, tuple(examples.items())))
        else:
            rest.extend(same)
    return groups, rest


def _worked_examples(row: Row) -> Iterator[tuple[str, str]]:
    blocks = row.prompt.split(SEPARATOR)[1:]
    marker = blocks[-1].rsplit("\n", 1)[-1]  # "Output:" or "A:": what stands just before an answer
    for block in blocks[:-1]:
        question, found, answer = block.rpartition("\n" + marker)
        if found and answer.strip():
            yield question + found, answer.strip()
    if marker.endswith(":"):
        yield blocks[-1], row.response.strip()


def with_worked_examples(
    group: Group,
    rng: random.Random,
    *,
    max_examples: int = 6,
    max_chars: int = 1400,
    examples_first: bool = False,
    fits: Callable[[Row], bool] | None = None,
) -> Row:
    """One statement of the instructions and some worked examples; the last answer is the response.

    At least one example stays, whatever its length; further ones as long as all together have
    ``max_chars`` characters, and the row ``fits``. With ``examples_first`` those that are answered
    in the prompt stand before the instructions; the one whose answer is the response follows them
    in any case.
    """

    def row_of(examples: ExamplePairs) -> Row:
        answered = [f"{question} {answer}" for question, answer in examples[:-1]]
        above, below = (answered, []) if examples_first else ([], answered)
        prompt = SEPARATOR.join([*above, group.instructions, *below, examples[-1][0]])
        return pair(prompt, examples[-1][1], instructions=group.instructions)

    return _most_that_fits(row_of, _some_examples(group, rng, max_examples, max_chars), fits)


def with_adapter(
    group: Group,
    rng: random.Random,
    *,
    max_examples: int = 3,
    max_chars: int = 700,
    fits: Callable[[Row], bool] | None = None,
) -> Row:
    """The same as DSPy's ChatAdapter sends it: instructions in the system message, then turns."""
    signature = dspy.make_signature("input -> output", group.instructions)

    def row_of(examples: ExamplePairs) -> Row:
        fields = [{"input": _without_markers(q), "output": a.strip()} for q, a in examples]
        return adapter_row(signature, fields[-1], demos=fields[:-1], adapter=dspy.ChatAdapter())

    return _most_that_fits(row_of, _some_examples(group, rng, max_examples, max_chars), fits)


def adapter_row(
    signature: type[dspy.Signature],
    example: Any,
    *,
    demos: Sequence[Any] = (),
    adapter: Adapter | None = None,
) -> Row:
    """The row of one DSPy example: the adapter's messages, and the gold outputs as it writes them.

    Args:
        signature: names the input and output fields, and has the instructions.
        example: a ``dspy.Example`` or dict with all of those fields.
        demos: examples that are shown before it.
        adapter: ChatAdapter where none is given.
    """
    adapter = adapter or dspy.ChatAdapter()
    inputs = {name: example[name] for name in signature.input_fields}
    outputs = {name: example[name] for name in signature.output_fields}
    marked = signature.with_instructions(_marked(signature.instructions))
    messages = adapter.format(marked, demos=list(demos), inputs=inputs)
    parts = [part for m in messages for part in _MARKED.findall(m["content"])]
    turns = [(m["role"], m["content"].replace(OPEN, "").replace(CLOSE, "")) for m in messages]
    response = adapter.format_assistant_message_content(signature, outputs).strip()
    return Row((*turns, ("assistant", response)), tuple(dict.fromkeys(parts)))


def _marked(instructions: str) -> str:
    """Marks around what is between the placeholders: adapters indent it, and fill those in."""
    placeholders = [match.span() for match in PLACEHOLDER.finditer(instructions)]
    starts = [0, *(end for _, end in placeholders)]
    ends = [*(start for start, _ in placeholders), len(instructions)]
    between = [_TRIMMED.search(instructions, *span) for span in zip(starts, ends, strict=True)]
    pieces = tuple(Piece(*text.span(), 1) for text in between if text and re.search(r"\w", text[0]))
    return mark_window(instructions, Window(pieces))


def _some_examples(
    group: Group, rng: random.Random, max_examples: int, max_chars: int
) -> list[tuple[str, str]]:
    examples = rng.sample(group.examples, min(rng.randint(1, max_examples), len(group.examples)))
    while len(examples) > 1 and sum(len(q) + len(a) for q, a in examples) > max_chars:
        examples.pop()
    return examples


def _most_that_fits(
    row_of: Callable[[ExamplePairs], Row],
    examples: ExamplePairs,
    fits: Callable[[Row], bool] | None,
) -> Row:
    """The row of as many of the examples as fit, in their order, and of one in any case."""
    row = row_of(examples)
    while fits is not None and len(examples) > 1 and not fits(row):
        examples = examples[:-1]
        row = row_of(examples)
    return row


def _without_markers(question: str) -> str:
    """The input alone, without "Input:" or "Q:" before it and "Output:" or "A:" after it."""
    body = question.rsplit("\n", 1)[0]
    head, colon, rest = body.partition(":")
    return rest.strip() if colon and " " not in head.strip() else body.strip()


class TextCoder(Protocol):
    """The half of a denoiser that deals with text; every ``Denoiser`` is one."""

    def encode(self, text: str) -> Encoding:
        """Tokens with character offsets; nothing is added."""
        ...

    def render(self, messages: Sequence[dict[str, str]]) -> str:
        """The messages in the chat template."""
        ...


@dataclass(frozen=True, slots=True)
class TokenizedRow:
    """The tokens of a row, and which of them may be masked.

    Attributes:
        input_ids: the tokens, turn markers included.
        maskable: True for content: text of the turns, and the end-of-turn token of the response.
        is_response: True for the response and its end-of-turn token.
        preferred: token spans of the instructions.
        is_cut: whether the row had more tokens than these.
    """

    input_ids: list[int]
    maskable: list[bool]
    is_response: list[bool]
    preferred: list[tuple[int, int]]
    is_cut: bool = False


def tokenize_row(row: Row, coder: TextCoder, *, max_length: int | None = None) -> TokenizedRow:
    """Renders a row through the chat template and marks content, response and instructions.

    A row over ``max_length`` tokens is cut at its end.
    """
    chat = render_chat(coder, row.turns)
    encoding = coder.encode(chat.text)
    ids, offsets = list(encoding.input_ids[:max_length]), encoding.offsets[:max_length]
    maskable, is_response = [False] * len(ids), [False] * len(ids)
    for number, span in enumerate(chat.spans, start=1):
        last_assistant = span.role == "assistant" and number == len(chat.spans)
        inside = tokens_inside(offsets, span.start, span.end)
        if last_assistant and inside and inside[-1] + 1 < len(ids):
            inside.append(inside[-1] + 1)  # the end-of-turn token counts as response
        for k in inside:
            maskable[k] = k > 0  # a shifted model cannot score the first token
            is_response[k] = last_assistant
    is_cut = len(ids) < len(encoding.input_ids)
    return TokenizedRow(ids, maskable, is_response, _preferred(chat.text, row, offsets), is_cut)


def with_eos_padding(row: TokenizedRow, *, eos_id: int, multiple: int) -> TokenizedRow:
    """The row padded with end-of-text tokens to a multiple of tokens; they count as response.

    In LLaDA's guidelines (arXiv 2502.09992) a response is padded to its batch's longest, and the
    model learns to end it; a fixed multiple keeps a sequence independent of its batch.
    """
    num_padding = -len(row.input_ids) % multiple
    return replace(
        row,
        input_ids=row.input_ids + [eos_id] * num_padding,
        maskable=row.maskable + [True] * num_padding,
        is_response=row.is_response + [True] * num_padding,
    )


def _preferred(text: str, row: Row, offsets: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    spans, position = [], 0
    for part in row.instructions:
        at = text.find(part, position)
        if at >= 0:
            position = at + len(part)
        inside = tokens_inside(offsets, at, at + len(part)) if at >= 0 else []
        if inside:
            spans.append((inside[0], inside[-1] + 1))
    return spans
