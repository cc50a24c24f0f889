"""Replicas on a real Ray cluster of this machine, reached by Ray Client as from another one."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from dspy_diffusion_infill import load_denoiser
from dspy_diffusion_infill.denoisers import InfillRequest, Sampling, ScoreRequest
from dspy_diffusion_infill.denoisers.remote import ray_cluster
from dspy_diffusion_infill.denoisers.remote.denoiser import RemoteDenoiser
from dspy_diffusion_infill.denoisers.remote.ray_cluster import RayAddress
from dspy_diffusion_infill.denoisers.remote.ray_replicas import RayReplicas
from dspy_diffusion_infill.errors import (
    ContextTooLongError,
    DenoiserError,
    MissingDependencyError,
    UnknownDenoiserError,
)

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT.parent / "shared" / "golden" / "llada_tiny"
OPTIONS = {"device": "cpu", "dtype": "float32", "revision": None, "quantization": None}
SAMPLING = Sampling(steps=6, temperature=0.8)


# What needs no cluster


@pytest.mark.parametrize(
    ("url", "cluster", "model"),
    [
        ("ray://head:10002/llada-fs-ro", "head:10002", "llada-fs-ro"),
        ("ray://head/akkikiki/judge", "head:10001", "akkikiki/judge"),
        ("ray://[::1]:7//data/llada", "[::1]:7", "/data/llada"),
        ("ray://auto", "auto", None),
        ("ray://local/dream", "local", "dream"),
    ],
)
def test_an_address_names_cluster_and_model(url, cluster, model):
    assert RayAddress.parse(url) == RayAddress(cluster, model)


@pytest.mark.parametrize(
    "url", ["ray://", "ray:///llada", "ray://a:x/m", "ray://u@a/m", "ray://a/http://b", "ray://a b"]
)
def test_what_is_no_address_is_refused(url):
    with pytest.raises(ValueError, match="must have an address such as ray://head-node:10001/"):
        load_denoiser(url)


def test_numbers_that_cannot_be_are_refused_before_anything_is_connected():
    for options, message in (
        ({"replicas": 0}, "replicas must be at least 1, got replicas=0"),
        ({"num_gpus": -1}, "num_gpus must be 0 or more"),
        ({"num_gpus": 1.5}, "num_gpus must be 0 or more, and whole above 1"),
        ({"num_cpus": float("nan")}, "num_cpus must be 0 or more"),
        ({"timeout": 0}, "timeout must be above 0"),
        ({"token": "a-token-of-some-length"}, "one address and no token="),
    ):
        with pytest.raises(ValueError, match=message):
            load_denoiser("ray://127.0.0.1:1/llada", **options)
    with pytest.raises(TypeError, match="replicas must be a whole number"):
        load_denoiser("ray://127.0.0.1:1/llada", replicas=1.5)  # pyright: ignore
    with pytest.raises(ValueError, match="one address"):
        load_denoiser(["ray://127.0.0.1:1/llada", "ray://127.0.0.1:2/llada"])
    for name in ("llada", "http://127.0.0.1:1"):
        with pytest.raises(ValueError, match="replicas are of a Ray cluster"):
            load_denoiser(name, replicas=2)


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'dspy-diffusion-infill\[ray\]'"):
        load_denoiser("ray://127.0.0.1:1/llada")


def test_a_cluster_that_is_not_there_is_named():
    pytest.importorskip("ray", reason="needs the extra ray")
    begun = time.monotonic()
    with pytest.raises(DenoiserError, match=r"ray://127\.0\.0\.1:1 cannot be reached: Connection"):
        load_denoiser("ray://127.0.0.1:1/llada")
    assert time.monotonic() - begun < 10


class Moody:
    """Ray whose client's process does not start at first, and which takes SIGTERM for itself."""

    exceptions = SimpleNamespace(RayError=RuntimeError)

    def __init__(self, num_failures: int) -> None:
        self.num_failures, self.urls = num_failures, []

    def is_initialized(self) -> bool:
        return False

    def init(self, url: str, **options: object) -> None:
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
        self.urls.append(url)
        if len(self.urls) <= self.num_failures:
            raise ConnectionAbortedError("Starting Ray client server failed")

    def shutdown(self) -> None: ...


@pytest.mark.skipif(
    threading.current_thread() is not threading.main_thread(),
    reason="only the main thread has signals",
)
@pytest.mark.parametrize("num_failures", [0, 2, 3])
def test_a_connection_is_tried_three_times_and_leaves_sigterm_as_it_was(monkeypatch, num_failures):
    ray, before = Moody(num_failures), signal.getsignal(signal.SIGTERM)
    monkeypatch.setitem(sys.modules, "ray", ray)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        cluster = f"127.0.0.1:{listening.getsockname()[1]}"
        if num_failures == 3:
            with pytest.raises(DenoiserError, match="cannot be reached: ConnectionAborted"):
                ray_cluster.connected(cluster)
        else:
            ray_cluster.leave(ray_cluster.connected(cluster))
    assert ray.urls == [f"ray://{cluster}"] * min(num_failures + 1, 3)
    assert signal.getsignal(signal.SIGTERM) is before


# A cluster: a head node with two CPUs


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its processes end with the one that is started here; it is on loopback, without a token."""
    pytest.importorskip("ray", reason="needs the extra ray")
    if not GOLDEN.is_dir():
        pytest.skip("../shared/golden is not on this machine")
    port, folder = free_port(), tmp_path_factory.mktemp("ray")
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    command += [f"--port={free_port()}", f"--ray-client-server-port={port}", "--num-cpus=2"]
    command += ["--include-dashboard=false", "--disable-usage-stats", "--num-gpus=0"]
    command += ["--node-ip-address=127.0.0.1", f"--object-store-memory={80 * 2**20}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"}
    environment["GRPC_ENABLE_FORK_SUPPORT"] = "0"  # with it the client's process may not start
    with (folder / "log").open("w") as log:
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        until = time.monotonic() + 60
        while not is_open(port):
            assert head.poll() is None and time.monotonic() < until, (folder / "log").read_text()
            time.sleep(0.1)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RAY_AUTH_MODE", "disabled")
            yield f"127.0.0.1:{port}"
    finally:
        head.terminate()
        head.wait(40)


@pytest.fixture(scope="module")
def replicas(cluster: str) -> Iterator[RayReplicas]:
    made = RayReplicas(RayAddress(cluster, str(GOLDEN)), replicas=2, options=OPTIONS, timeout=120)
    yield made
    made.close()


@pytest.fixture(scope="module")
def remote(replicas: RayReplicas) -> RemoteDenoiser:
    made = RemoteDenoiser(replicas)
    wait_for_two(replicas)
    return made


@pytest.fixture(scope="module")
def local():
    return load_denoiser(str(GOLDEN), device="cpu", dtype="float32")


def wait_for_two(replicas: RayReplicas) -> None:
    until = time.monotonic() + 60
    while len(replicas.ready) < 2:
        assert time.monotonic() < until, "a replica is missing"
        time.sleep(0.05)


def requests(local, number: int, *, seed: int = 0) -> list[InfillRequest]:
    ids = [*range(40, 46), *[local.mask_id] * 6, *range(50, 58)]
    return [InfillRequest(ids, 2**70 + seed + k) for k in range(number)]


def tokens(results) -> list[tuple[int, ...]]:
    """Without the confidence, which depends on the batch by rounding."""
    return [one.input_ids for one in results]


def test_it_is_what_the_local_one_is(local, remote):
    for name in ("name", "context_length", "mask_id"):
        assert getattr(remote, name) == getattr(local, name)
    text = "Answer in one word.\n"
    encoding = local.encode(text)
    assert remote.encode(text) == encoding
    assert remote.decode(encoding.input_ids) == local.decode(encoding.input_ids)


def test_a_seed_gives_the_same_proposals_and_both_replicas_work(local, remote, replicas):
    before = {one.process: one.num_answered for one in replicas.ready}
    asked = requests(local, 8)
    found = remote.infill(asked, SAMPLING)
    assert tokens(found) == tokens(local.infill(asked, SAMPLING))
    assert len(set(tokens(found))) > 1
    assert [one.num_answered - before[one.process] for one in replicas.ready] == [1, 1]
    assert remote.num_passes > 0


def test_log_probabilities_and_errors_are_those_of_the_local_one(local, remote):
    asked = [ScoreRequest(requests(local, 1)[0].input_ids, (1, 2, 3, 4, 5, 6))]
    assert remote.score(asked) == local.score(asked)
    assert remote.score([]) == remote.infill([], Sampling()) == []
    for one in (local, remote):
        with pytest.raises(ContextTooLongError, match="do not fit"):
            one.infill([InfillRequest([1] * 99_999)], SAMPLING)
        with pytest.raises(ValueError, match="one target for each masked place"):
            one.score([ScoreRequest([local.mask_id] * 2, [1])])


def test_a_replica_that_is_killed_loses_nothing_and_is_replaced(local, remote, replicas, caplog):
    """8 clients; one of two replicas is killed while it has a call."""
    asked = [requests(local, 3, seed=10 * k) for k in range(48)]
    expected = [tokens(local.infill(some, SAMPLING)) for some in asked]
    begun, dead = threading.Event(), replicas.ready[0]

    def ask(k: int) -> list[tuple[int, ...]]:
        found = tokens(remote.infill(asked[k], SAMPLING))
        begun.set()
        return found

    with ThreadPoolExecutor(8) as threads:
        running = [threads.submit(ask, k) for k in range(len(asked))]
        assert begun.wait(60)
        while dead.num_open == 0:
            assert not all(one.done() for one in running), "too few calls to kill one of them"
            time.sleep(0.001)
        os.kill(dead.process, signal.SIGKILL)
        found = [one.result() for one in running]
    assert found == expected
    assert f"process {dead.process} of" in caplog.text and "is lost" in caplog.text
    wait_for_two(replicas)
    assert dead.process not in [one.process for one in replicas.ready]


def test_a_replica_is_given_two_calls_at_a_time_and_the_rest_waits(local, remote, replicas):
    most = []

    def ask(k: int) -> None:
        remote.infill(requests(local, 1, seed=k), SAMPLING)
        most.extend(one.num_open for one in replicas.ready)

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(ask, range(64)))
    assert max(most) <= 2
    assert [one.num_open for one in replicas.ready] == [0, 0]


def test_what_has_no_place_is_said(cluster, replicas, caplog):
    with pytest.raises(DenoiserError, match=r"no replica .* is ready after 1 s: .*'num_gpus': 1"):
        load_denoiser(f"ray://{cluster}/llada", num_gpus=1, timeout=1)
    assert "1 replicas need 1 GPUs and the cluster has 0" in caplog.text


def test_what_cannot_be_loaded_there_raises_what_it_raises_here(cluster, replicas):
    with pytest.raises(UnknownDenoiserError, match="no-such-denoiser"):
        load_denoiser(f"ray://{cluster}/./no-such-denoiser", num_cpus=0, timeout=60)


def test_another_cluster_is_not_taken_for_this_one(replicas):
    with pytest.raises(ValueError, match="is connected to 127"):
        load_denoiser("ray://127.0.0.1:1/llada")
