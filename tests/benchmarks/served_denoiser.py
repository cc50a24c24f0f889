"""Clients ask two served replicas of a tiny denoiser, and one of them is killed (kill -9).

``python tests/benchmarks/served_denoiser.py --clients 8 --requests 1000`` takes about a minute.
Every answer is compared with that of the denoiser in this process.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tiny_denoisers import MASK_ID, save_published

from dspy_diffusion_infill import InfillRequest, Sampling, load_denoiser

TOKEN = "a-token-of-a-benchmark"
TEXT = list(range(40, 60))


@dataclass(frozen=True)
class Outcome:
    """What became of all requests.

    Attributes:
        answered: requests that got the answer of the local denoiser.
        twice: requests that got more than one.
        before: requests that were answered when a replica was killed.
        seconds: from the first request to the last answer.
        survivor: exit status of the other replica after SIGTERM.
    """

    answered: int
    twice: int
    before: int
    seconds: float
    survivor: int


def started(folder: Path) -> tuple[subprocess.Popen[str], str]:
    """A server process, and its address once it listens."""
    main = "from dspy_diffusion_infill.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", main, "serve", str(folder), "--port", "0", "--device", "cpu"],
        env={**os.environ, "DSPY_INFILL_TOKEN": TOKEN, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()  # serving NAME at ADDRESS (Ctrl-C ends it)
    return process, line.split(" at ")[1].split()[0]


def with_a_kill(folder: Path, *, clients: int, requests: int) -> Outcome:
    """Kills one of two replicas once a quarter of the requests is answered."""
    save_published(folder / "llada", "llada")
    with ThreadPoolExecutor(2) as threads:
        (doomed, first), (other, second) = threads.map(started, [folder / "llada"] * 2)
    local = load_denoiser(folder / "llada", device="cpu")
    masked, sampling = [*TEXT[:5], *[MASK_ID] * 4, *TEXT[9:]], Sampling(steps=4)
    asked = [InfillRequest(masked, seed=k) for k in range(requests)]
    answers: list[list] = [[] for _ in asked]
    num_answers, lock, quarter = 0, threading.Lock(), threading.Event()

    def ask(client: int) -> None:
        nonlocal num_answers
        remote = load_denoiser([first, second], token=TOKEN)
        for k in range(client, requests, clients):
            answers[k] += [one.input_ids for one in remote.infill([asked[k]], sampling)]
            with lock:
                num_answers += 1
            if 4 * num_answers >= requests:
                quarter.set()
        remote.close()

    began = time.monotonic()
    with ThreadPoolExecutor(clients) as threads:
        running = [threads.submit(ask, client) for client in range(clients)]
        quarter.wait()
        doomed.kill()
        before = num_answers
        for one in running:
            one.result()
    seconds = time.monotonic() - began
    other.terminate()
    survivor = other.wait(60)
    doomed.wait()
    for process in (doomed, other):
        process.stdout.close()
    expected = [one.input_ids for one in local.infill(asked, sampling)]
    answered = sum(own == [one] for own, one in zip(answers, expected, strict=True))
    twice = sum(len(own) > 1 for own in answers)
    return Outcome(answered, twice, before, seconds, survivor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=1000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = with_a_kill(Path(folder), clients=options.clients, requests=options.requests)
    print(
        f"{found.answered} of {options.requests} answered as by the local denoiser, {found.twice} "
        f"twice; a replica was killed after {found.before}; {found.seconds:.1f} s; the other one "
        f"ended with status {found.survivor} on SIGTERM"
    )
    sys.exit(found.answered < options.requests or found.twice > 0)


if __name__ == "__main__":
    main()
