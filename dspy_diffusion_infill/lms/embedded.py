"""The embedded task LM behind ``dspy.LM``."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import dspy
from dspy import lm15
from dspy._vendor.lm15.types import StreamEvent

from dspy_diffusion_infill.lms.chatml import (
    DEFAULT_FORMAT,
    PROMPT_FORMATS,
    PromptFormat,
    render,
)
from dspy_diffusion_infill.lms.engines import (
    AsyncInThread,
    as_stream,
    check_answer_options,
    plain_messages,
    text_response,
)
from dspy_diffusion_infill.lms.server import pool, revision
from dspy_diffusion_infill.value_checks import broken_character

LONGEST_TOKEN, VOCABULARY = 81, 49152
"""Of SmolLM2's tokenizer: the characters of its longest token, and its tokens."""


def embedded_lm(
    *,
    prompt_format: PromptFormat = DEFAULT_FORMAT,
    max_tokens: int = 32,
    temperature: float = 0.0,
    context_length: int = 2048,
    cache: bool = True,
) -> dspy.LM:
    """SmolLM2-135M-Instruct as a ``dspy.LM``: in this process, on the CPU, without network.

    The same prompt gets the same answer at temperature 0, whatever else runs beside it. At higher
    temperatures every call is a new sample, unless it has a ``seed``.

    Args:
        prompt_format: how messages become text (``denoisers.chatml.render``).
        max_tokens: where answers are cut, >= 1; a call may say otherwise.
        temperature: 0 is greedy; a call may say otherwise.
        context_length: tokens of prompt and answer together, in 1..8192, rounded up to the next
            256; 2048 tokens take 47 MB a server.
        cache: whether DSPy keeps the answers.

    Raises:
        MissingDependencyError: ``xllamacpp`` or the weights are not installed; the message has the
            commands.
        TypeError: an option is of another type.
        ValueError: an option is out of its range.
    """
    check_answer_options(max_tokens, temperature)
    engine = EmbeddedEngine(prompt_format=prompt_format, context_length=context_length)
    return dspy.LM(
        f"embedded/{revision()}/{prompt_format}",
        engine=engine,
        async_engine=AsyncEmbeddedEngine(engine),
        max_tokens=max_tokens,
        temperature=temperature,
        cache=cache,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedEngine:
    """Answers requests of ``dspy.LM`` with the servers of this process.

    It holds options only, so copies are free and share the servers.
    """

    prompt_format: PromptFormat = DEFAULT_FORMAT
    context_length: int = 2048

    def __post_init__(self) -> None:
        if self.prompt_format not in PROMPT_FORMATS:
            raise ValueError(
                f"prompt_format must be one of {PROMPT_FORMATS}, got {self.prompt_format!r}"
            )
        if not 1 <= self.context_length <= 8192:
            raise ValueError(f"context_length must be in 1..8192, got {self.context_length}")

    def complete(self, request: lm15.Request) -> lm15.Response:
        """Answers one request.

        Raises:
            dspy.lm15.ContextLengthError: prompt and answer do not fit the context.
            dspy.lm15.InvalidRequestError: a text is cut inside a character.
            dspy.lm15.UnsupportedFeatureError: the request is not plain text.
        """
        prompt = render(plain_messages(request), self.prompt_format)
        if len(prompt.text) > self._longest_prompt():
            raise _too_long(f"a prompt of {len(prompt.text)} characters exceeds the context")
        body = _body(request.config, prompt.text, prompt.stop, self.context_length)
        with pool(self.context_length).server() as server:
            answer = server.handle_completions(body)
        if "error" in answer:
            raise _error(answer["error"])
        choice, usage = answer["choices"][0], answer["usage"]
        return text_response(
            request,
            choice["text"].strip(),
            is_complete=choice["finish_reason"] == "stop",
            input_tokens=usage["prompt_tokens"],
            output_tokens=usage["completion_tokens"],
        )

    def stream(self, request: lm15.Request) -> Iterator[StreamEvent]:
        """The whole answer as one piece."""
        return as_stream(self.complete(request))

    def _longest_prompt(self) -> int:
        """Characters above which no prompt fits, whatever it says.

        Such a prompt is refused before it is cut into tokens, which takes 2 s for 1 MB.
        """
        return (self.context_length + 256) * LONGEST_TOKEN

    def close(self) -> None:
        """Nothing: the servers are the process's."""

    def dump_state(self) -> dict[str, Any]:
        """What ``load_state`` needs."""
        return asdict(self)

    @classmethod
    def load_state(cls, state: dict[str, Any]) -> "EmbeddedEngine":
        """The engine of a saved program."""
        return cls(**state)


class AsyncEmbeddedEngine(AsyncInThread):
    """``EmbeddedEngine`` for ``dspy.LM.acall``."""

    engine: EmbeddedEngine

    def dump_state(self) -> dict[str, Any]:
        """What ``load_state`` needs."""
        return self.engine.dump_state()

    @classmethod
    def load_state(cls, state: dict[str, Any]) -> "AsyncEmbeddedEngine":
        """The engine of a saved program."""
        return cls(EmbeddedEngine.load_state(state))


def _body(config: lm15.Config, prompt: str, stop: str, context_length: int) -> dict[str, Any]:
    """The request in llama.cpp's terms. What the config leaves open keeps the server's default.

    llama.cpp reads whole numbers as 32 bits, so that a larger one would be another, or negative.

    Raises:
        dspy.lm15.InvalidRequestError: a text is cut inside a character.
    """
    for text in (prompt, *config.stop):
        if broken := broken_character(text):
            raise lm15.InvalidRequestError(f"{text!r:.60} {broken}")
    asked = {
        "top_p": config.top_p,
        "top_k": config.top_k and min(config.top_k, VOCABULARY),
        "seed": config.seed and config.seed % 2**32,
        "frequency_penalty": config.frequency_penalty,
        "presence_penalty": config.presence_penalty,
        "max_tokens": config.max_tokens and min(config.max_tokens, context_length + 256),
    }
    return {
        "prompt": prompt,
        "temperature": config.temperature or 0.0,
        "stop": [*config.stop, *([stop] if stop else [])],
        **{name: value for name, value in asked.items() if value is not None},
    }


def _error(error: dict[str, Any]) -> lm15.LM15Error:
    if error.get("type") == "exceed_context_size_error":
        return _too_long(error["message"])
    return lm15.InvalidRequestError(str(error.get("message", error)))


def _too_long(what: str) -> lm15.ContextLengthError:
    return lm15.ContextLengthError(
        f"{what}: shorten the prompt or give embedded_lm(context_length=...)"
    )
