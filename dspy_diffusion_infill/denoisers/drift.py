"""How far what is kept of a context has drifted from the text over it, told by one of its tokens.

The probe stands next to the instructions: behind them, or in front where nothing is behind. Each
pass computes it anew beside its own tokens, so it sees what was masked and filled in since. Its
drift is how far its values in the model's last layer have moved. Values have no position (RoPE
turns keys alone), so texts that are longer or shorter than their context need no correction.
"""

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from dspy_diffusion_infill.denoisers.growing_cache import GrowingCache


@dataclass(frozen=True, slots=True)
class DriftProbe:
    """The token that tells.

    Attributes:
        position: in the text.
        max_drift: how far its values may move, a share of their length.
        kept: its values as they are kept.
    """

    position: int
    max_drift: float
    kept: Float[Tensor, " numbers"] = field(default_factory=lambda: torch.zeros(0))

    def over(self, cache: GrowingCache, entry: int) -> "DriftProbe":
        """The same token with this entry as what is kept."""
        return replace(self, kept=probed(cache, entry))

    def has_drifted(self, cache: GrowingCache, entry: int) -> bool:
        """Whether an entry that was computed anew is too far from what is kept."""
        return self.drift(cache, entry) > self.max_drift

    def drift(self, cache: GrowingCache, entry: int) -> float:
        """The distance, a share of the kept one's length: 0 or more."""
        moved = torch.linalg.vector_norm(probed(cache, entry) - self.kept)
        return float(moved / torch.linalg.vector_norm(self.kept))


def probed(cache: GrowingCache, entry: int) -> Float[Tensor, " numbers"]:
    """What is compared, of an entry: its values in the last layer, in float32."""
    return cache.entries(len(cache) - 1)[1][0, :, entry].float().flatten()


def with_probe(first: int, last: int, length: int) -> tuple[int, int, int | None]:
    """The tokens from ``first`` to ``last`` with the probe, and its position.

    None where no other token is: nothing is taken from the context then.
    """
    if last < length:
        return first, last + 1, last
    return (first - 1, last, first - 1) if first > 0 else (first, last, None)
