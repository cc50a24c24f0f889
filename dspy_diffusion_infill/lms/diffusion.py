"""A masked diffusion LM as the program's LM: prompt, then masks, then the reverse process."""

import functools
import hashlib
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import dspy
from dspy import lm15
from dspy._vendor.lm15.types import StreamEvent

from dspy_diffusion_infill.chat_spans import render_response
from dspy_diffusion_infill.denoisers import load_denoiser
from dspy_diffusion_infill.denoisers.protocol import (
    Algorithm,
    Denoiser,
    Infilled,
    InfillRequest,
    Message,
    Sampling,
)
from dspy_diffusion_infill.lms.batching import Batcher
from dspy_diffusion_infill.lms.chatml import END_OF_TEXT
from dspy_diffusion_infill.lms.engines import (
    AsyncInThread,
    as_stream,
    check_answer_options,
    plain_messages,
    text_response,
)
from dspy_diffusion_infill.value_checks import check_whole

MAX_BATCH = 8
"""Calls that are answered together, at most, where nothing else is said."""
_ANSWER = "\ue000"  # stands where the answer is going to stand


def diffusion_lm(
    denoiser: Denoiser | str | None = None,
    *,
    max_tokens: int = 128,
    steps: int = 128,
    block_length: int | None = None,
    algorithm: Algorithm | None = None,
    temperature: float | None = None,
    cache: bool = True,
    max_batch: int = MAX_BATCH,
) -> dspy.LM:
    """A masked diffusion LM as a ``dspy.LM``.

    Calls of several threads (``dspy.Evaluate``, ``dspy.Parallel``) are answered together: each step
    of the reverse process is one forward pass over all of them on a GPU, and a sample does not
    depend on the calls beside it, up to the rounding of the dtype.

    The k-th time that a request arrives it gets its k-th sample, so that programs repeat, and
    DSPy's ``rollout_id`` with a temperature above 0 gives fresh samples. A ``seed`` in the call
    decides the sample alone.

    Args:
        denoiser: a denoiser, or what ``load_denoiser`` takes. A program can be saved with this LM
            where it is a name.
        max_tokens: masks that are put after the prompt, >= 1: the longest answer. It is the cost,
            too: shorter answers take as long.
        steps: reverse-process steps, >= 1.
        block_length: masks that are filled before those that follow, >= 1; None is all at once.
        algorithm: which tokens are unmasked first; None is the denoiser's own.
        temperature: of the draw; None is the denoiser's own, 0 is greedy.
        cache: whether DSPy keeps the answers.
        max_batch: calls that are answered together at most, >= 1; it bounds the memory. 1 answers
            them one by one. As many threads have to call as are to be answered together.

    Raises:
        TypeError: an option is of another type.
        ValueError: an option is out of its range.
        DenoiserError: the denoiser cannot be loaded.
    """
    options = DiffusionOptions(steps=steps, block_length=block_length, algorithm=algorithm)
    options.sampling(temperature, None)
    check_answer_options(max_tokens, temperature or 0)
    check_whole("max_batch", max_batch, least=1)
    if isinstance(denoiser, str) or denoiser is None:
        loaded, load_name = _loaded(denoiser or ""), denoiser or ""
    else:
        loaded, load_name = denoiser, None
    engine = DiffusionEngine(loaded, options, load_name=load_name, max_batch=max_batch)
    return dspy.LM(
        engine.name,
        engine=engine,
        async_engine=AsyncDiffusionEngine(engine),
        max_tokens=max_tokens,
        temperature=temperature,
        cache=cache,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffusionOptions:
    """How answers are generated, besides what a call says."""

    steps: int = 128
    block_length: int | None = None
    algorithm: Algorithm | None = None

    def __post_init__(self) -> None:
        self.sampling(None, None)

    def sampling(self, temperature: float | None, top_p: float | None) -> Sampling:
        """The sampling of a call; special tokens may be drawn, since one of them ends the turn."""
        return Sampling(
            steps=self.steps,
            block_length=self.block_length,
            algorithm=self.algorithm,
            temperature=temperature,
            top_p=top_p,
            forbid_special=False,
        )


class DiffusionEngine:
    """Answers requests of ``dspy.LM`` with a denoiser; copies are the engine itself.

    Attributes:
        denoiser: the model.
        options: how it generates.
        load_name: what ``load_denoiser`` loads it from, empty for the default one; None where it
            was handed in.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        options: DiffusionOptions,
        *,
        load_name: str | None = None,
        max_batch: int = MAX_BATCH,
    ) -> None:
        self.denoiser, self.options, self.load_name = denoiser, options, load_name
        self._infill = Batcher(functools.partial(_infill_batch, denoiser), max_batch)
        self._times_asked: Counter[bytes] = Counter()
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """Model and options: what an answer depends on besides the request."""
        given = {key: value for key, value in asdict(self.options).items() if value is not None}
        return "/".join(["diffusion", self.denoiser.name, *(f"{k}={v}" for k, v in given.items())])

    def __deepcopy__(self, memo: dict[int, Any]) -> "DiffusionEngine":
        return self

    def complete(self, request: lm15.Request) -> lm15.Response:
        """Answers one request.

        Raises:
            dspy.lm15.ContextLengthError: prompt and ``max_tokens`` do not fit the context.
            dspy.lm15.UnsupportedFeatureError: the request is not plain text.
        """
        config = request.config
        num_masks = config.max_tokens or 128
        prompt, end_ids = self._prompt(plain_messages(request))
        if len(prompt) + num_masks > self.denoiser.context_length:
            raise lm15.ContextLengthError(
                f"{len(prompt)} tokens and max_tokens={num_masks} do not fit the "
                f"{self.denoiser.context_length} of {self.denoiser.name}: "
                "shorten the prompt or lower max_tokens"
            )
        masked = InfillRequest([*prompt, *[self.denoiser.mask_id] * num_masks], self._seed(request))
        sampling = self.options.sampling(config.temperature, config.top_p)
        infilled = self._infill((masked, sampling))
        answer = list(infilled.input_ids[len(prompt) :])
        num_tokens = next((k for k, id_ in enumerate(answer) if id_ in end_ids), len(answer))
        text = self.denoiser.decode(answer[:num_tokens])
        cut = min((at for stop in config.stop if (at := text.find(stop)) >= 0), default=len(text))
        return text_response(
            request,
            text[:cut].strip(),
            is_complete=num_tokens < len(answer) or cut < len(text),
            input_tokens=len(prompt),
            output_tokens=num_tokens,
        )

    def stream(self, request: lm15.Request) -> Iterator[StreamEvent]:
        """The whole answer as one piece."""
        return as_stream(self.complete(request))

    def close(self) -> None:
        """Nothing: the denoiser is borrowed."""

    def dump_state(self) -> dict[str, Any]:
        """What ``load_state`` needs.

        Raises:
            TypeError: the denoiser was handed in as an object.
        """
        if self.load_name is None:
            raise TypeError(
                f"an LM over the denoiser object {self.denoiser.name} cannot be saved: give "
                "diffusion_lm the name or folder that it is loaded from"
            )
        options, max_batch = asdict(self.options), self._infill.max_batch
        return {"load_name": self.load_name, "options": options, "max_batch": max_batch}

    @classmethod
    def load_state(cls, state: dict[str, Any]) -> "DiffusionEngine":
        """The engine of a saved program; loads the denoiser."""
        name = state["load_name"]
        options = DiffusionOptions(**state["options"])
        max_batch = state.get("max_batch", MAX_BATCH)  # older files have none
        return cls(_loaded(name), options, load_name=name, max_batch=max_batch)

    def _prompt(self, messages: list[Message]) -> tuple[tuple[int, ...], set[int]]:
        """The tokens up to the answer, and those that end it: end of turn, end of text."""
        chat = render_response(self.denoiser, messages, _ANSWER)
        before, after = chat.text[: chat.spans[-1].start], chat.text[chat.spans[-1].end :]
        end_of_turn = self.denoiser.encode(after.strip()).input_ids[:1]
        end_of_text = self.denoiser.encode(END_OF_TEXT).input_ids
        ends = {*end_of_turn, *(end_of_text if len(end_of_text) == 1 else ())}
        return self.denoiser.encode(before).input_ids, ends

    def _seed(self, request: lm15.Request) -> int:
        if request.config.seed is not None:
            return request.config.seed
        asked = repr((request.system, request.messages, request.config)).encode()
        key = hashlib.blake2b(asked, digest_size=8).digest()
        with self._lock:
            self._times_asked[key] += 1
            number = self._times_asked[key]
        return (int.from_bytes(key, "big") + number) % 2**63


@functools.cache
def _loaded(name: str) -> Denoiser:
    """One model in memory for all engines over it."""
    return load_denoiser(name or None)


class AsyncDiffusionEngine(AsyncInThread):
    """``DiffusionEngine`` for ``dspy.LM.acall``."""

    engine: DiffusionEngine

    def dump_state(self) -> dict[str, Any]:
        """What ``load_state`` needs."""
        return self.engine.dump_state()

    @classmethod
    def load_state(cls, state: dict[str, Any]) -> "AsyncDiffusionEngine":
        """The engine of a saved program; loads the denoiser."""
        return cls(DiffusionEngine.load_state(state))


def _infill_batch(
    denoiser: Denoiser, asked: Sequence[tuple[InfillRequest, Sampling]]
) -> list[Infilled]:
    """Fills the masks of a batch, in its order; calls of one sampling go together.

    No method: a batcher that held its engine would keep a denoiser of 16 GB in memory.
    """
    infilled: dict[int, Infilled] = {}
    for sampling in dict.fromkeys(own for _, own in asked):
        numbers = [k for k, (_, own) in enumerate(asked) if own == sampling]
        results = denoiser.infill([asked[k][0] for k in numbers], sampling)
        infilled.update(zip(numbers, results, strict=True))
    return [infilled[k] for k in range(len(asked))]
