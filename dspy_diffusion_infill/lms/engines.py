"""What this package's engines for ``dspy.LM`` share: requests to plain text and back. Light."""

import asyncio
import math
from collections.abc import AsyncIterator, Iterator
from typing import Any, Protocol

from dspy import lm15
from dspy._vendor.lm15.types import StreamEvent
from dspy.clients.engines.base import validate_request

from dspy_diffusion_infill.value_checks import check_whole


class Engine(Protocol):
    """The part of ``dspy.clients.engines.base.Engine`` that is ours to write."""

    def complete(self, request: lm15.Request) -> lm15.Response:
        """Answers one request."""
        ...


def check_answer_options(max_tokens: Any, temperature: Any) -> None:
    """Raises TypeError or ValueError unless an answer can have this length and temperature."""
    check_whole("max_tokens", max_tokens, least=1)
    if isinstance(temperature, bool) or not isinstance(temperature, int | float):
        raise TypeError(f"temperature must be a number, got temperature={temperature!r}")
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature must be 0 or more, got temperature={temperature}")


class AsyncInThread:
    """The async counterpart that ``dspy.LM`` asks for: the same engine, in a thread."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    async def complete(self, request: lm15.Request) -> lm15.Response:
        """Answers one request without blocking the event loop."""
        return await asyncio.to_thread(self.engine.complete, request)

    async def stream(self, request: lm15.Request) -> AsyncIterator[StreamEvent]:
        """The whole answer as one piece."""
        for event in lm15.response_to_events(await self.complete(request)):
            yield event

    async def aclose(self) -> None:
        """Nothing to close: engines are borrowed."""


def as_stream(response: lm15.Response) -> Iterator[StreamEvent]:
    """The whole answer as one piece."""
    return lm15.response_to_events(response)


def plain_messages(request: lm15.Request) -> list[dict[str, str]]:
    """The request as dicts of ``role`` and ``content``, the system message first.

    Raises:
        dspy.lm15.UnsupportedFeatureError: it asks for tools, a response format or
            log-probabilities, or holds other parts than text.
    """
    validate_request(request)
    config = request.config
    asked = {
        "tools": request.tools,
        "response_format": config.response_format,
        "logprobs": config.logprobs is not None,
    }
    for feature, value in asked.items():
        if value:
            raise _unsupported(feature)
    messages = []
    if request.system is not None:
        messages.append({"role": "system", "content": _text(request.system)})
    for message in request.messages:
        role = {"developer": "system"}.get(message.role, message.role)
        if role == "tool":
            raise _unsupported("tool messages")
        messages.append({"role": role, "content": _text(message.parts)})
    return messages


def text_response(
    request: lm15.Request, text: str, *, is_complete: bool, input_tokens: int, output_tokens: int
) -> lm15.Response:
    """An answer; ``is_complete`` is False where it was cut at ``max_tokens``."""
    return lm15.Response(
        id=None,
        model=request.model,
        message=lm15.Message.assistant([lm15.TextPart(text)]),
        finish_reason="stop" if is_complete else "length",
        usage=lm15.Usage(input_tokens=input_tokens, output_tokens=output_tokens),
    )


def _text(parts: Any) -> str:
    if isinstance(parts, str):
        return parts
    for part in parts:
        if not isinstance(part, lm15.TextPart):
            raise _unsupported(f"{type(part).__name__} in messages")
    return "".join(part.text for part in parts)


def _unsupported(feature: str) -> lm15.UnsupportedFeatureError:
    return lm15.UnsupportedFeatureError(f"this in-process LM takes plain text only, not {feature}")
