"""Compiles on a loopback LM that fails in four of five calls, and on some that die on the way.

``python tests/benchmarks/failures.py`` takes some minutes, as DSPy's own retries wait in between.
"""

import argparse
import os
import random
import sys
import threading
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # asks no network
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from killed import Killer, answer, compiled
from loopback import loopback, prompt_of

from dspy_diffusion_infill.errors import TooManyErrors

FAILED = -1.0


class Flaky:
    """A fifth each of the requests meets 429, 500, silence, garbage, and the answer."""

    def __init__(self, *, hang: float, seed: int = 0) -> None:
        """``hang`` is the silence in seconds."""
        self._hang, self._seed, self._lock = hang, seed, threading.Lock()
        self._times = Counter[str]()
        self.sent: list[str] = []

    def __call__(self, number: int, body: dict[str, Any]) -> str | int | bytes:
        prompt = prompt_of(body)
        with self._lock:
            self._times[prompt] += 1
            rng = random.Random(f"{self._seed}/{self._times[prompt]}/{prompt}")
        kind, garbage = rng.randrange(5), rng.randbytes(200)
        if kind == 0:
            time.sleep(self._hang)
        if kind < 4:
            return (garbage, 429, 500, garbage)[kind]
        self.sent.append(answer(prompt))
        return self.sent[-1]


def compile_flaky(*, hang: float, **options: Any) -> dict[str, Any]:
    """A compile's result, with what was scored though nothing was answered, as ``unanswered``.

    Args:
        hang: seconds of silence, after which garbage comes.
        options: of the compile.
    """
    flaky, seen = Flaky(hang=hang), []

    def metric(example, prediction, trace=None):
        seen.append(prediction.colour)
        return float(example.colour in prediction.colour)

    with loopback(flaky) as server:
        options = {"metric": metric, "failure_score": FAILED, "max_errors": 10_000, **options}
        found = compiled(None, server.url, "left_to_right", **options)
    scores = [*found["before"], *(score for one in found["trials"] for score in one.scores)]
    answered = len(seen) - sum(colour not in flaky.sent for colour in seen)
    return {**found, "unanswered": sum(score != FAILED for score in scores) - answered}


def seconds_after_death(call: int, *, hangs: bool = False, **options: Any) -> float:
    """Seconds from the death of an LM after so many calls to the end of the compile.

    Args:
        call: number of the call.
        hangs: whether calls from then on are taken and never answered, or else refused.
        options: of the compile.
    """
    with ExitStack() as stack:
        died: list[float] = []

        def dies(number: int, body: dict[str, Any]) -> str:
            if number == call:
                died.append(time.monotonic())
                if not hangs:
                    threading.Thread(target=stack.close).start()
            if hangs and number >= call:
                threading.Event().wait()
            return Killer()(number, body)

        server = stack.enter_context(loopback(dies))
        try:
            compiled(None, server.url, "left_to_right", **options)
        except TooManyErrors as error:
            print(f"{error}; best: {error.detailed_results.score_after:.2f}")
        return time.monotonic() - died[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hang", type=float, default=30)
    parser.add_argument("--max-seconds", type=float, default=180)
    parser.add_argument("--timeout", type=float, default=10, help="of the LM's client")
    options = parser.parse_args()
    broken = 0
    for threads in (4, 1):
        for hangs in (False, True):
            limit = {"run_timeout": 15} if hangs else {}
            seconds = seconds_after_death(40, hangs=hangs, num_threads=threads, **limit)
            broken += seconds > 60 and not hangs  # docs/options.md says what a run_timeout gives
            kind = "hangs (run_timeout=15)" if hangs else "refuses"
            print(f"an LM that {kind}, {threads} threads: the compile ends after {seconds:.0f} s")
    started = time.monotonic()
    found = compile_flaky(
        hang=options.hang, lm={"timeout": options.timeout}, max_seconds=options.max_seconds
    )
    seconds = time.monotonic() - started
    broken += seconds > options.max_seconds
    print(
        f"a failing LM: {found['end']} after {seconds:.0f} s and "
        f"{found['spent'][0]} runs, {found['failures']} of them failed; "
        f"{found['unanswered']} scored that were not answered"
    )
    sys.exit(broken > 0 or found["unanswered"] != 0)


if __name__ == "__main__":
    main()
