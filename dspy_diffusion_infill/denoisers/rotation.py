"""Rotary position embeddings (RoPE, arXiv 2104.09864) of keys that move to other positions."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Rotation:
    """What RoPE does to keys that move by some positions.

    Attributes:
        cos: of each number's angle.
        sin: of the same.
    """

    cos: Float[Tensor, " size"]
    sin: Float[Tensor, " size"]

    @classmethod
    def by(cls, positions: int, frequencies: Float[Tensor, " half"]) -> "Rotation":
        """Of so many positions further on, or back where they are below 0."""
        angles = positions * torch.cat([frequencies, frequencies])
        return cls(angles.cos(), angles.sin())

    def of(
        self, keys: Float[Tensor, "1 heads tokens size"]
    ) -> Float[Tensor, "1 heads tokens size"]:
        """The keys as they are there."""
        cos, sin = self.cos.to(keys.device), self.sin.to(keys.device)
        left, right = keys.float().chunk(2, dim=-1)
        turned = torch.cat([-right, left], dim=-1)
        return (keys * cos + turned * sin).to(keys.dtype)
