"""What a proposal of the embedded denoiser must cost on this machine, and what it does cost.

Measured in one run: the most floating-point operations that a matrix product does in a second, the
bytes that are read from memory in a second, and the passes of a proposal as ``infill_speed.py``
has them (instructions of 40 tokens, windows of 8 masks)::

    OMP_NUM_THREADS=1 python tests/benchmarks/roofline.py --contexts 200 1000 3000

Each pass is counted: 2 operations a weight and token, 4 for each number of a query and each token
that it sees, and the vocabulary head where it is read; all weights, and the keys and values seen,
come from memory once. A pass takes at least as long as the slower of the two. Seconds are CPU
seconds, of one thread or the sum of several, so that other work on the machine counts little. It
takes cache and memory bandwidth all the same, from what is measured at that moment.

``exact`` makes one proposal (a batch of eight shares its first pass). ``window`` is one window of
eight proposals over two contexts, ``context`` eight such windows, the computation of their contexts
included.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import infill_speed  # noqa: F401  (finds the package)
import torch
from speed_models import MODELS, WINDOWS_PER_POOL, Task, load

from dspy_diffusion_infill.denoisers import Sampling
from dspy_diffusion_infill.denoisers.protocol import Cache
from dspy_diffusion_infill.denoisers.transformer import TransformerDenoiser

KINDS: dict[str, tuple[Cache, int, int]] = {
    "exact": ("off", 1, 1),
    "window": ("window", 1, 8),
    "context": ("context", WINDOWS_PER_POOL, 8),
}
"""Cache, windows, and proposals of each."""
SIZES = (512, 1024, 2048)
STREAMED = 2**28
"""Bytes that are read: more than any cache holds."""


def cpu_seconds(what: Callable[[], Any]) -> float:
    began = time.process_time()
    what()
    return time.process_time() - began


@dataclass(frozen=True, slots=True)
class Peak:
    """What the machine can do in a CPU second.

    Attributes:
        operations: in matrix products.
        num_bytes: read from memory.
    """

    operations: float
    num_bytes: float

    @classmethod
    def measured(cls, dtype: torch.dtype, *, rounds: int = 5) -> "Peak":
        """The best of several rounds and sizes."""
        operations = 0.0
        for size in SIZES:
            a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
            least = min(cpu_seconds(lambda a=a, b=b: a @ b) for _ in range(rounds))
            operations = max(operations, 2 * size**3 / least)
        stream = torch.ones(STREAMED // 4)
        least = min(cpu_seconds(stream.sum) for _ in range(rounds))
        return cls(operations, STREAMED / least)


@dataclass(slots=True)
class Counter:
    """Adds up what the passes of a model must cost.

    Attributes:
        peak: of the machine.
        passes: so far.
        tokens: that went through.
        operations: of all passes.
        num_bytes: of all passes.
        least: seconds that all passes take at least.
    """

    model: Any
    peak: Peak
    passes: int = 0
    tokens: int = 0
    operations: float = 0.0
    num_bytes: float = 0.0
    least: float = 0.0
    _read: int = 0
    _past: int = 0
    _hooks: list[Any] = field(default_factory=list[Any])

    def __enter__(self) -> "Counter":
        head = self.model.get_output_embeddings()
        self._hooks = [
            head.register_forward_hook(self._count_read),
            self.model.register_forward_pre_hook(self._see, with_kwargs=True),
            self.model.register_forward_hook(self._count, with_kwargs=True),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _count_read(self, _head: Any, args: tuple[torch.Tensor, ...], _output: Any) -> None:
        self._read = args[0].shape[:-1].numel()

    def _see(self, _model: Any, _args: Any, named: dict[str, Any]) -> None:
        cache = next((named[name] for name in ("cache", "past_key_values") if name in named), None)
        self._past = 0 if cache is None else cache.get_seq_length()

    def _count(self, _model: Any, _args: Any, named: dict[str, Any], _output: Any) -> None:
        config, tokens = self.model.config, named["input_ids"].numel()
        entries, mask = self._past + tokens, named.get("attention_mask")
        pairs = int((mask == 0).sum()) if mask is not None and mask.dim() == 4 else tokens * entries
        vocabulary = config.vocab_size * config.hidden_size
        embeddings = vocabulary * (1 if config.tie_word_embeddings else 2)
        weights = sum(one.numel() for one in self.model.parameters()) - embeddings
        size = config.hidden_size // config.num_attention_heads
        kept = 2 * config.num_hidden_layers * config.num_key_value_heads * size
        queries = config.num_hidden_layers * config.num_attention_heads * size
        operations = 2 * weights * tokens + 4 * queries * pairs + 2 * vocabulary * self._read
        numbers = weights + kept * entries + vocabulary * (self._read > 0)
        num_bytes = numbers * self.model.dtype.itemsize
        self.passes, self.tokens = self.passes + 1, self.tokens + tokens
        self.operations += operations
        self.num_bytes += num_bytes
        self.least += max(operations / self.peak.operations, num_bytes / self.peak.num_bytes)


def row_of(denoiser: TransformerDenoiser, peak: Peak, kind: str, context: int) -> str:
    """A line of the table: one kind over contexts of one length."""
    cache, num_windows, num_proposals = KINDS[kind]
    fresh = TransformerDenoiser(denoiser.checkpoint, name=denoiser.name)
    task = Task.random(instructions=40, context=context, mask_id=fresh.mask_id, seed=context)
    requests = [task.requests(number, num_proposals) for number in range(num_windows)]

    def fill() -> None:
        for own in requests:
            fresh.infill(own, Sampling(cache=cache))

    with Counter(denoiser.model, peak) as counter:
        seconds = cpu_seconds(fill)
    num = num_windows * num_proposals
    cells = (
        str(denoiser.model.dtype).removeprefix("torch."),
        f"{context:,}",
        kind,
        f"{counter.passes / num:.2f}",
        f"{counter.tokens / num:,.0f}",
        f"{counter.operations / num / 1e9:,.0f}",
        f"{counter.num_bytes / num / 1e9:.2f}",
        f"{counter.least / num:.3f} s",
        f"{seconds / num:.3f} s",
        f"{counter.least / seconds:.0%}",
    )
    return f"| {' | '.join(cells)} |"


COLUMNS = (
    "dtype", "context", "kind", "passes", "tokens", "GFLOP", "GB", "least", "measured", "share",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="Least and measured time of a proposal.")
    parser.add_argument("--model", choices=MODELS, default="embedded")
    parser.add_argument("--contexts", nargs="+", type=int, default=[200, 1000, 3000])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    options = parser.parse_args()
    peaks = {name: Peak.measured(getattr(torch, name)) for name in options.dtypes}
    for name, peak in peaks.items():
        print(
            f"{name}: {peak.operations / 1e9:.0f} GFLOP/s, {peak.num_bytes / 1e9:.1f} GB/s, "
            f"{torch.get_num_threads()} threads"
        )
    print(f"\n| {' | '.join(COLUMNS)} |\n" + "|---" * len(COLUMNS) + "|", flush=True)
    for name, peak in peaks.items():
        denoiser = load(options.model, device="cpu", dtype=name)
        warm = Task.random(instructions=40, context=40, mask_id=denoiser.mask_id, seed=0)
        denoiser.infill(warm.requests(0, 1), Sampling())
        for context in options.contexts:
            for kind in options.kinds:
                print(row_of(denoiser, peak, kind, context), flush=True)


if __name__ == "__main__":
    main()
