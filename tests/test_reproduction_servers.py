"""``reproduce --serve``: the stand-in speaks vLLM's API, and is started and stopped as vLLM is."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from dspy_diffusion_infill.errors import ExperimentError
from dspy_diffusion_infill.reproduction import servers as servers_module
from dspy_diffusion_infill.reproduction.experiment import ModelSpec
from dspy_diffusion_infill.reproduction.servers import RunningServers

STAND_IN = Path(__file__).with_name("loopback.py")


def served(model: str) -> ModelSpec:
    """A model with a command that serves it on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = f"{sys.executable} {STAND_IN} {port} {model}"
    base = f"http://127.0.0.1:{port}/v1"
    return ModelSpec(lm=f"hosted_vllm/{model}", options={"api_base": base}, serve=command)


@pytest.fixture
def servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningServers]:
    monkeypatch.setattr(servers_module, "_PAUSE", 0.05)
    specs = {name: served(f"org/{name}") for name in ("judge", "writer")}
    broken = ModelSpec(lm="hosted_vllm/x", options={"api_base": "http://127.0.0.1:9/v1"})
    specs["broken"] = ModelSpec(
        lm=broken.lm, options=broken.options, serve=f"{sys.executable} -c 1/0"
    )
    made = RunningServers(specs, tmp_path / "servers")
    yield made
    made.stop()


def answer(servers: RunningServers, name: str) -> str:
    body = {"model": name, "messages": [{"role": "user", "content": "Judge."}]}
    base = servers.specs[name].options["api_base"]
    found = httpx.post(f"{base}/chat/completions", json=body).json()
    return found["choices"][0]["message"]["content"]


def test_servers_are_up_while_cells_need_them_and_down_after(servers: RunningServers) -> None:
    with servers.up({"judge", "writer"}):
        assert answer(servers, "judge") == answer(servers, "writer") == "[RESULT] 3"
        judge = servers._running["judge"]
    with servers.up({"judge"}):
        assert servers._running == {"judge": judge}  # it has not been started again
        with pytest.raises(httpx.ConnectError):
            answer(servers, "writer")
    servers.stop()
    assert judge.poll() is not None
    with pytest.raises(httpx.ConnectError):
        answer(servers, "judge")


def test_a_server_that_somebody_else_runs_is_used_and_left_alone(servers: RunningServers) -> None:
    command = servers.specs["judge"].serve.split()
    own = subprocess.Popen(command)
    try:
        while not servers._answers("judge"):
            assert own.poll() is None
        with servers.up({"judge"}):
            assert servers._running == {}
        servers.stop()
        assert answer(servers, "judge") == "[RESULT] 3"
    finally:
        own.terminate()
        own.wait()


def test_a_server_that_ends_is_an_error_that_names_its_log(servers: RunningServers) -> None:
    log = servers.folder / "broken.log"
    with pytest.raises(ExperimentError, match="the server of broken does not answer: see"):
        with servers.up({"broken"}):
            pass
    assert "ZeroDivisionError" in log.read_text(encoding="utf-8")
