"""A Ray cluster's address, and the one connection to it that a process has."""

import logging
import signal
import socket
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from dspy_diffusion_infill.errors import DenoiserError, MissingDependencyError

SCHEME = "ray://"
CLIENT_PORT = 10001
"""Where a head node listens for Ray Client, unless it is told otherwise."""

REACHED_WITHIN = 10.0
"""Seconds; Ray itself would try for half a minute."""

_STARTS = 3  # tries to have the process of Ray Client started; one that fails takes Ray 30 s
_lock = threading.Lock()


@dataclass(slots=True)
class _Connection:
    """Ours, where there is one.

    Attributes:
        cluster: to which.
        num_users: that have not left it.
    """

    cluster: str = ""
    num_users: int = 0


_ours = _Connection()


@dataclass(frozen=True, slots=True)
class RayAddress:
    """What ``ray://CLUSTER/MODEL`` means.

    Attributes:
        cluster: ``host:port`` of Ray Client, ``auto`` (the cluster of this machine, or the one that
            this process is connected to) or ``local`` (a new one, on this machine alone).
        model: name, hub id, or folder that is on every machine; None is the default there.
    """

    cluster: str
    model: str | None

    @classmethod
    def parse(cls, url: str) -> "RayAddress":
        """Raises ``ValueError`` where the text is no such address."""
        cluster, _, model = url.removeprefix(SCHEME).partition("/")
        if cluster not in ("auto", "local"):
            cluster = _host_and_port(cluster)
        if not url.startswith(SCHEME) or not cluster or "://" in model or "?" in model:
            raise ValueError(
                "a denoiser on a Ray cluster must have an address such as "
                f"ray://head-node:{CLIENT_PORT}/llada-fs-ro, ray://auto/llada-fs-ro or "
                f"ray://local/llada-fs-ro, got {url!r:.200}"
            )
        return cls(cluster, model or None)


def connected(cluster: str) -> Any:
    """The module ``ray``, connected; a connection that there is already is used.

    Each call needs one of ``leave``.

    Raises:
        DenoiserError: the cluster cannot be reached, or runs another Python or Ray.
        MissingDependencyError: ray is not installed.
        ValueError: the process is connected to another cluster.
    """
    try:
        import ray
    except ImportError as error:
        raise _missing(error) from error
    with _lock:
        if not ray.is_initialized():
            with _sigterm_kept():
                _connect(ray, cluster)
            _ours.cluster, _ours.num_users = cluster, 0
        elif cluster not in ("auto", _ours.cluster):
            raise ValueError(
                f"this process is connected to {_ours.cluster or 'another Ray cluster'} already: "
                f"ray://auto uses that connection, and ray://{cluster} needs ray.shutdown() first"
            )
        _ours.num_users += 1
    return ray


def leave(ray: Any) -> None:
    """Ends a connection that ``connected`` has made, with its last user."""
    with _lock:
        _ours.num_users -= 1
        if _ours.num_users == 0 and _ours.cluster:
            _ours.cluster = ""
            ray.shutdown()


@contextmanager
def _sigterm_kept() -> Generator[None]:
    """Ray takes SIGTERM for itself, and would end a search without its best program."""
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        # No other thread may set it, and so Ray has not. None is a handler that C code has set.
        if is_main and before is not None:
            signal.signal(signal.SIGTERM, before)


def _join(ray: Any, url: str, options: Mapping[str, Any]) -> None:
    """Connects by Ray Client, whose process on the cluster now and then does not start (gRPC)."""
    for tries_left in reversed(range(_STARTS)):
        try:
            ray.init(url, **options)
            return
        except ConnectionAbortedError:
            if not tries_left:
                raise
            ray.shutdown()


def _connect(ray: Any, cluster: str) -> None:
    quiet: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": False}
    try:
        if cluster == "local":
            ray.init(cluster, include_dashboard=False, **quiet)
        elif cluster == "auto":
            ray.init(cluster, **quiet)
        else:
            place = urlsplit(f"//{cluster}")
            address = (place.hostname, place.port or CLIENT_PORT)
            socket.create_connection(address, REACHED_WITHIN).close()
            _join(ray, f"{SCHEME}{cluster}", quiet)
    except ImportError as error:  # ray alone has no client
        raise _missing(error) from error
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        ray.shutdown()
        raise DenoiserError(
            f"the Ray cluster {SCHEME}{cluster} cannot be reached: {error!r:.300} (one that asks "
            "for Ray's token needs RAY_AUTH_MODE=token and the token here too)"
        ) from error


def _missing(error: ImportError) -> MissingDependencyError:
    return MissingDependencyError(
        f"ray:// needs {error.name or 'grpcio'}: pip install 'dspy-diffusion-infill[ray]'"
    )


def _host_and_port(text: str) -> str:
    """With a port in any case; empty where the text is neither."""
    try:
        parsed = urlsplit(f"//{text}")
        host, port = parsed.hostname, parsed.port or CLIENT_PORT
    except ValueError:
        return ""
    if not host or "@" in text or parsed.query or parsed.fragment or any(map(str.isspace, text)):
        return ""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
