"""Likelihood of responses under an LM behind a server that scores prompt tokens (vLLM)."""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dspy
import openai

from dspy_diffusion_infill.errors import DiffusionInfillError
from dspy_diffusion_infill.scorers.protocol import ScoredPair

_NO_COMPLETION = (
    AttributeError,
    LookupError,
    RecursionError,
    StopIteration,
    TypeError,
    ValueError,
)
"""What comes of an HTTP body that is no chat completion."""


class ServerScorer:
    """Asks the server of a ``dspy.LM`` for the log-probabilities of gold responses.

    The server must be OpenAI-compatible and know vLLM's ``prompt_logprobs``,
    ``add_generation_prompt`` and ``continue_final_message``. It renders the messages itself, so
    prompts are what the program's own calls are. A pair takes three requests that generate one
    token each: one scores the whole conversation, two count the tokens before and after the
    response. The token that ends the turn counts too.

    Args:
        lm: an LM such as ``dspy.LM("hosted_vllm/NAME", api_base="http://host:8000/v1")``.
        num_threads: pairs that are asked for at once, >= 1.

    Raises:
        ValueError: ``lm`` has no ``api_base``, or is no chat LM, or ``num_threads`` is below 1.
    """

    def __init__(self, lm: dspy.LM, *, num_threads: int = 8) -> None:
        base = lm.kwargs.get("api_base") or lm.kwargs.get("base_url")
        if not base or lm.model_type != "chat":
            raise ValueError(
                f"{lm.model} must be a chat LM with the address of its server: "
                "dspy.LM('hosted_vllm/NAME', api_base='http://host:8000/v1')"
            )
        if num_threads < 1:
            raise ValueError(f"num_threads must be at least 1, got {num_threads}")
        key = lm.kwargs.get("api_key") or os.environ.get("OPENAI_API_KEY") or "none"
        self.name = f"{lm.model}@{base}"
        self.num_threads = num_threads
        self._model = lm.model.partition("/")[2]
        self._client = openai.OpenAI(base_url=base, api_key=key)

    def log_likelihoods(self, pairs: Sequence[ScoredPair]) -> list[float]:
        """Log-probability of each response and the end of its turn, in nats; higher is better.

        Raises:
            DiffusionInfillError: the server does not give the log-probabilities of prompts, or
                answers what is no chat completion.
            openai.OpenAIError: it cannot be reached or refuses a request.
        """
        with ThreadPoolExecutor(self.num_threads) as threads:
            return list(threads.map(self._score, pairs))

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    def _score(self, pair: ScoredPair) -> float:
        try:
            return self._asked(pair)
        except _NO_COMPLETION as error:
            raise DiffusionInfillError(
                f"{self.name} answers what is no chat completion of vLLM: {error!r:.200}"
            ) from error

    def _asked(self, pair: ScoredPair) -> float:
        response = pair.response.strip()
        spoken = [*pair.messages, {"role": "assistant", "content": response}]
        closed = {"add_generation_prompt": False}
        start = self._ask(pair.messages)["usage"]["prompt_tokens"]
        end = self._ask(spoken, **closed, continue_final_message=True)["usage"]["prompt_tokens"]
        scored = self._ask(spoken, **closed, prompt_logprobs=0).get("prompt_logprobs")
        if not scored:
            raise DiffusionInfillError(
                f"{self.name} gives no prompt_logprobs: ServerScorer needs vLLM; "
                "with another server use guidance='auto'"
            )
        if not 0 < start <= end <= len(scored):
            raise DiffusionInfillError(
                f"the chat template of {self.name} does not put a response where it asks for one: "
                f"it starts at token {start} and ends at {end} of {len(scored)}"
            )
        return sum(_log_probability(entry) for entry in scored[start : end + 1])

    def _ask(self, messages: Sequence[Mapping[str, str]], **extra: Any) -> dict[str, Any]:
        completion = self._client.chat.completions.create(
            model=self._model,
            messages=[dict(message) for message in messages],  # pyright: ignore[reportArgumentType]
            max_tokens=1,
            extra_body=extra,
        )
        return completion.model_dump()


def _log_probability(entry: Mapping[str, Mapping[str, Any]]) -> float:
    """Of the token that stands in the prompt, the first one listed."""
    return float(next(iter(entry.values()))["logprob"])
