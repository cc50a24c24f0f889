"""A compile on a loopback LM that is killed (kill -9) at some moment and resumed in its folder.

``test_killed`` makes a few of them, ``tests/benchmarks/kills.py`` many.
"""

import json
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dspy
from doubles import WordCountScorer, WordDenoiser
from loopback import Loopback, loopback, prompt_of

from dspy_diffusion_infill.optimizer.diffusion_infill import DiffusionInfill
from dspy_diffusion_infill.template_adapter import TemplateAdapter

THREADS, CALLS = 4, 2  # of an evaluation; of a run
COLOURS = ["red", "blue", "green", "grey", "pink", "black"]
ROWS = [
    dspy.Example(text=f"number {k} is {colour}", colour=colour).with_inputs("text")
    for k, colour in enumerate(COLOURS)
]
SEARCHES: dict[str, dict[str, Any]] = {
    "left_to_right": {"sweeps": 1, "num_proposals": 4},
    "adaptive": {
        "order": "adaptive",
        "validation": "racing",
        "guidance": WordCountScorer(),
        "max_metric_calls": 80,
    },
}


class Clues(dspy.Module):
    """Two predictors; no row labels what is between them."""

    def __init__(self) -> None:
        super().__init__()
        self.find = dspy.Predict(
            dspy.Signature("text -> clue", "Find the clue in what the customer has written to us")
        )
        self.name = dspy.Predict(
            dspy.Signature("clue -> colour", "Name the colour that is meant by it and no other")
        )

    def forward(self, text: str) -> dspy.Prediction:
        return self.name(clue=self.find(text=text).clue)


def answer(prompt: str) -> str:
    """The more often "only" and "word" appear, the more rows each predictor is right about."""
    told = len(re.findall(r"\b(?:only|word)\b", prompt))
    if found := re.findall(r"number (\d) is (\w+)", prompt):
        row, colour = found[-1]
        return f"{colour} {row}" if told >= int(row) - 1 else "nothing"
    clues = re.findall(rf"({'|'.join(COLOURS)}) (\d)", prompt)
    return clues[-1][0] if clues and told >= int(clues[-1][1]) - 2 else "no idea"


def compiled(
    folder: Path | None,
    url: str,
    search: str,
    *,
    student: dspy.Module | None = None,
    rows: Sequence[dspy.Example] = ROWS,
    lm: dict[str, Any] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """What a compile ends with that must not depend on how often it was cut off."""
    answering = Loopback(url).lm(**{"num_retries": 3, **(lm or {})})
    optimizer = DiffusionInfill(
        options.pop("metric", None),
        WordDenoiser(),
        log_dir=folder,
        display_progress=False,
        prices={"openai/loopback": (0.0, 0.0)},
        seed=3,
        **{"num_threads": THREADS, "guidance": None, **SEARCHES[search], **options},
    )
    with dspy.context(lm=answering, adapter=TemplateAdapter()):
        better = optimizer.compile(student or Clues(), rows)
    results = better.detailed_results
    return {
        "instructions": results.instructions_after,
        "before": results.scores_before,
        "scores": results.scores_after,
        "trials": results.trials,
        "counts": results.counts,
        "spent": (results.metric_calls, results.lm_tokens),
        "failures": results.num_failures,
        "end": results.end_reason,
        "candidates": [
            (row["score"], [p.signature.instructions for p in row["program"].predictors()])
            for row in better.candidate_programs
        ],
    }


@dataclass(slots=True)
class Killer:
    """Answers for the loopback LM, and kills a process a while after some call.

    Attributes:
        process: to kill; None kills nothing.
        call: number of the call, from 0.
        delay: seconds from then.
        latency: seconds that an answer takes.
    """

    process: subprocess.Popen[bytes] | None = None
    call: int = 0
    delay: float = 0.0
    latency: float = 0.004

    def __call__(self, number: int, body: dict[str, Any]) -> str:
        if self.process is not None and number == self.call:
            threading.Timer(self.delay, self.process.kill).start()
        time.sleep(self.latency)
        return answer(prompt_of(body))


@dataclass(frozen=True, slots=True)
class Kill:
    """What came of one kill and the compile after it.

    Attributes:
        was_killed: whether the kill came before the end.
        is_same: whether instructions, scores, trials and candidates are the uninterrupted run's.
        before: calls until the kill.
        journaled: of these, calls of runs that the journal has.
        again: calls that were made twice.
    """

    was_killed: bool
    is_same: bool
    before: int
    journaled: int
    again: int

    @property
    def is_good(self) -> bool:
        """Whether nothing is lost but the runs that were under way."""
        in_flight = self.before - self.journaled
        return self.is_same and self.again == in_flight <= THREADS * CALLS


def uninterrupted(search: str) -> tuple[dict[str, Any], int]:
    """The result of a compile that nothing cuts off, and the calls that it makes."""
    with loopback(Killer()) as server:
        return compiled(None, server.url, search), len(server.bodies)


def kill_once(
    folder: Path, search: str, rng: random.Random, whole: tuple[dict[str, Any], int]
) -> Kill:
    """Kills a compile at a random moment, and compiles again in its folder."""
    expected, num_calls = whole
    killer = Killer(call=rng.randrange(num_calls), delay=rng.uniform(0, 0.03))
    with loopback(killer) as server:
        was_killed = _killed(folder, search, killer, server)
        before, journaled = len(server.bodies), CALLS * _num_runs(folder / "journal.jsonl")
        found = compiled(folder, server.url, search)
        again = len(server.bodies) - num_calls
    return Kill(was_killed, found == expected, before, journaled, again)


def refused(folder: Path, url: str, search: str) -> None:
    """Prints what a compile is refused with, after the seconds that it took, as JSON."""
    begun = time.monotonic()
    try:
        compiled(folder, url, search)
    except ValueError as error:
        print(json.dumps([time.monotonic() - begun, str(error)]))


def started(
    folder: Path, search: str, url: str, job: str = "compiled", **options: Any
) -> subprocess.Popen[bytes]:
    """A compile in a process of its own.

    Args:
        folder: its ``log_dir``.
        search: a name in ``SEARCHES``.
        url: of the LM.
        job: the function of this module that compiles.
        options: of ``Popen``.
    """
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}; "
        "import signal; from pathlib import Path; import killed; "
        # A shell has the processes that it starts in the background ignore it.
        "signal.signal(signal.SIGINT, signal.default_int_handler); "
        f"killed.{job}(Path({str(folder)!r}), {url!r}, {search!r})"
    )
    return subprocess.Popen([sys.executable, "-c", code], **options)


def _killed(folder: Path, search: str, killer: Killer, server: Loopback) -> bool:
    """Runs a compile in a process of its own until it is killed; whether it was."""
    killer.process = started(folder, search, server.url)
    code = killer.process.wait()
    assert code in (0, -signal.SIGKILL), "the compile failed before it was killed"
    killer.process = None
    time.sleep(0.2)  # requests that it has sent are counted
    return code != 0


def _num_runs(journal: Path) -> int:
    """Runs whose lines are whole."""
    lines = journal.read_bytes().split(b"\n")[1:-1]
    entries = [json.loads(line) for line in lines]
    return sum(entry["about"] in ("baseline", "trial") for entry in entries)
