"""Stand-ins whose behaviour a test can force: denoisers of words or characters, a rule as an LM."""

import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import dspy
from dspy._vendor.lm15.types import StreamEvent
from dspy.lm15 import Message, Response, TextPart, Usage

from dspy_diffusion_infill.denoisers import (
    Encoding,
    Infilled,
    InfillRequest,
    Sampling,
    ScoreRequest,
)
from dspy_diffusion_infill.lms.engines import AsyncInThread, as_stream

LEFT_TO_RIGHT = {"order": "left_to_right"}
"""The paper's order, which tries each proposal once and ends: what a test can foretell."""


@dataclass
class WordDenoiser:
    """Its tokens are words with the white space before them; masks are filled from ``words``."""

    words: Sequence[str] = ("say", "only", "one", "word", "please", "now", "with", "care")
    context_length: int = 2000
    name: str = "word-denoiser"
    mask_id: int = -1
    num_passes: int = 0
    vocabulary: dict[str, int] = field(default_factory=dict)
    seen: list[str] = field(default_factory=list)

    def encode(self, text: str) -> Encoding:
        found = list(re.finditer(r"\s*[^\s]+|\s+", text))
        ids = tuple(self.vocabulary.setdefault(m[0], len(self.vocabulary)) for m in found)
        return Encoding(ids, tuple(m.span() for m in found))

    def num_tokens(self, text: str) -> int:
        """With every mask as one token."""
        return len(self.encode(text.replace("<MASK>", "")).input_ids) + text.count("<MASK>")

    def decode(self, input_ids: Sequence[int]) -> str:
        texts = {number: text for text, number in self.vocabulary.items()}
        return "".join(texts.get(number, "<MASK>") for number in input_ids)

    def render(self, messages: Sequence[dict[str, str]]) -> str:
        return "".join(f"<{m['role']}>\n{m['content']}\n" for m in messages)

    def infill(self, requests: Sequence[InfillRequest], sampling: Sampling) -> list[Infilled]:
        results = []
        for request in requests:
            self.seen.append(self.decode(list(request.input_ids)))
            rng, ids = random.Random(request.seed), []
            for token in request.input_ids:
                if token == self.mask_id:
                    word = " " + rng.choice(self.words)
                    token = self.vocabulary.setdefault(word, len(self.vocabulary))
                ids.append(token)
            self.num_passes += 1
            results.append(Infilled(tuple(ids), 0.5, 1))
        return results

    def score(self, requests: Sequence[ScoreRequest]) -> list[tuple[float, ...]]:
        return [tuple(-1.0 for _ in request.targets) for request in requests]


class CharacterDenoiser:
    """The text of a denoiser with one token a character; "$" is the end of a turn."""

    mask_id, num_passes = 0, 0

    def encode(self, text: str) -> Encoding:
        return Encoding(tuple(map(ord, text)), tuple((k, k + 1) for k in range(len(text))))

    def decode(self, input_ids: Iterable[int]) -> str:
        return "".join(map(chr, input_ids))

    def render(self, messages: Sequence[dict[str, str]]) -> str:
        return "".join(f"<{m['role']}>{m['content']}$\n" for m in messages)


class RuleEngine:
    """Answers a prompt by a function of its text, and counts the calls."""

    def __init__(self, rule: Callable[[str], str]) -> None:
        self.rule, self.prompts = rule, []

    def complete(self, request) -> Response:
        parts = [part for message in request.messages for part in message.parts]
        texts = [part.text for part in parts if isinstance(part, TextPart)]
        text = "\n".join([str(request.system or ""), *texts])
        self.prompts.append(text)
        return Response(
            id=None,
            model="rule",
            message=Message.assistant([TextPart(self.rule(text))]),
            finish_reason="stop",
            usage=Usage(input_tokens=1, output_tokens=1, total_tokens=2),
        )

    def stream(self, request) -> Iterator[StreamEvent]:
        return as_stream(self.complete(request))

    def __deepcopy__(self, memo) -> "RuleEngine":
        return self

    def close(self) -> None:
        pass


def rule_lm(rule: Callable[[str], str]) -> tuple[dspy.LM, RuleEngine]:
    engine = RuleEngine(rule)
    options = {"async_engine": AsyncInThread(engine), "cache": False, "num_retries": 0}
    return dspy.LM("test/rule", engine=engine, **options), engine


@dataclass
class WordCountScorer:
    """Gold responses are likelier the more of ``good`` the prompt holds."""

    good: Sequence[str] = ("only",)
    name: str = "word-count"

    def log_likelihoods(self, pairs) -> list[float]:
        texts = ["\n".join(m["content"] for m in pair.messages) for pair in pairs]
        return [sum(text.count(word) for word in self.good) - 10.0 for text in texts]
