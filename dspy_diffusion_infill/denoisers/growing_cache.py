"""A KV cache that grows in place, and attention over it that copies nothing.

transformers' ``DynamicCache`` makes new keys and values of all entries in each layer of each pass.
Here they stand in buffers with room behind them, new entries are written there, and those that are
not needed any more are cut off or closed up.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from dspy_diffusion_infill.denoisers.grouped_attention import attend_by, grouped_sdpa

ROOM = 256
"""Buffers have room for so many more entries than are asked for."""
GROUPED = "dspy_infill_grouped_sdpa"


class GrowingCache(Cache):
    """Keys and values of each layer, as views of buffers.

    Args:
        num_layers: of the model.
        dtype: of the buffers; None is the model's. The model gets its own in any case.
    """

    def __init__(self, num_layers: int, *, dtype: torch.dtype | None = None) -> None:
        self._layers = [DynamicLayer() for _ in range(num_layers)]
        super().__init__(layers=[*self._layers])
        self._dtype = dtype
        self._buffers: list[Float[Tensor, "2 batch heads room size"] | None] = [None] * num_layers

    @property
    def num_bytes(self) -> int:
        """Of the buffers of all layers."""
        made = [buffer for buffer in self._buffers if buffer is not None]
        return sum(buffer.numel() * buffer.element_size() for buffer in made)

    def has_room(self, num: int) -> bool:
        """Whether so many more entries fit the buffers."""
        first = self._buffers[0]
        return first is not None and self.get_seq_length() + num <= first.shape[3]

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        layer_idx: int,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """Takes new entries of a layer up; returns all."""
        old = self.get_seq_length(layer_idx)
        new = old + key_states.shape[2]
        buffer = self._with_room(layer_idx, key_states, old, new)
        buffer[0, :, :, old:new], buffer[1, :, :, old:new] = key_states, value_states
        self._cut(layer_idx, new)
        keys, values = self.entries(layer_idx)
        return keys.to(key_states.dtype), values.to(value_states.dtype)

    def cut(self, length: int) -> None:
        """Drops the entries from ``length`` on."""
        for number in range(len(self._buffers)):
            self._cut(number, length)

    @torch.inference_mode()
    def keep(self, is_kept: Bool[Tensor, " entries"]) -> None:
        """Drops the others, and closes the gaps."""
        kept = is_kept.nonzero()[:, 0]
        first = int((kept == torch.arange(len(kept))).sum())
        for buffer in self._buffers:
            if buffer is not None:
                buffer[:, :, :, first : len(kept)] = buffer[:, :, :, kept[first:].to(buffer.device)]
        self.cut(len(kept))

    def entries(self, number: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, (batch, heads, entries, size)."""
        layer = self._layers[number]
        assert layer.keys is not None and layer.values is not None, "the layer holds no entry yet"
        return layer.keys, layer.values

    def _cut(self, number: int, length: int) -> None:
        layer, buffer = self._layers[number], self._buffers[number]
        if buffer is not None:
            layer.keys, layer.values = buffer[:, :, :, :length]
            layer.is_initialized = True

    def _with_room(self, number: int, like: Tensor, old: int, new: int) -> Tensor:
        """The layer's buffer, or a larger one with its first ``old`` entries."""
        buffer = self._buffers[number]
        if buffer is not None and new <= buffer.shape[3]:
            return buffer
        batch, heads, _, size = like.shape
        # One block on a CPU: between the passing tensors of a pass, small ones would leave holes.
        some = range(len(self._buffers)) if like.device.type == "cpu" else [number]
        shape = (len(some), 2, batch, heads, new + ROOM, size)
        block = like.new_empty(shape, dtype=self._dtype or like.dtype)
        for k, larger in zip(some, block, strict=True):
            if (smaller := self._buffers[k]) is not None:
                larger[:, :, :, :old] = smaller[:, :, :, :old]
            self._buffers[k] = larger
            self._cut(k, self.get_seq_length(k))
        return block[list(some).index(number)]


def attend_in_groups(model: PreTrainedModel) -> None:
    """Has the model attend with ``grouped_attention``, where it attends with ``sdpa`` so far."""
    attend_by(model, GROUPED, grouped_attention)


def grouped_attention(
    module: torch.nn.Module,
    query: Float[Tensor, "batch heads length size"],
    key: Float[Tensor, "batch groups entries size"],
    value: Float[Tensor, "batch groups entries size"],
    attention_mask: Float[Tensor, "batch 1 length entries"] | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """As transformers' ``sdpa``, and over a cache without a copy of it for each query head."""
    if key.shape[1] == query.shape[1] or key.shape[2] == query.shape[2]:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    rows = grouped_sdpa(query, key, value, attention_mask, scale=options["scaling"])
    return rows.transpose(1, 2).contiguous(), None
