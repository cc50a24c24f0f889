"""Turns away what must not reach the denoiser, before any of its body is read."""

import asyncio
import hmac
import ipaddress
import logging
import socket
import time
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dspy_diffusion_infill.serving.limits import Limits
from dspy_diffusion_infill.serving.metrics import Metrics

logger = logging.getLogger(__name__)

OPEN = "/health"
"""The one path that needs no token."""


class Guard:
    """ASGI middleware: host, origin, token, size and time of a request.

    Args:
        app: what is guarded.
        token: that every request must have.
        paths: of the application; any other one is "other" to the metrics.
        hosts: names by which this machine is called, beside its own, ``localhost`` and addresses.
        limits: of the body.
        metrics: told of every answer.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        token: str,
        paths: Collection[str],
        hosts: Collection[str],
        limits: Limits,
        metrics: Metrics,
    ) -> None:
        self._app, self._paths = app, frozenset(paths)
        self._limits, self._metrics = limits, metrics
        self._expected = f"Bearer {token}".encode()
        names = {"localhost", socket.gethostname(), *hosts}
        self._hosts = {name.lower() for name in names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, itself or by the application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 500

        async def counted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            if (refusal := self._refusal(scope["path"], Headers(scope=scope))) is not None:
                await refusal(scope, receive, counted)
            else:
                await self._app(scope, self._limited(receive), counted)
        except (
            Exception
        ):  # the application has answered 500; raised on, it would cut the answer off
            logger.exception("a request to %s failed", scope["path"])
        finally:
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._metrics.on_request(path, status, time.monotonic() - began)

    def _refusal(self, path: str, headers: Headers) -> JSONResponse | None:
        if not self._is_known(headers.get("host", "")):
            return refused(400, "this server is not called by that Host: see --allow-host")
        if "origin" in headers:
            return refused(403, "web pages have no business here")
        if path == OPEN:
            return None
        given = headers.get("authorization", "").encode()
        if not hmac.compare_digest(given, self._expected):
            return refused(401, "a bearer token is needed", {"WWW-Authenticate": "Bearer"})
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self._limits.body_bytes:
            return refused(413, self._too_large())
        return None

    def _is_known(self, host: str) -> bool:
        """Whether a page of somebody else cannot have this host: it would have a name of its own.

        Such a page, whose name was made to point here (DNS rebinding), sends that name.
        """
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        try:
            return not ipaddress.ip_address(name).is_unspecified
        except ValueError:
            return name in self._hosts

    def _limited(self, receive: Receive) -> Receive:
        """Counts bytes and seconds, until the body has arrived."""
        ends = time.monotonic() + self._limits.receive_seconds
        size, is_complete = 0, False

        async def limited() -> Message:
            nonlocal size, is_complete
            if is_complete:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), ends - time.monotonic())
            except asyncio.TimeoutError:
                raise HTTPException(408, "the body takes too long") from None
            size += len(message.get("body", b""))
            if size > self._limits.body_bytes:
                raise HTTPException(413, self._too_large())
            is_complete = not message.get("more_body", False)
            return message

        return limited

    def _too_large(self) -> str:
        return f"a body must have at most {self._limits.body_bytes} bytes: see --max-body"


def refused(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """A refusal that ends the connection, whose body nobody reads."""
    content = {"error": "Refused", "message": message}
    return JSONResponse(content, status, {"Connection": "close", **(headers or {})})
