"""Log-likelihoods a second: the responses of the demo's 16 rows under 8 proposals.

The proposals differ in one window of the instructions, as those that guidance ranks. Scorers are
the embedded causal LM (``causal``) and the embedded denoiser (``denoiser``). With an older
checkout, both versions score the same pairs with the same weights in turn, each in a process of its
own::

    git worktree add --detach OLD 3f0530f
    python tests/benchmarks/likelihood_speed.py --rounds 3 --against OLD

CPU seconds are compared, so that other work on the machine counts little, and those of a clock; of
all rounds the least is taken. The last column is the largest difference of a log-likelihood, nats.
Run it with ``OMP_NUM_THREADS=1`` where the machine is not idle.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dspy_diffusion_infill.contexts import render_messages
from dspy_diffusion_infill.infiller.hidden_windows import BUNDLED_INSTRUCTIONS, bundled_task

ROOT = Path(__file__).resolve().parents[2]
WORKER = Path(__file__).with_name("likelihood_worker.py")
WEIGHTS = ROOT / "dspy_diffusion_infill/data/smollm2-fs"
WINDOW = "think about how the customer feels"
FILLINGS = (
    "ask yourself what the customer means",
    "look for words of praise or anger",
    "consider every word of the review",
    "find out whether it is a complaint",
    "weigh the good against the bad",
    "imagine that you are the customer",
    "decide if they would buy it again",
    "do not mind the spelling of it",
)
SCORERS, DTYPES = ("causal", "denoiser"), ("float32", "bfloat16")


@dataclass(slots=True)
class Side:
    """A version of the package at work in a process of its own.

    Attributes:
        process: reads pairs and writes scores.
        cpu: seconds of each round.
        wall: the same by the clock.
        scores: of the last round, nats.
    """

    process: "subprocess.Popen[str]"
    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)

    def read(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the worker ended with {self.process.wait()}")
        return json.loads(line)

    def ask(self, pairs: list[Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(pairs) + "\n")
        self.process.stdin.flush()
        return self.read()

    def round(self, pairs: list[Any]) -> None:
        """Scores all pairs once."""
        found = self.ask(pairs)
        self.cpu.append(found["cpu"])
        self.wall.append(found["wall"])
        self.scores = found["scores"]


def all_pairs() -> list[Any]:
    """[messages, response] of each row under each proposal."""
    slot = bundled_task()
    assert WINDOW in BUNDLED_INSTRUCTIONS, "the window must stand in the bundled instructions"
    prompts = [
        render_messages(slot, BUNDLED_INSTRUCTIONS.replace(WINDOW, filling), (example,))
        for filling in FILLINGS
        for example in slot.examples
    ]
    return [[prompt, response["content"]] for *prompt, response in prompts]


@contextmanager
def side(checkout: Path, kind: str, dtype: str) -> Iterator[Side]:
    """A worker with the package of a checkout."""
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    command = [sys.executable, str(WORKER), kind, dtype, str(WEIGHTS)]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            found = Side(process)
            package = Path(found.read()).resolve()
            if not package.is_relative_to(checkout.resolve()):
                raise SystemExit(f"{checkout} was asked for, {package} was imported")
            yield found
        finally:
            process.terminate()


def row_of(kind: str, dtype: str, sides: list[Side], num_pairs: int) -> str:
    """A line of the table; the older version comes last."""
    new, old = sides[0], sides[-1]
    rates = [f"{num_pairs / min(own.cpu):.1f}" for own in sides[::-1]]
    ratios = [f"{min(old.cpu) / min(new.cpu):.2f}", f"{min(old.wall) / min(new.wall):.2f}"]
    most = max(abs(a - b) for a, b in zip(new.scores, old.scores, strict=True))
    compared = [*ratios, f"{most:.1e}"] if len(sides) > 1 else []
    return f"| {' | '.join([kind, dtype, *rates, *compared])} |"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Log-likelihoods a second.")
    parser.add_argument("--against", type=Path, help="an older checkout of this repository")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scorers", nargs="+", choices=SCORERS, default=list(SCORERS))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    return parser.parse_args()


def main() -> None:
    options, pairs = parse(), all_pairs()
    checkouts = [ROOT, *([options.against] if options.against else [])]
    columns = ["scorer", "dtype", *["before", "now"][2 - len(checkouts) :]]
    columns += ["× CPU", "× clock", "difference"] if options.against else []
    print(f"| {' | '.join(columns)} |\n" + "|---" * len(columns) + "|")
    for kind in options.scorers:
        for dtype in options.dtypes:
            with ExitStack() as stack:
                sides = [stack.enter_context(side(path, kind, dtype)) for path in checkouts]
                for own in sides:
                    own.ask(pairs[:1])  # warms up
                for _ in range(options.rounds):
                    for own in sides:
                        own.round(pairs)
                print(row_of(kind, dtype, sides, len(pairs)), flush=True)


if __name__ == "__main__":
    main()
