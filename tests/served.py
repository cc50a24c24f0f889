"""A denoiser behind HTTP in a thread of this process, on a free port of loopback."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import uvicorn

from dspy_diffusion_infill.denoisers.protocol import Denoiser
from dspy_diffusion_infill.serving.limits import Limits
from dspy_diffusion_infill.serving.server import bound, server

TOKEN = "a-token-of-some-length"


@dataclass
class Served:
    url: str
    port: int
    server: uvicorn.Server

    def cut_off(self) -> None:
        """As a kill looks from outside: nobody listens, and every connection is reset."""

        def reset() -> None:
            for listening in self.server.servers:
                listening.close()
            for connection in list(self.server.server_state.connections):
                connection.transport.abort()

        loop = self.server.servers[0].get_loop()
        with suppress(RuntimeError):  # it has ended
            loop.call_soon_threadsafe(reset)


@contextmanager
def served(denoiser: Denoiser, **limits: int) -> Iterator[Served]:
    made = server(denoiser, token=TOKEN, limits=Limits(**limits))
    with bound("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        thread = threading.Thread(target=made.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield Served(f"http://127.0.0.1:{port}", port, made)
        finally:
            made.should_exit = True
            thread.join()
