"""What reaches a served denoiser, and what is done to it."""

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from doubles import WordDenoiser

pytest.importorskip("fastapi", reason="needs the extra serve")
pytest.importorskip("prometheus_client", reason="needs the extra serve")
from served import TOKEN, served

from dspy_diffusion_infill.serving.application import application
from dspy_diffusion_infill.serving.limits import Limits

LOGIN = {"Authorization": f"Bearer {TOKEN}"}
GOOD = {
    "denoiser": "word-denoiser",
    "items": [{"input_ids": [0, -1, 0], "seed": 1}],
    "sampling": {"steps": 4},
}


class Broken(WordDenoiser):
    def infill(self, requests, sampling):
        if len(requests[0].input_ids) > 3:
            raise RuntimeError("what nobody thought of")
        return super().infill(requests, sampling)


@pytest.fixture(scope="module")
def server():
    denoiser = Broken()
    denoiser.encode("word")
    with served(denoiser, body_bytes=100_000, receive_seconds=1) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with httpx.Client(base_url=server.url, headers=LOGIN) as one:
        yield one


def is_well(client: httpx.Client) -> bool:
    answer = client.post("/v1/infill", json=GOOD)
    return answer.status_code == 200 and len(answer.json()["results"]) == 1


@pytest.fixture(scope="module")
def anyone(server):
    with httpx.Client(base_url=server.url) as one:
        yield one


@pytest.mark.parametrize("path", ["/v1/denoiser", "/metrics", "/", "/docs", "/openapi.json"])
@pytest.mark.parametrize("token", [None, "", "Bearer", "Bearer wrong", f"Basic {TOKEN}", TOKEN])
def test_without_the_token_nothing_is_told(anyone, path, token):
    headers = {} if token is None else {"Authorization": token}
    answer = anyone.get(path, headers=headers)
    assert answer.status_code == 401 and answer.headers["connection"] == "close"
    assert "word-denoiser" not in answer.text


def test_health_needs_no_token_and_tells_nothing(anyone):
    answer = anyone.get("/health")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "0.0.0.0", "", "[", "::"]
)
def test_another_host_name_is_refused(anyone, host):
    assert anyone.get("/v1/denoiser", headers={"Host": host, **LOGIN}).status_code == 400


@pytest.mark.parametrize("host", ["localhost:80", "127.0.0.1", "[::1]:9", socket.gethostname()])
def test_names_of_this_machine_are_taken(anyone, host):
    assert anyone.get("/v1/denoiser", headers={"Host": host, **LOGIN}).status_code == 200


def test_web_pages_are_refused(server, anyone):
    assert anyone.get("/v1/denoiser", headers={"Origin": server.url, **LOGIN}).status_code == 403


def test_a_guessable_token_is_refused():
    for token in ("", "short", "with white space in", "ümläut-ümläut-ümläut"):
        with pytest.raises(ValueError, match="token must be at least 16"):
            application(WordDenoiser(), token=token, limits=Limits())


INFILL = json.dumps(GOOD)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("", 422),
        ("{", 422),
        ("[" * 50_000, 400),
        ("9" * 5000, 400),
        ('"\\ud800"', 422),
        (INFILL.replace("-1", "NaN"), 422),
        (INFILL.replace("-1", "1e400"), 422),
        (INFILL.replace("-1", str(2**63)), 422),
        (INFILL.replace("-1", "true"), 422),
        (INFILL.replace("-1", '"1"'), 422),
        (INFILL.replace('"seed": 1', '"seed": 1.5'), 422),
        (INFILL.replace('"seed": 1', '"seed": 1, "more": 1'), 422),
        (INFILL.replace('"seed": 1', '"seed": 1, "\\ud800": 1'), 422),
        (INFILL.replace('"steps": 4', f'"steps": {10**12}'), 422),
        (INFILL.replace('"steps": 4', '"steps": 0'), 422),
        (INFILL.replace('"steps": 4', '"temperature": NaN'), 422),
        (INFILL.replace('"steps": 4', '"temperature": Infinity'), 422),
        (INFILL.replace('"steps": 4', f'"top_k": {10**30}'), 422),
        (INFILL.replace('"steps": 4', '"cache": "pickle"'), 422),
        (INFILL.replace("word-denoiser", "another"), 409),
        (
            INFILL.replace(
                '"seed": 1', '"seed": 1, "context": {"input_ids": [], "start": 0, "end": 5}'
            ),
            400,
        ),
        (INFILL.replace("-1", "-1, 0, 0"), 500),
    ],
)
def test_a_body_that_asks_for_nothing_sensible_is_refused(client, body, status):
    headers = {"Content-Type": "application/json"}
    answer = client.post("/v1/infill", content=body, headers=headers)
    assert answer.status_code == status and set(answer.json()) == {"error", "message"}
    assert len(answer.content) < 500
    assert is_well(client)


def raw(server, text: str) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    connection.sendall(text.encode())
    return connection


HEAD = f"POST /v1/infill HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"


@pytest.mark.parametrize("size", [100_001, 100 * 2**20, "9" * 400, "-1", "x"])
def test_a_large_body_is_refused_before_any_of_it_is_read(server, client, size):
    with raw(server, f"{HEAD}Content-Length: {size}\r\n\r\n") as connection:
        answer = connection.makefile("rb").read()  # to the end: the connection is closed
    assert answer.startswith((b"HTTP/1.1 413 ", b"HTTP/1.1 400 "))
    assert is_well(client)


def test_a_large_body_of_unknown_size_is_refused_once_it_is_too_large(server, client):
    with raw(server, f"{HEAD}Transfer-Encoding: chunked\r\n\r\n") as connection:
        for _ in range(2):
            connection.sendall(b"fffe\r\n" + b" " * 0xFFFE + b"\r\n")
        assert connection.makefile("rb").readline().startswith(b"HTTP/1.1 413 ")
    assert is_well(client)


def test_slow_clients_time_out_and_others_are_not_held_up(server, client):
    slow_headers = raw(server, "GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
    silent = raw(server, "")
    slow_body = raw(server, f"{HEAD}Content-Length: 5000\r\n\r\n" + '{"denoiser": ')
    with slow_headers, silent, slow_body:
        for _ in range(4):  # bytes that drip in extend nothing
            assert is_well(client)
            slow_headers.sendall(b"x")
            slow_body.sendall(b" ")
            time.sleep(0.05)
        assert slow_body.makefile("rb").readline().startswith(b"HTTP/1.1 408 ")
        assert slow_headers.makefile("rb").read() == silent.makefile("rb").read() == b""
    assert is_well(client)


def test_metrics_count_requests_items_and_refusals(anyone, client):
    assert is_well(client)
    anyone.get("/secret")
    lines = dict(line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines())
    assert float(lines['dspy_infill_requests_total{path="/v1/infill",status="200"}']) >= 1
    assert float(lines['dspy_infill_requests_total{path="other",status="401"}']) >= 1
    assert float(lines['dspy_infill_items_total{work="infill"}']) >= 1
    assert lines["dspy_infill_waiting"] == "0.0"
    anyone.get("/made-up", headers={"Host": "evil.example"})
    assert "made-up" not in client.get("/metrics").text, "a path of anybody is no label"


def test_what_was_asked_is_answered_before_the_server_ends():
    class Slow(WordDenoiser):
        def infill(self, requests, sampling):
            entered.set()
            leaves.wait(30)
            return super().infill(requests, sampling)

    entered, leaves = threading.Event(), threading.Event()
    with ThreadPoolExecutor(1) as threads:
        with served(Slow()) as running:
            url = f"{running.url}/v1/infill"
            answer = threads.submit(httpx.post, url, json=GOOD, headers=LOGIN, timeout=30)
            entered.wait(30)
            running.server.should_exit = True
            leaves.set()
        assert answer.result().status_code == 200


def test_a_request_that_is_sent_again_is_computed_once(client):
    def passes() -> str:
        lines = client.get("/metrics").text.splitlines()
        return next(line for line in lines if line.startswith("dspy_infill_passes_total"))

    again = {"X-Request-Id": "the-same"}
    first = client.post("/v1/infill", json=GOOD, headers=again)
    before = passes()
    assert client.post("/v1/infill", json=GOOD, headers=again).content == first.content
    assert passes() == before
    other = GOOD | {"sampling": {"steps": 5}}
    assert client.post("/v1/infill", json=other, headers=again).status_code == 200
    assert passes() != before, "another question is not answered with what was kept"
