"""Proposals a second, passes and peak memory of infilling: ours, and what one writes first.

Random instructions of 40 and 200 tokens stand in random contexts of 200, 1,000 and 3,000 tokens,
and windows of them are filled as ``DiffusionInfill`` has it done: window 8, stride 4, 8 masks, 8
proposals a window over a pool of two contexts, which is renewed after 8 windows::

    python tests/benchmarks/infill_speed.py --markdown OUT.md --json OUT.json [--plot OUT.png]
    python tests/benchmarks/infill_speed.py --device cuda --deadline 240 --json OUT.json

The model is the embedded denoiser, or with ``--model`` a LLaDA with random weights: ``llada-134m``,
``llada-8b`` (bfloat16; the default on a GPU) or ``llada-tiny``. Neither DSPy nor a download is
needed for these. All kinds fill the same windows of the same contexts on the same weights:

* ``published`` is LLaDA's own algorithm, made to fill masks anywhere: 128 passes over one text at a
  time, noise and softmax at all positions.
* ``full`` is what one writes first: as many passes as masks, each over one whole text, with logits
  at all positions.
* ``exact`` is ``denoiser.infill``, with the results of ``full``.
* ``window``, ``around`` and ``context`` are those values of ``Sampling(cache=…)``, which are
  approximations: ``dspy-infill calibrate`` measures how good.

With ``--compile default`` each of the last four kinds is measured twice in turn, plain and as
``load_denoiser(compile=…)`` has it; compilation is not timed. ``--cpu-time`` measures the CPU
seconds of all threads, which other work on the machine changes less.

A cell ends with the window in which its ``--seconds`` pass, at the latest with the 16th. All steps
of ``published`` and ``full`` cost the same, so some of them are timed, and the time of a proposal
is computed from that of a step. ``context`` pays for its contexts within its cell, so a cell that
is cut short makes it look slower than it is.

Passes and tokens are those that go through the model, a proposal. Memory is that of the weights and
the most that filling takes on top of them. ``--check 500`` measures nothing: it counts the random
requests, in batches of 1 to 32, to which ``exact`` gives other tokens than ``full`` at temperature
0, and exits with 1 if there are any.
"""

import argparse
import importlib.util
import json
import sys
import time
import types
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
if importlib.util.find_spec("dspy") is None:
    # On a bare GPU machine: the package's first module imports DSPy, for the optimizer, and writing
    # a denoiser to a folder imports pydantic. What is measured needs neither.
    for name, content in (
        ("dspy_diffusion_infill", {"__path__": [str(ROOT / "dspy_diffusion_infill")]}),
        ("dspy_diffusion_infill.denoisers.checkpoints.saving", {"save_checkpoint": None}),
    ):
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(content)

import torch  # noqa: E402
from process_memory import Memory  # noqa: E402
from reference import full_forward  # noqa: E402
from speed_models import MODELS, WINDOW, WINDOWS_PER_POOL, Task, is_bidirectional, load  # noqa: E402

from dspy_diffusion_infill.denoisers import Sampling  # noqa: E402
from dspy_diffusion_infill.denoisers.checkpoints.compiling import compile_layers  # noqa: E402
from dspy_diffusion_infill.denoisers.protocol import Compile  # noqa: E402
from dspy_diffusion_infill.denoisers.transformer import TransformerDenoiser  # noqa: E402
from dspy_diffusion_infill.errors import DenoiserMemoryError  # noqa: E402

KINDS = ("published", "full", "exact", "window", "around", "context")
PUBLISHED_STEPS = 128
MOST_WINDOWS = 2 * WINDOWS_PER_POOL
OURS = {
    "exact": Sampling(),
    "window": Sampling(cache="window"),
    "around": Sampling(cache="around"),
    "context": Sampling(cache="context"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One kind at one size; figures are None where memory ran out.

    Attributes:
        proposals: how many were made; a part of one where only some steps were timed.
        passes: calls of the model a proposal.
        tokens: tokens that went through it, a proposal.
        memory: of the weights and what was taken on top of them, bytes.
    """

    kind: str
    instructions: int
    context: int
    proposals: float = 0.0
    seconds: float = 0.0
    rate: float | None = None
    passes: float | None = None
    tokens: float | None = None
    memory: int | None = None


class Counter:
    """Counts the calls of a model, and the tokens that go through."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.passes = self.tokens = 0
        model.get_input_embeddings().register_forward_hook(self._count)

    def _count(self, _module: Any, args: tuple[torch.Tensor, ...], _output: Any) -> None:
        self.passes += 1
        self.tokens += args[0].numel()


class Bench:
    """Measures cells on one model."""

    def __init__(
        self,
        denoiser: TransformerDenoiser,
        *,
        num_proposals: int,
        seconds: float,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.denoiser, self.num_proposals, self.seconds = denoiser, num_proposals, seconds
        self.clock = clock
        self.counter = Counter(denoiser.model)
        self.memory = Memory(denoiser.model)

    def measure(
        self, kind: str, *, instructions: int, context: int, is_compiled: bool = False
    ) -> Cell:
        """One cell, after a first step that is not timed, on contexts of its own."""
        name = f"{kind}, compiled" if is_compiled else kind
        size = {"kind": name, "instructions": instructions, "context": context}
        tasks = [
            Task.random(
                instructions=instructions,
                context=context,
                mask_id=self.denoiser.mask_id,
                seed=seed,
            )
            for seed in (0, 1)
        ]
        fill = self._by_window if kind in OURS else self._by_step
        try:
            fill(kind, tasks[0], num=2, seconds=0, most=1)
            self.denoiser = TransformerDenoiser(self.denoiser.checkpoint, name=self.denoiser.name)
            self.memory.reset()
            passes, tokens, began = self.counter.passes, self.counter.tokens, self._now()
            proposals = fill(
                kind, tasks[1], num=self.num_proposals, seconds=self.seconds, most=MOST_WINDOWS
            )
            seconds = self._now() - began
        except (torch.OutOfMemoryError, DenoiserMemoryError):
            return Cell(**size)
        return Cell(
            **size,
            proposals=proposals,
            seconds=seconds,
            rate=proposals / seconds,
            passes=(self.counter.passes - passes) / proposals,
            tokens=(self.counter.tokens - tokens) / proposals,
            memory=self.memory.peak(),
        )

    def _by_window(self, kind: str, task: Task, *, num: int, seconds: float, most: int) -> float:
        """Fills windows until the time is over; returns how many proposals it made."""
        began, done = self._now(), 0
        while done == 0 or (done < most and self._now() - began < seconds):
            self.denoiser.infill(task.requests(done, num), OURS[kind])
            done += 1
        return done * num

    def _by_step(self, kind: str, task: Task, *, num: int, seconds: float, most: int) -> float:
        """Takes steps until the time is over; returns of how many proposals they are."""
        steps = WINDOW if kind == "full" else PUBLISHED_STEPS
        began, done = self._now(), 0
        while done == 0 or (done < most * steps and self._now() - began < seconds):
            if done % steps == 0:
                request = task.requests(done // steps, 1)[0]
                state = full_forward.state_of(self.denoiser, request, Sampling())
            if kind == "full":
                full_forward.step(self.denoiser, state)
            else:
                state.ids = full_forward.published_llada_step(
                    self.denoiser,
                    state.ids,
                    count=int(done % steps < WINDOW),
                    temperature=self.denoiser.checkpoint.temperature,
                )
            done += 1
        return done / steps

    def _now(self) -> float:
        if self.denoiser.model.device.type == "cuda":
            torch.cuda.synchronize()
        return self.clock()


COLUMNS: dict[str, Callable[[Cell, float | None], str]] = {
    "context": lambda cell, _: f"{cell.context}",
    "instructions": lambda cell, _: f"{cell.instructions}",
    "kind": lambda cell, _: cell.kind,
    "proposals/s": lambda cell, _: "out of memory" if cell.rate is None else f"{cell.rate:.3g}",
    "× full": lambda cell, full: f"{cell.rate / full:.3g}" if cell.rate and full else "",
    "passes": lambda cell, _: "" if cell.passes is None else f"{cell.passes:.2f}",
    "tokens": lambda cell, _: "" if cell.tokens is None else f"{cell.tokens:.0f}",
    "GB": lambda cell, _: "" if cell.memory is None else f"{cell.memory / 1e9:.2f}",
    "timed": lambda cell, _: f"{cell.seconds:.1f} s",
}


def row_of(cell: Cell, cells: list[Cell]) -> str:
    """The cell's line in Markdown."""
    full = next(
        (one.rate for one in cells if one.kind == "full" and _size(one) == _size(cell)), None
    )
    return "| " + " | ".join(text(cell, full) for text in COLUMNS.values()) + " |"


def _size(cell: Cell) -> tuple[int, int]:
    return cell.context, cell.instructions


def plot(cells: list[Cell], path: Path) -> None:
    """Seconds a proposal over the context's length, one panel for each length of instructions."""
    from matplotlib import pyplot

    lengths = sorted({cell.instructions for cell in cells})
    figure, panels = pyplot.subplots(1, len(lengths), sharey=True, squeeze=False, figsize=(9, 4))
    for panel, length in zip(panels[0], lengths, strict=True):
        for kind in KINDS:
            own = [c for c in cells if (c.kind, c.instructions) == (kind, length) and c.rate]
            panel.plot([c.context for c in own], [1 / c.rate for c in own], marker="o", label=kind)
        panel.set(title=f"{length} tokens of instructions", xlabel="context, tokens", yscale="log")
    panels[0][0].set_ylabel("seconds a proposal")
    panels[0][0].legend()
    figure.savefig(path, bbox_inches="tight", dpi=150)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--model", choices=MODELS, help="embedded; on a GPU llada-8b")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16"))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--contexts", nargs="+", type=int, default=[200, 1000, 3000])
    parser.add_argument("--instructions", nargs="+", type=int, default=[40, 200])
    parser.add_argument("--num-proposals", type=int, default=8, help="of each window")
    parser.add_argument("--seconds", type=float, default=5, help="about what a cell may take")
    parser.add_argument("--deadline", type=float, default=1e9, help="no cell is begun after it, s")
    parser.add_argument("--compile", choices=get_args(Compile), help="ours compiled too")
    parser.add_argument("--cpu-time", action="store_true", help="CPU seconds, not those of a clock")
    parser.add_argument("--check", type=int, help="compares so many requests; measures nothing")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    options.model = options.model or ("embedded" if options.device == "cpu" else "llada-8b")
    return options


def in_turn(options: argparse.Namespace) -> list[tuple[str, bool]]:
    """The kinds, ``full`` first, and whether they are compiled."""
    kinds = sorted(options.kinds, key=lambda kind: kind != "full")
    both = (False, True) if options.compile else (False,)
    return [(kind, one) for kind in kinds for one in both if kind in OURS or not one]


def main() -> None:
    options, began = parse(), time.perf_counter()
    denoiser = load(options.model, device=options.device, dtype=options.dtype)
    if options.check:
        batching = TransformerDenoiser(
            denoiser.checkpoint, name=denoiser.name, tokens_per_batch=2048
        )
        differing = full_forward.num_differing(batching, options.check, seed=0)
        print(f"{differing} of {options.check} requests differ")
        sys.exit(differing > 0)
    machine: dict[str, Any] = {
        "model": options.model,
        "weights_bytes": denoiser.model.get_memory_footprint(),
        "dtype": str(denoiser.model.dtype).removeprefix("torch."),
        "device": torch.cuda.get_device_name() if options.device != "cpu" else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "seconds_to_load": round(time.perf_counter() - began, 1),
        "is_bidirectional": is_bidirectional(denoiser),
        "num_proposals": options.num_proposals,
    }
    print(json.dumps(machine))
    bench = Bench(
        denoiser,
        num_proposals=options.num_proposals,
        seconds=options.seconds,
        clock=time.process_time if options.cpu_time else time.perf_counter,
    )
    if options.compile:
        compile_layers(denoiser.model, options.compile)
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    print(*lines, sep="\n", flush=True)
    cells: list[Cell] = []
    for context in options.contexts:
        for instructions in options.instructions:
            for kind, is_compiled in in_turn(options):
                if time.perf_counter() - began > options.deadline:
                    continue
                if options.compile:
                    torch.compiler.set_stance("default" if is_compiled else "force_eager")
                size = {"instructions": instructions, "context": context}
                cells.append(bench.measure(kind, is_compiled=is_compiled, **size))
                lines.append(row_of(cells[-1], cells))
                print(lines[-1], flush=True)
                if options.json:
                    figures = machine | {"cells": [asdict(cell) for cell in cells]}
                    options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    if options.markdown:
        options.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if options.plot:
        plot(cells, options.plot)


if __name__ == "__main__":
    main()
