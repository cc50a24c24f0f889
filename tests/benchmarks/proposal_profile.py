"""Where the time of a proposal goes: in the model, or in what is around it.

Windows of the bundled task's instructions are filled as a search fills them, contexts drawn and
tokenized and proposals spliced, with each cache in turn::

    OMP_NUM_THREADS=1 python tests/benchmarks/proposal_profile.py --windows 6

The time of the model is that of its forward passes, whole calls of it alone. All are CPU seconds,
so that other work on the machine counts little; with one thread these are a proposal's time.
"""

import argparse
import random
import time
from typing import Any

import infill_speed  # noqa: F401  (finds the package)
from speed_models import MODELS, load

from dspy_diffusion_infill.denoisers import Sampling
from dspy_diffusion_infill.infiller.hidden_windows import BUNDLED_INSTRUCTIONS, bundled_task
from dspy_diffusion_infill.infiller.infiller import Infiller
from dspy_diffusion_infill.windows import Piece, Window

NUM_MASKS, NUM_PROPOSALS = 8, 8


class Timed:
    """Adds up the seconds that a model's forward passes take."""

    def __init__(self, model: Any) -> None:
        self.seconds, self._forward = 0.0, model.forward
        model.forward = self._timed

    def _timed(self, *arguments: Any, **named: Any) -> Any:
        began = time.process_time()
        try:
            return self._forward(*arguments, **named)
        finally:
            self.seconds += time.process_time() - began


def windows(text: str, count: int, rng: random.Random) -> list[Window]:
    """Two words each, somewhere in the text."""
    words = text.split(" ")
    found = []
    for _ in range(count):
        first = rng.randrange(len(words) - 2)
        start = len(" ".join(words[:first])) + (first > 0)
        end = start + len(" ".join(words[first : first + 2]))
        found.append(Window((Piece(start, end, NUM_MASKS),)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="embedded")
    parser.add_argument("--windows", type=int, default=6)
    options = parser.parse_args()
    denoiser = load(options.model, device="cpu", dtype="auto")
    timed, slot = Timed(denoiser.model), bundled_task()
    print("| cache | seconds a proposal | outside of the model |\n|---|---|---|")
    for cache in ("off", "window", "around", "context"):
        infiller = Infiller(denoiser, Sampling(cache=cache))
        rng = random.Random(0)
        chosen = windows(BUNDLED_INSTRUCTIONS, options.windows + 1, rng)
        infiller.propose(slot, BUNDLED_INSTRUCTIONS, chosen[0], num=1, seed=0)  # warms up
        timed.seconds, began = 0.0, time.process_time()
        for seed, window in enumerate(chosen[1:]):
            infiller.propose(slot, BUNDLED_INSTRUCTIONS, window, num=NUM_PROPOSALS, seed=seed)
        whole = time.process_time() - began
        each = whole / (options.windows * NUM_PROPOSALS)
        print(f"| {cache} | {each:.3f} | {1 - timed.seconds / whole:.1%} |", flush=True)


if __name__ == "__main__":
    main()
