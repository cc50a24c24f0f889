"""Listens, until it is told to end."""

import asyncio
import secrets
import socket
from collections.abc import Callable, Collection
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from dspy_diffusion_infill.denoisers.protocol import Denoiser
from dspy_diffusion_infill.serving.application import application
from dspy_diffusion_infill.serving.limits import Limits

LOOPBACK = "127.0.0.1"


def new_token() -> str:
    """A token that nobody guesses."""
    return secrets.token_urlsafe(32)


def server(
    denoiser: Denoiser, *, token: str, limits: Limits, hosts: Collection[str] = ()
) -> uvicorn.Server:
    """A server that is not listening yet; its ``run`` takes the sockets of ``bound``."""
    return uvicorn.Server(
        uvicorn.Config(
            application(denoiser, token=token, limits=limits, hosts=hosts),
            http=_connection(limits.receive_seconds),
            ws="none",
            lifespan="off",
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=limits.shutdown_seconds,
        )
    )


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 is a free one.

    Raises:
        OSError: the port is taken, or the machine has no such address.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=128)


def serve(
    denoiser: Denoiser,
    *,
    host: str,
    port: int,
    token: str,
    limits: Limits,
    hosts: Collection[str],
    on_ready: Callable[[str], None],
) -> None:
    """Serves until SIGTERM or Ctrl-C; what was asked before is answered first.

    Args:
        denoiser: the one that is served.
        host: address to listen on.
        port: 0 takes a free one.
        token: that requests must have.
        limits: of requests, queue and batches.
        hosts: names by which this machine is called.
        on_ready: called with the address.

    Raises:
        OSError: the port is taken, or the machine has no such address.
        ValueError: the token is short enough to guess.
    """
    made = server(denoiser, token=token, limits=limits, hosts={host, *hosts})
    with bound(host, port) as listening:
        shown = f"[{host}]" if ":" in host else host
        on_ready(f"http://{shown}:{listening.getsockname()[1]}")
        made.run(sockets=[listening])


def _connection(seconds: float) -> type[H11Protocol]:
    """HTTP as uvicorn speaks it, with a limit on the time that headers may take."""

    class Connection(H11Protocol):
        deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.deadline = self.loop.call_later(seconds, transport.close)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.conn.their_state is not h11.IDLE:  # the headers are complete
                if self.deadline is not None:
                    self.deadline.cancel()
                self.deadline = None
            elif self.deadline is None:
                self.deadline = self.loop.call_later(seconds, self.transport.close)

    return Connection
