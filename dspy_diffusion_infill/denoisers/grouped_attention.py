"""Attention in which the heads that share keys and values are rows of one head.

Nothing is copied for each query head (grouped-query attention). That works with every kernel;
``enable_gqa`` with a mask does not on a GPU.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask


def attend_by(model: PreTrainedModel, name: str, attention: Callable[..., Any]) -> None:
    """Has the model attend with this function, where it attends with ``sdpa`` so far.

    Args:
        model: whose attention is replaced.
        name: of the function, for transformers.
        attention: takes what transformers' ``sdpa`` takes, its mask included.
    """
    if model.config._attn_implementation == "sdpa":
        AttentionInterface.register(name, attention)
        AttentionMaskInterface.register(name, sdpa_mask)
        model.set_attn_implementation(name)


def grouped_sdpa(
    query: Float[Tensor, "batch heads length size"],
    key: Float[Tensor, "batch groups entries size"],
    value: Float[Tensor, "batch groups entries size"],
    mask: Float[Tensor, "batch 1 length entries"] | None,
    *,
    scale: float,
) -> Float[Tensor, "batch heads length size"]:
    """Torch's ``scaled_dot_product_attention`` with an additive mask; None hides nothing."""
    batch, heads, length, size = query.shape
    share = heads // key.shape[1]
    rows = torch.nn.functional.scaled_dot_product_attention(
        query.reshape(batch, -1, share * length, size),
        key,
        value,
        attn_mask=None if mask is None else mask.repeat(1, 1, share, 1),
        scale=scale,
    )
    return rows.view(batch, heads, length, size)
