"""Serves the report of a search that is going on, to this machine alone.

The address holds a token, so that other users of the machine cannot guess it. Requests by another
host name than a loopback one are refused: a page of somebody else, whose name was made to point
here (DNS rebinding), reads nothing.
"""

import asyncio
import secrets
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response, StreamingResponse
from starlette.routing import Route

from dspy_diffusion_infill.errors import DataError
from dspy_diffusion_infill.optimizer.run_files import RUN_FILE
from dspy_diffusion_infill.report.writing import report_of

LOOPBACK = "127.0.0.1"
_HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_WAITING = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="2">'
    "<title>Waiting</title><p>The first evaluation has not ended yet.</p></html>"
)
_POLL = 1.0  # seconds between two looks at the folder


def watch(folder: Path, *, port: int, on_ready: Callable[[str], None], rows: bool = True) -> None:
    """Serves until Ctrl-C.

    Args:
        folder: the ``log_dir`` of a search that may not have begun yet.
        port: 0 takes a free one.
        on_ready: called with the address.
        rows: whether the page holds texts of rows.

    Raises:
        OSError: the port is taken.
    """
    token = secrets.token_urlsafe(16)
    with socket.socket() as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((LOOPBACK, port))
        app = application(folder, token, is_over=lambda: server.should_exit, rows=rows)
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=5))
        on_ready(f"http://{LOOPBACK}:{bound.getsockname()[1]}/{token}/")
        server.run(sockets=[bound])


def application(
    folder: Path, token: str, *, is_over: Callable[[], bool], rows: bool = True
) -> Starlette:
    """The page at ``/TOKEN/``, and news of it at ``/TOKEN/events`` until all is over."""

    def show(request: Request) -> Response:
        if not (folder / RUN_FILE).exists():
            return HTMLResponse(_WAITING, headers=_HEADERS)
        try:
            return HTMLResponse(report_of(folder, watched=True, rows=rows), headers=_HEADERS)
        except DataError as error:
            return Response(str(error), 500, _HEADERS, "text/plain")

    def events(request: Request) -> Response:
        return StreamingResponse(
            _news(folder, is_over), headers=_HEADERS, media_type="text/event-stream"
        )

    def icon(request: Request) -> Response:
        return Response(status_code=204)  # browsers ask for one

    return Starlette(
        routes=[
            Route(f"/{token}/", show),
            Route(f"/{token}/events", events),
            Route("/favicon.ico", icon),
        ],
        middleware=[
            Middleware(
                TrustedHostMiddleware, allowed_hosts=[LOOPBACK, "localhost"], www_redirect=False
            )
        ],
    )


async def _news(folder: Path, is_over: Callable[[], bool]) -> AsyncIterator[str]:
    """A message whenever the records have changed."""
    seen = _state(folder)
    yield ": watching\n\n"
    while not is_over():
        await asyncio.sleep(_POLL)
        now = _state(folder)
        yield "data: new\n\n" if now != seen else ": nothing new\n\n"
        seen = now


def _state(folder: Path) -> int:
    try:
        return (folder / RUN_FILE).stat().st_mtime_ns
    except OSError:
        return 0
