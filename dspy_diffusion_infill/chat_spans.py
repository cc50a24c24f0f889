"""Where the contents of turns, and so a response, stand in a rendered chat.

A chat template writes markers around the contents. Rendered once with a place holder for each
content, it shows these markers; with them every content is found in the rendered text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol
from weakref import WeakKeyDictionary

ChatTurn = tuple[str, str]
"""(role, content)"""
Message = dict[str, str]
"""The same as DSPy and chat templates take it: ``role`` and ``content`` by name."""

_PLACE = "\ue000content\ue001"  # private characters, which no template writes


class ChatRenderer(Protocol):
    """The part of a denoiser that knows the chat template; every ``Denoiser`` is one."""

    def render(self, messages: Sequence[dict[str, str]]) -> str:
        """The messages in the chat template."""
        ...


@dataclass(frozen=True, slots=True)
class ContentSpan:
    """The characters of one turn's content in the rendered text, outer white space left out."""

    role: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class RenderedChat:
    """A chat as text.

    Attributes:
        text: in the chat template.
        spans: of each turn's content, in order.
    """

    text: str
    spans: tuple[ContentSpan, ...]


def render_chat(renderer: ChatRenderer, turns: Sequence[ChatTurn]) -> RenderedChat:
    """Renders the turns and finds their contents; templates may strip what they are given."""
    text = renderer.render([{"role": role, "content": content} for role, content in turns])
    markers = turn_markers(renderer, tuple(role for role, _ in turns))
    spans: list[ContentSpan] = []
    position = len(markers[0])
    for (role, content), marker in zip(turns, markers[1:], strict=True):
        if not text.startswith(content + marker, position):
            content = content.strip()
        start = position + len(content) - len(content.lstrip())
        spans.append(ContentSpan(role, start, start + len(content.strip())))
        position += len(content) + len(marker)
    return RenderedChat(text, tuple(spans))


def render_response(
    renderer: ChatRenderer, messages: Sequence[Mapping[str, str]], response: str
) -> RenderedChat:
    """The messages and an assistant's turn with the response, whose span is the last one."""
    turns = [(message["role"], message["content"]) for message in messages]
    return render_chat(renderer, [*turns, ("assistant", response)])


def tokens_inside(offsets: Sequence[tuple[int, int]], start: int, end: int) -> list[int]:
    """The tokens that lie wholly inside the characters from ``start`` to ``end``."""
    return [k for k, (a, b) in enumerate(offsets) if start <= a and b <= end and b > a]


# By renderer, whose model is freed when nothing else needs it.
_MARKERS: WeakKeyDictionary[ChatRenderer, dict[tuple[str, ...], list[str]]] = WeakKeyDictionary()


def turn_markers(renderer: ChatRenderer, roles: tuple[str, ...]) -> list[str]:
    """What the chat template writes before, between and after the contents of such turns."""
    try:
        known = _MARKERS.setdefault(renderer, {})
    except TypeError:  # a renderer that cannot be hashed, or be referred to weakly
        known = {}
    if roles not in known:
        messages = [{"role": role, "content": _PLACE} for role in roles]
        known[roles] = renderer.render(messages).split(_PLACE)
    return known[roles]
