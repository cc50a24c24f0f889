"""Texts as one tree of tokens, whose common prefixes stand in it once, and attention over it.

A model runs on the tree in a single row without padding: each token sees its ancestors and itself,
at the position that it has in its text. Attention over the whole row would be quadratic in all
texts together, and most of it hidden. So the tokens are attended in blocks, each over what some of
its tokens sees: what the texts share, and their own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from dspy_diffusion_infill.denoisers.grouped_attention import attend_by, grouped_sdpa

TOKENS_PER_BLOCK = 64
"""With fewer, the calls cost more than what is saved; with more, more is computed and hidden."""
IN_BLOCKS = "dspy_infill_tree_sdpa"


@dataclass(slots=True)
class TokenTree:
    """Tokens with a parent each; parents stand before their children.

    Attributes:
        ids: of the tokens, the nodes.
        parents: of each node, by number; -1 for the first token of a text.
        depths: the position of each node in its texts.
    """

    ids: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    _children: dict[tuple[int, int], int] = field(default_factory=dict)

    def add(self, ids: Sequence[int]) -> list[int]:
        """The nodes of a text, from its first token on; those it shares are found, not added."""
        nodes, parent = [], -1
        for depth, id_ in enumerate(ids):
            node = self._children.setdefault((parent, id_), len(self.ids))
            if node == len(self.ids):
                self.ids.append(id_)
                self.parents.append(parent)
                self.depths.append(depth)
            nodes.append(node)
            parent = node
        return nodes

    def visible(self) -> Bool[Tensor, "nodes nodes"]:
        """Whether the row's token sees the column's: an ancestor or itself."""
        visible = torch.eye(len(self.ids), dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                visible[node] |= visible[parent]
        return visible


@dataclass(frozen=True, slots=True)
class Block:
    """Tokens that are attended together.

    Attributes:
        first: the first of them.
        last: one past the last.
        seen: the tokens that some of them sees.
        mask: 0 where a token of the block sees one of ``seen``, else the lowest number.
    """

    first: int
    last: int
    seen: Int[Tensor, " seen"]
    mask: Float[Tensor, "block seen"]


def blocks_of(mask: Float[Tensor, "nodes nodes"]) -> list[Block]:
    """The rows of an additive mask, ``TOKENS_PER_BLOCK`` at a time."""
    found = []
    for first in range(0, len(mask), TOKENS_PER_BLOCK):
        rows = mask[first : first + TOKENS_PER_BLOCK]
        seen = (rows == 0).any(0).nonzero()[:, 0]
        found.append(Block(first, first + len(rows), seen, rows[:, seen].contiguous()))
    return found


def attend_in_blocks(model: PreTrainedModel) -> None:
    """Has the model attend with ``block_attention``, where it attends with ``sdpa`` so far."""
    attend_by(model, IN_BLOCKS, block_attention)


def block_attention(
    module: torch.nn.Module,
    query: Float[Tensor, "1 heads nodes size"],
    key: Float[Tensor, "1 groups nodes size"],
    value: Float[Tensor, "1 groups nodes size"],
    attention_mask: Float[Tensor, "1 1 nodes nodes"] | None,
    *,
    blocks: Sequence[Block] | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """As transformers' ``sdpa``; with the ``blocks`` of the mask, block by block."""
    if blocks is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    out = torch.empty_like(query)
    for block in blocks:
        out[:, :, block.first : block.last] = grouped_sdpa(
            query[:, :, block.first : block.last],
            key[:, :, block.seen],
            value[:, :, block.seen],
            block.mask[None, None],
            scale=options["scaling"],
        )
    return out.transpose(1, 2).contiguous(), None
