"""How SmolLM2 is asked: one rendering for the server that answers and the scorer that judges.

Light: no torch.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

PromptFormat = Literal["chat", "cued", "completion"]
PROMPT_FORMATS: tuple[PromptFormat, ...] = get_args(PromptFormat)
DEFAULT_FORMAT: PromptFormat = "cued"
"""With "chat" it answers in sentences. On 144 training rows of the 12 instruction-induction tasks
(12 each, the first human instruction), "chat" was right 6 times, "cued" 19 and "completion" 3."""

SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
"""The system message that SmolLM2's own chat template puts before a conversation without one."""

END_OF_TURN = "<|im_end|>"
END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True, slots=True)
class Rendered:
    """A prompt as text.

    Attributes:
        text: what the LM continues.
        joint: what it writes between ``text`` and its answer.
        stop: the answer ends before this text, besides at the end of the turn; empty for none.
    """

    text: str
    joint: str = ""
    stop: str = ""


def render(messages: Sequence[Mapping[str, str]], prompt_format: PromptFormat) -> Rendered:
    r"""The messages as the LM meets them.

    * ``chat``: SmolLM2's chat template.
    * ``cued``: the same, but a last line that ends with a colon ("Output:") is taken out of the
      user's turn and begins the assistant's. The answer is the rest of that line, unless the prompt
      shows, after the same cue, an answer that goes on in the next line. Prompts that end without
      a cue are as in ``chat``.
    * ``completion``: the bare texts, a blank line between two; the answer is the rest of the line.

    Raises:
        ValueError: there is no message, or ``prompt_format`` is none of the three.
    """
    if not messages:
        raise ValueError("messages must hold at least one message, got none")
    if prompt_format not in PROMPT_FORMATS:
        raise ValueError(f"prompt_format must be one of {PROMPT_FORMATS}, got {prompt_format!r}")
    if prompt_format == "completion":
        text = "\n\n".join(message["content"] for message in messages)
        return Rendered(text, _joint(text), stop="\n")
    last = messages[-1]
    body, _, cue = last["content"].rpartition("\n")
    if prompt_format == "chat" or last["role"] != "user" or not (body and cue.endswith(":")):
        return Rendered(_chat(messages))
    shows_more = re.search(rf"^{re.escape(cue)}.*\n(?=\S)", body, re.MULTILINE)
    text = _chat([*messages[:-1], {**last, "content": body}]) + cue
    return Rendered(text, " ", stop="" if shows_more else "\n")


def _chat(messages: Sequence[Mapping[str, str]]) -> str:
    turns = list(messages)
    if turns[0]["role"] != "system":
        turns.insert(0, {"role": "system", "content": SYSTEM})
    text = "".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in turns)
    return text + "<|im_start|>assistant\n"


def _joint(text: str) -> str:
    return "" if text[-1:].isspace() else " "
