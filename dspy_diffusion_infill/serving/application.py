"""The routes of a served denoiser."""

import hashlib
from collections.abc import Callable, Collection, Hashable, Sequence
from typing import Annotated, Any
from uuid import uuid4

from fastapi import FastAPI, Header, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from dspy_diffusion_infill.denoisers.protocol import Denoiser
from dspy_diffusion_infill.denoisers.remote.wire import (
    ID_HEADER,
    Answer,
    DecodeCall,
    EncodeCall,
    Facts,
    InfillCall,
    Refusal,
    RenderCall,
    ScoreCall,
    check_token,
)
from dspy_diffusion_infill.errors import DenoiserMemoryError, DiffusionInfillError
from dspy_diffusion_infill.serving.batching import BatchQueue, QueueFullError, Work
from dspy_diffusion_infill.serving.guard import OPEN, Guard
from dspy_diffusion_infill.serving.limits import Limits
from dspy_diffusion_infill.serving.metrics import Metrics
from dspy_diffusion_infill.value_checks import first_problem

RequestId = Annotated[str | None, Header(alias=ID_HEADER, max_length=64)]


def application(
    denoiser: Denoiser, *, token: str, limits: Limits, hosts: Collection[str] = ()
) -> ASGIApp:
    """A denoiser as an ASGI application, guarded.

    Args:
        denoiser: the one that is served. Two threads call it: one its model, one its tokenizer.
        token: that requests must have.
        limits: of requests, queue and batches.
        hosts: names by which this machine is called.

    Raises:
        ValueError: the token is short enough to guess.
    """
    token, metrics = check_token(token), Metrics()
    service = Service(denoiser, limits, metrics)
    asked = {OPEN: service.health, "/metrics": service.metrics, "/v1/denoiser": service.facts}
    works = (service.encode, service.decode, service.render, service.infill, service.score)
    posted = {f"/v1/{work.__name__}": work for work in works}
    app = FastAPI(openapi_url=None)
    for path, handler in asked.items():
        app.get(path)(handler)
    for path, handler in posted.items():
        app.post(path)(handler)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(QueueFullError, _full)
    for error in (DiffusionInfillError, ValueError):
        app.add_exception_handler(error, _raised)
    app.add_exception_handler(Exception, _failed)
    return Guard(
        app, token=token, paths={*asked, *posted}, hosts=hosts, limits=limits, metrics=metrics
    )


class Service:
    """The handlers of one denoiser."""

    def __init__(self, denoiser: Denoiser, limits: Limits, metrics: Metrics) -> None:
        self._denoiser, self._metrics = denoiser, metrics
        self._model = BatchQueue(limits, metrics.on_batch)
        self._tokenizer = BatchQueue(limits, metrics.on_batch)
        metrics.watch_queue(lambda: len(self._model))

    async def health(self) -> dict[str, str]:
        """Whether requests are taken; needs no token, and tells nothing else."""
        return {"status": "ok"}

    async def metrics(self) -> Response:
        """For Prometheus."""
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4")

    async def facts(self) -> Facts:
        """What is served."""
        return Facts.of(self._denoiser)

    async def encode(self, call: EncodeCall, request: Request, id: RequestId = None) -> Response:
        """Texts into tokens."""
        work = self._text("encode", self._denoiser.encode, call.items, sum(map(len, call.items)))
        return await self._answer(self._tokenizer, work, call.denoiser, request, id)

    async def decode(self, call: DecodeCall, request: Request, id: RequestId = None) -> Response:
        """Tokens into texts."""
        work = self._text("decode", self._denoiser.decode, call.items, sum(map(len, call.items)))
        return await self._answer(self._tokenizer, work, call.denoiser, request, id)

    async def render(self, call: RenderCall, request: Request, id: RequestId = None) -> Response:
        """Chats into texts."""
        chats = call.plain()
        size = sum(len(turn["content"]) for chat in chats for turn in chat)
        work = self._text("render", self._denoiser.render, chats, size)
        return await self._answer(self._tokenizer, work, call.denoiser, request, id)

    async def infill(self, call: InfillCall, request: Request, id: RequestId = None) -> Response:
        """Masks into tokens."""
        sampling = call.sampling

        def run(items: Sequence[Any]) -> list[Any]:
            return self._denoiser.infill(items, sampling)

        work = self._passes(("infill", sampling), run, call.items)
        return await self._answer(self._model, work, call.denoiser, request, id)

    async def score(self, call: ScoreCall, request: Request, id: RequestId = None) -> Response:
        """Log-probabilities of masked tokens."""
        work = self._passes("score", self._denoiser.score, call.items)
        return await self._answer(self._model, work, call.denoiser, request, id)

    def _text(self, kind: str, one: Callable[[Any], Any], items: Sequence[Any], size: int) -> Work:
        return Work(kind, lambda batch: ([one(item) for item in batch], 0), items, size)

    def _passes(
        self, kind: Hashable, run: Callable[[Sequence[Any]], list[Any]], calls: Sequence[Any]
    ) -> Work:
        """Work of the model: only its thread moves ``num_passes``."""

        def counted(items: Sequence[Any]) -> tuple[list[Any], int]:
            before = self._denoiser.num_passes
            return run(items), self._denoiser.num_passes - before

        size = sum(len(call.input_ids) for call in calls)
        return Work(kind, counted, [call.plain() for call in calls], size)

    async def _answer(
        self, batcher: BatchQueue, work: Work, name: str, request: Request, id: str | None
    ) -> Response:
        if name != self._denoiser.name:
            raise HTTPException(409, f"this server has {self._denoiser.name}, not {name:.200}")
        # A key is the id and what it is asked with: nobody gets the answer to another question.
        body = hashlib.sha256(await request.body()).hexdigest()
        done = await batcher.answer(f"{request.url.path} {id or uuid4().hex} {body}", work)
        answer = Answer[Any](results=done.results, num_passes=done.num_passes)
        return Response(answer.model_dump_json(), media_type="application/json")


def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    message = first_problem(error).encode("ascii", "backslashreplace")
    return _refusal(422, "DataError", message.decode())


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    close = {"Connection": "close"} if error.status_code in (408, 413) else {}
    return _refusal(error.status_code, "Refused", error.detail, close)


def _full(request: Request, error: Exception) -> Response:
    return _refusal(503, "QueueFullError", "too many requests wait", {"Retry-After": "1"})


def _raised(request: Request, error: Exception) -> Response:
    status = 507 if isinstance(error, DenoiserMemoryError) else 400
    return _refusal(status, type(error).__name__, str(error))


def _failed(request: Request, error: Exception) -> Response:
    """The guard logs the error itself."""
    return _refusal(500, "DenoiserError", "the server failed; its log says why")


def _refusal(
    status: int, error: str, message: str, headers: dict[str, str] | None = None
) -> Response:
    content = Refusal(error=error, message=message).model_dump_json()
    return Response(content, status, headers, "application/json")
