"""The vocabulary head, computed on chosen positions only.

A masked diffusion LM needs logits at the masked positions and nowhere else. LLaDA-8B's head is 4096
x 126464: for one masked window of 8 in a context of 1000 tokens, a full head is 125 times the work
and 500 MB of float32 logits.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from transformers import PreTrainedModel


@contextmanager
def head_on_positions(
    model: PreTrainedModel, positions: Bool[Tensor, "batch length"]
) -> Iterator[None]:
    """Makes ``model(...)`` return logits at ``positions`` alone, in row-major order.

    The selection is a forward pre-hook of the head, so that it also works under the wrappers of
    peft, DDP, FSDP and DeepSpeed, which need their own ``forward`` to be the one that is called.
    """

    def select(_head: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0][positions.to(args[0].device)],)

    head = model.get_output_embeddings()
    assert head is not None, f"{type(model).__name__} has no vocabulary head"
    handle = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


def shifted_left(positions: Bool[Tensor, "batch length"]) -> Bool[Tensor, "batch length"]:
    """Where a model that scores token i at position i - 1 is read to score ``positions``.

    Raises:
        ValueError: if position 0 is selected, which no such model can score.
    """
    if bool(positions[:, 0].any()):
        raise ValueError(
            "a shifted model cannot score position 0: put a beginning-of-text token in front"
        )
    return torch.cat([positions[:, 1:], torch.zeros_like(positions[:, :1])], dim=1)
