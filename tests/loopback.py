"""A scripted OpenAI-compatible server on loopback: it answers as told, and counts."""

import json
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import dspy

RATE_LIMITED = 429
Script = Callable[[int, dict[str, Any]], str | int | bytes]


@dataclass(slots=True)
class Loopback:
    """What has been asked.

    Attributes:
        url: for ``api_base``.
        bodies: every request's JSON, in the order of arrival.
        answered: the prompts of the requests whose answer was sent in full.
    """

    url: str
    bodies: list[dict[str, Any]] = field(default_factory=list)
    answered: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def lm(self, **options: Any) -> "dspy.LM":
        """A ``dspy.LM`` of this server; DSPy's own cache is off unless asked for."""
        import dspy

        options = {
            "cache": False,
            "temperature": 1.0,
            "max_tokens": 64,
            "num_retries": 2,
            **options,
        }
        return dspy.LM("openai/loopback", api_base=self.url, api_key="none", **options)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of clients that are gone."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def loopback(
    script: Script, *, port: int = 0, models: Sequence[str] = (), retry_after: int | None = 0
) -> Iterator[Loopback]:
    """Serves ``script(number of the request, its body)``: a completion, a status, or raw bytes.

    It lists ``models`` as vLLM does; a free port is taken where none is given. What fails may be
    asked again after so many seconds; with None the client decides.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            listed = [{"id": name, "object": "model"} for name in models]
            data = json.dumps({"object": "list", "data": listed}).encode()
            self.send_response(200 if self.path == "/v1/models" else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with seen.lock:
                number = len(seen.bodies)
                seen.bodies.append(body)
            answer = script(number, body)
            failed = not isinstance(answer, str)
            reply = {"error": {"message": "slow down"}} if failed else _completion(body, answer)
            data = answer if isinstance(answer, bytes) else json.dumps(reply).encode()
            self.send_response(answer if isinstance(answer, int) else 200)
            if failed and retry_after is not None:
                self.send_header("Retry-After", str(retry_after))
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
            if not failed:
                with seen.lock:
                    seen.answered.append(prompt_of(body))

        def log_message(self, *_: Any) -> None:
            pass

    server = _Server(("127.0.0.1", port), Handler)
    seen = Loopback(f"http://127.0.0.1:{server.server_address[1]}/v1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def prompt_of(body: dict[str, Any]) -> str:
    """All messages of a request as one text."""
    return "\n".join(_text(message["content"]) for message in body["messages"])


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content)


def _completion(body: dict[str, Any], text: str) -> dict[str, Any]:
    choice = {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": text},
    }
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    return {"id": "1", "object": "chat.completion", "created": 0, "model": body["model"]} | {
        "choices": [choice],
        "usage": usage,
    }


if __name__ == "__main__":  # python loopback.py PORT MODEL: a server to start and stop
    with loopback(lambda *_: "[RESULT] 3", port=int(sys.argv[1]), models=sys.argv[2:]):
        threading.Event().wait()
