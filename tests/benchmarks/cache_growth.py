"""How the cost of a cached proposal grows with its context, and what memory it takes.

Windows of random instructions of 40 tokens are filled over contexts of two lengths with
``Sampling(cache="context")``, in turn, in one process. CPU seconds are compared and not those of a
clock, so that other work on the machine counts little; of all rounds the least is taken::

    python tests/benchmarks/cache_growth.py --contexts 1000 3000 --proposals 32

``filling`` is a window over contexts that are kept. ``prefill`` is what a new context costs once,
and ``with prefill`` a proposal's share of both, where a pool of two contexts lives for 8 windows.
Memory is that of the weights and the most that a window takes on top of them, its contexts
included (Linux). glibc leaves holes between the tensors of a pass;
``MALLOC_MMAP_THRESHOLD_=400000`` in the environment gives these back, and takes no longer.
"""

import argparse
import time
from collections.abc import Callable

import infill_speed  # noqa: F401  (finds the package)
from process_memory import Memory
from speed_models import CONTEXTS_PER_POOL, MODELS, WINDOWS_PER_POOL, Task, load

from dspy_diffusion_infill.denoisers import Sampling
from dspy_diffusion_infill.denoisers.transformer import TransformerDenoiser

SHARED = Sampling(cache="context")


class Filler:
    """One denoiser over contexts of one length."""

    def __init__(self, denoiser: TransformerDenoiser, *, context: int, proposals: int) -> None:
        self.denoiser, self.context, self.proposals = denoiser, context, proposals
        self.task = Task.random(
            instructions=40, context=context, mask_id=denoiser.mask_id, seed=context
        )

    def fresh(self) -> None:
        """Forgets the contexts."""
        self.denoiser = TransformerDenoiser(self.denoiser.checkpoint, name=self.denoiser.name)

    def window(self) -> None:
        """Fills a window of the first pool."""
        self.denoiser.infill(self.task.requests(0, self.proposals), SHARED)


def cpu_seconds(what: Callable[[], None]) -> float:
    began = time.process_time()
    what()
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="embedded")
    parser.add_argument("--contexts", nargs="+", type=int, default=[1000, 3000])
    parser.add_argument("--proposals", type=int, default=32, help="of a window")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    denoiser = load(options.model, device="cpu", dtype="auto")
    fillers = [
        Filler(denoiser, context=context, proposals=options.proposals)
        for context in options.contexts
    ]
    memory, weights = Memory(denoiser.model), denoiser.model.get_memory_footprint()
    found: list[list[tuple[float, float, float]]] = [[] for _ in fillers]
    for _ in range(options.rounds):
        for filler, own in zip(fillers, found, strict=True):
            filler.fresh()
            memory.reset()
            first, again = cpu_seconds(filler.window), cpu_seconds(filler.window)
            own.append((first, again, memory.peak() / weights))
            filler.fresh()
    print("| context | filling | prefill | with prefill | memory, × weights |\n" + "|---" * 5 + "|")
    share = CONTEXTS_PER_POOL / (WINDOWS_PER_POOL * options.proposals)
    for filler, own in zip(fillers, found, strict=True):
        first, again = (min(one[k] for one in own) for k in (0, 1))
        fill, prefill = again / options.proposals, (first - again) / CONTEXTS_PER_POOL
        print(
            f"| {filler.context} | {fill:.3f} s | {prefill:.2f} s | {fill + share * prefill:.3f} s "
            f"| {max(one[2] for one in own):.2f} |"
        )


if __name__ == "__main__":
    main()
