"""A denoiser in other processes: of ``dspy-infill serve``, or of a Ray cluster."""

import functools
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from pydantic import ValidationError

from dspy_diffusion_infill.denoisers.protocol import (
    Encoding,
    Infilled,
    InfillRequest,
    Message,
    Sampling,
    ScoreRequest,
)
from dspy_diffusion_infill.denoisers.remote.wire import (
    VERSION,
    Answer,
    DecodeCall,
    EncodeCall,
    Facts,
    InfillCall,
    RenderCall,
    ScoreCall,
    ToInfill,
    ToScore,
    Turn,
)
from dspy_diffusion_infill.errors import DenoiserError
from dspy_diffusion_infill.value_checks import broken_character, first_problem

ITEMS_PER_REQUEST = 64
"""More are asked for in several requests, so that none is too large for a server."""

TEXTS_KEPT = 256
"""A search asks for the tokens of a text, and for a rendered chat, more than once."""

Result = TypeVar("Result")


class Servers(Protocol):
    """Who has the denoiser: ``Replicas`` behind HTTP, ``RayReplicas`` of a cluster."""

    def __len__(self) -> int:
        """How many parts a call is worth dividing into now, >= 1."""
        ...

    def facts(self) -> Sequence[tuple[str, bytes]]:
        """(who, its ``Facts``) of those that answer, at least one."""
        ...

    def ask(self, work: str, body: bytes) -> bytes:
        """The answer to one request, from whichever gives it."""
        ...

    def close(self) -> None:
        """Gives back what is held."""
        ...


class RemoteDenoiser:
    """Implements ``Denoiser``; made by ``load_denoiser``. Safe to call from several threads.

    Its results are those of the denoiser that is served, by seed, whichever server gives them.

    Attributes:
        name: the served denoiser's, so that journals of both are the same.
        context_length: tokens that fit.
        mask_id: the mask's.

    Args:
        servers: of the same denoiser. They are closed with this object, or where it cannot be
            made.

    Raises:
        DenoiserError: no server answers, the token is wrong, a server is of another version, or
            two serve different denoisers.
    """

    def __init__(self, servers: Servers) -> None:
        self._servers = servers
        try:
            facts = _agreed(servers.facts())
        except BaseException:
            self.close()
            raise
        self.name, self.mask_id = facts.name, facts.mask_id
        self.context_length = facts.context_length
        self._encoded = functools.lru_cache(TEXTS_KEPT)(self._encode)
        self._rendered = functools.lru_cache(TEXTS_KEPT)(self._render)
        self._num_passes = 0
        self._lock = threading.Lock()

    @property
    def num_passes(self) -> int:
        """Forward passes of the batches that requests of this object were part of."""
        return self._num_passes

    def encode(self, text: str) -> Encoding:
        """As ``Denoiser.encode``.

        Raises:
            ValueError: the text holds half of a surrogate pair, which no encoding has.
        """
        return self._encoded(_whole(text))

    def decode(self, input_ids: Sequence[int]) -> str:
        """As ``Denoiser.decode``."""
        ids = [int(k) for k in input_ids]
        return self._ask("decode", DecodeCall(denoiser=self.name, items=[ids]), str)[0]

    def render(self, messages: Sequence[Message]) -> str:
        """As ``Denoiser.render``.

        Raises:
            DenoiserError: the template refuses the messages.
            ValueError: a message holds half of a surrogate pair.
        """
        return self._rendered(tuple((one["role"], _whole(one["content"])) for one in messages))

    def infill(self, requests: Sequence[InfillRequest], sampling: Sampling) -> list[Infilled]:
        """As ``Denoiser.infill``; the requests are spread over the servers.

        Raises:
            ContextTooLongError: a request has more tokens than ``context_length``.
            DenoiserError: no server answers, also after several tries.
        """
        items = [ToInfill.of(request) for request in requests]
        call = InfillCall(denoiser=self.name, items=items, sampling=sampling)
        return self._spread("infill", call, Infilled)

    def score(self, requests: Sequence[ScoreRequest]) -> list[tuple[float, ...]]:
        """As ``Denoiser.score``; the requests are spread over the servers.

        Raises:
            ContextTooLongError: a request has more tokens than ``context_length``.
            DenoiserError: no server answers, also after several tries.
            ValueError: a request has not one target for each masked place.
        """
        items = [ToScore.of(request) for request in requests]
        return self._spread("score", ScoreCall(denoiser=self.name, items=items), tuple[float, ...])

    def close(self) -> None:
        """Closes the connections; replicas of a Ray cluster end."""
        self._servers.close()

    def _encode(self, text: str) -> Encoding:
        return self._ask("encode", EncodeCall(denoiser=self.name, items=[text]), Encoding)[0]

    def _render(self, turns: tuple[tuple[str, str], ...]) -> str:
        chat = [Turn(role=role, content=content) for role, content in turns]
        return self._ask("render", RenderCall(denoiser=self.name, items=[chat]), str)[0]

    def _spread(self, work: str, call: Any, of: type[Result]) -> list[Result]:
        """As ``_ask``, in as many requests as there are servers, and more where they are large.

        Neighbours stay together: they share a text, which goes through a model once.
        """
        num_servers = len(self._servers)
        size = -(-len(call.items) // num_servers)
        size = max(1, min(size, ITEMS_PER_REQUEST))
        firsts = range(0, len(call.items), size)
        calls = [call.model_copy(update={"items": call.items[k : k + size]}) for k in firsts]
        if len(calls) == 1:
            return self._ask(work, calls[0], of)
        with ThreadPoolExecutor(num_servers) as threads:
            answers = threads.map(lambda part: self._ask(work, part, of), calls)
            return [result for answer in answers for result in answer]

    def _ask(self, work: str, call: Any, of: type[Result]) -> list[Result]:
        content = self._servers.ask(work, call.model_dump_json().encode())
        try:
            answer = Answer[of].model_validate_json(content)
        except ValidationError as error:
            raise DenoiserError(
                f"a server of {self.name} answers nonsense: {first_problem(error)}"
            ) from error
        if len(answer.results) != len(call.items):
            raise DenoiserError(
                f"a server of {self.name} answers {len(answer.results)} of {len(call.items)} items"
            )
        with self._lock:
            self._num_passes += answer.num_passes
        return answer.results


def _agreed(found: Sequence[tuple[str, bytes]]) -> Facts:
    """What all servers say of themselves.

    Raises:
        DenoiserError: one is of another version, or two differ.
    """
    (first, said), *others = found
    agreed = _facts(first, said)
    for url, said in others:
        if (facts := _facts(url, said)) != agreed:
            raise DenoiserError(
                f"all servers must serve one denoiser, got {agreed!r} of {first} and {facts!r} of "
                f"{url}"
            )
    return agreed


def _facts(url: str, said: bytes) -> Facts:
    try:
        facts = Facts.model_validate_json(said)
    except ValidationError as error:
        raise DenoiserError(f"{url} is no `dspy-infill serve`: {first_problem(error)}") from error
    if facts.version != VERSION:
        raise DenoiserError(
            f"{url} speaks version {facts.version} (dspy-diffusion-infill {facts.package}), and "
            f"this package version {VERSION}: install the same version on both sides"
        )
    return facts


def _whole(text: str) -> str:
    if broken := broken_character(text):
        raise ValueError(f"the text {broken}")
    return text
