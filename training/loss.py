"""Losses of masked-diffusion SFT, on logits that were computed at masked positions only.

- ``masked_mean``: the mean cross-entropy over the masked tokens (paper Eq. 2 and Eq. 5).
- ``elbo``: each masked token weighted by 1/t and the sum divided by the number of tokens (LLaDA's guidelines,
  arXiv 2502.09992 Eq. 3), which bounds the negative log-likelihood from above.
"""

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

LossName = Literal["masked_mean", "elbo"]


def diffusion_loss(
    logits: Float[Tensor, "masked vocabulary"],
    x0: Int[Tensor, "batch length"],
    masked: Bool[Tensor, "batch length"],
    t: Float[Tensor, " batch"],
    num_maskable: Int[Tensor, " batch"] | None = None,
    *,
    loss: LossName = "masked_mean",
) -> Float[Tensor, ""]:
    """The loss of a batch, in nats; lower is better.

    Args:
        logits: at the masked positions, in row-major order of ``masked``.
        x0: the clean tokens.
        masked: which positions were masked.
        t: the masking ratio of each sequence, in (0, 1].
        num_maskable: how many tokens of each sequence could have been masked; needed for ``elbo``.
        loss: ``masked_mean`` averages within each sequence, then over the batch; ``elbo`` as above.
    """
    nll = F.cross_entropy(logits.float(), x0[masked], reduction="none")
    row = masked.nonzero()[:, 0]
    if loss == "elbo":
        if num_maskable is None:
            raise ValueError("loss='elbo' needs num_maskable, the number of tokens that could have been masked")
        weight = 1.0 / (t * num_maskable)
    else:
        weight = 1.0 / masked.sum(1)
    return (nll * weight[row]).sum() / len(x0)
