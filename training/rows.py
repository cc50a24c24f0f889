"""Rows of prompt and response, and their tokens.

A row becomes the token sequence that a dLM meets at run time: the chat template's user turn, then the response as the
assistant's turn. Worked examples that share their instruction are put under one statement of it (``with_worked_examples``),
as the optimizer's contexts do.
"""

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import dspy
from transformers import PreTrainedTokenizerBase

SEPARATOR = "\n\n"


@dataclass(frozen=True, slots=True)
class Row:
    """One training text.

    Attributes:
        turns: (role, content) pairs as the chat template takes them; a final assistant turn is the response.
        instructions: the part of the turns that an optimizer would rewrite; empty where it is not known.
    """

    turns: tuple[tuple[str, str], ...]
    instructions: str = ""

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
    return Row((("user", prompt), *answer), instructions)


@dataclass(frozen=True, slots=True)
class TokenizedRow:
    """The tokens of a row, and which of them may be masked.

    Attributes:
        input_ids: the tokens, turn markers included.
        maskable: True for content: text of the turns, and the end-of-turn token of the response.
        is_response: True for the response and its end-of-turn token.
        preferred: token spans of the instructions.
    """

    input_ids: list[int]
    maskable: list[bool]
    is_response: list[bool]
    preferred: list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Group:
    """An instruction and the worked examples that are known for it: (input block up to the answer, answer)."""

    instructions: str
    examples: tuple[tuple[str, str], ...]


def group_by_instructions(rows: Iterable[Row], *, min_examples: int = 3) -> tuple[list[Group], list[Row]]:
    """Splits off the rows whose prompts are an instruction, a blank line, and one or more worked examples.

    Returns the groups that have ``min_examples`` different examples, and all rows that are in no such group.
    """
    members: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        head, separator, _ = row.prompt.partition(SEPARATOR)
        members[head if separator and row.response and len(head) < 600 else ""].append(row)
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


def with_worked_examples(group: Group, rng: random.Random, *, max_examples: int = 6, max_chars: int = 1400) -> Row:
    """One statement of the instructions and some worked examples; the last answer is the response."""
    examples = rng.sample(group.examples, min(rng.randint(1, max_examples), len(group.examples)))
    while len(examples) > 1 and sum(len(q) + len(a) for q, a in examples) > max_chars:
        examples.pop()
    blocks = [f"{question} {answer}" for question, answer in examples[:-1]] + [examples[-1][0]]
    prompt = SEPARATOR.join([group.instructions, *blocks])
    return pair(prompt, examples[-1][1], instructions=group.instructions)


def with_adapter(group: Group, rng: random.Random, *, max_examples: int = 3, max_chars: int = 700) -> Row:
    """The same as DSPy's ChatAdapter sends it: instructions in the system message, worked examples as turns."""
    signature = dspy.Signature("input -> output", group.instructions)
    examples = rng.sample(group.examples, min(rng.randint(1, max_examples), len(group.examples)))
    while len(examples) > 1 and sum(len(q) + len(a) for q, a in examples) > max_chars:
        examples.pop()
    fields = [{"input": _without_markers(q), "output": a.strip()} for q, a in examples]
    adapter = dspy.ChatAdapter()
    messages = adapter.format(signature, demos=fields[:-1], inputs={"input": fields[-1]["input"]})
    turns = tuple((message["role"], message["content"]) for message in messages)
    response = adapter.format_assistant_message_content(signature, {"output": fields[-1]["output"]})
    return Row((*turns, ("assistant", response)), group.instructions)


def _without_markers(question: str) -> str:
    """The input alone, without the "Input:" or "Q:" before it and the "Output:" or "A:" after it."""
    body = question.rsplit("\n", 1)[0]
    head, colon, rest = body.partition(":")
    return rest.strip() if colon and " " not in head.strip() else body.strip()


def tokenize_row(row: Row, tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> TokenizedRow:
    """Renders a row through the chat template and marks content, response and instructions on its tokens.

    A row over ``max_length`` tokens is cut at its end.
    """
    messages = [{"role": role, "content": content} for role, content in row.turns]
    text = str(tokenizer.apply_chat_template(messages, tokenize=False))
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids: list[int] = encoded["input_ids"][:max_length]
    offsets: Sequence[tuple[int, int]] = encoded["offset_mapping"][:max_length]
    maskable, is_response = [False] * len(ids), [False] * len(ids)
    spans = list(_content_spans(text, row.turns))
    for number, (role, start, end) in enumerate(spans, start=1):
        last_assistant = role == "assistant" and number == len(spans)
        inside = _tokens_inside(offsets, start, end)
        if last_assistant and inside and inside[-1] + 1 < len(ids):
            inside.append(inside[-1] + 1)  # the end-of-turn token counts as response
        for k in inside:
            maskable[k] = k > 0
            is_response[k] = last_assistant
    preferred = []
    if row.instructions and (at := text.find(row.instructions)) >= 0:
        inside = _tokens_inside(offsets, at, at + len(row.instructions))
        preferred = [(inside[0], inside[-1] + 1)] if inside else []
    return TokenizedRow(ids, maskable, is_response, preferred)


def _tokens_inside(offsets: Sequence[tuple[int, int]], start: int, end: int) -> list[int]:
    return [k for k, (a, b) in enumerate(offsets) if start <= a and b <= end and b > a]


def _content_spans(text: str, turns: Sequence[tuple[str, str]]) -> Iterator[tuple[str, int, int]]:
    position = 0
    for role, content in turns:
        start = text.index(content.strip(), position)  # some templates strip a turn's content
        position = start + len(content.strip())
        yield role, start, position
