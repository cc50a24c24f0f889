import asyncio
import threading
from pathlib import Path

import httpx
import pytest
from test_run_files import written

from dspy_diffusion_infill.optimizer.run_files import EVENTS_FILE, RUN_FILE

pytest.importorskip("uvicorn", reason="needs the extra watch")
from dspy_diffusion_infill.report import watch


@pytest.fixture
def client(tmp_path: Path):
    transport = httpx.ASGITransport(watch.application(tmp_path, "token", is_over=lambda: False))
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000")


def get(client: httpx.AsyncClient, path: str, **headers: str) -> httpx.Response:
    return asyncio.run(client.get(path, headers=headers))


def test_the_page_is_that_of_the_records_and_asks_for_news(client, tmp_path: Path):
    written(tmp_path)
    answer = get(client, "/token/")
    assert answer.status_code == 200 and "data-watched" in answer.text
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Referrer-Policy"] == "no-referrer"


def test_before_the_first_evaluation_has_ended_it_waits(client):
    assert "has not ended yet" in get(client, "/token/").text


def test_damaged_records_are_told_as_plain_text(client, tmp_path: Path):
    written(tmp_path)
    (tmp_path / EVENTS_FILE).write_bytes(b"<script>\n")
    answer = get(client, "/token/")
    assert answer.status_code == 500 and answer.headers["content-type"].startswith("text/plain")


@pytest.mark.parametrize("path", ["/", "/token", "/other/", "/events", "/token/run.json"])
def test_without_the_token_there_is_nothing(client, path: str):
    assert get(client, path).status_code in (307, 404)


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "0.0.0.0", ""])
def test_another_host_name_is_refused(client, tmp_path: Path, host: str):
    written(tmp_path)
    answer = get(client, "/token/", Host=host)
    assert answer.status_code == 400 and "DiffusionInfill" not in answer.text


def test_a_new_trial_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(watch, "_POLL", 0.01)

    async def news() -> list[str]:
        told, stream = [], watch._news(tmp_path, lambda: len(told) > 2)
        told.append(await anext(stream))
        told.append(await anext(stream))
        written(tmp_path)
        told.append(await anext(stream))
        assert await anext(stream, None) is None, "the server ends"
        return told

    assert asyncio.run(news()) == [": watching\n\n", ": nothing new\n\n", "data: new\n\n"]


def test_it_listens_on_loopback_and_ends_with_its_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    written(tmp_path)
    servers, found = [], []

    class Server(watch.uvicorn.Server):
        def __init__(self, config) -> None:
            super().__init__(config)
            servers.append(self)

    monkeypatch.setattr(watch.uvicorn, "Server", Server)

    def on_ready(address: str) -> None:
        def ask() -> None:
            for path in ("", "../"):
                found.append(httpx.get(address + path, timeout=10).status_code)
            servers[0].should_exit = True

        threading.Thread(target=ask).start()

    watch.watch(tmp_path, port=0, on_ready=on_ready)
    assert found == [200, 404]
    assert (tmp_path / RUN_FILE).exists()
