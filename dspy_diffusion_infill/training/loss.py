"""Losses of masked-diffusion SFT, on logits that were computed at masked positions only.

- ``masked_mean``: the mean cross-entropy over a sequence's masked tokens (paper Eq. 2 and Eq. 5).
- ``elbo``: each masked token weighted by 1/t and the sum divided by the number of maskable tokens
  (LLaDA's guidelines, arXiv 2502.09992 Eq. 3). Over the draws that ``masking`` has for it, its mean
  bounds the negative log-likelihood a token from above: exactly for full-sequence masking; for
  response-only masking but for eps = 1e-3 of the integral over t, which is left out at t near 0
  and made up for by weighing the rest 1 / (1 - eps).

Both average over the sequences of a batch last, one without any masked token among them: its loss
is 0. Every sequence weighs the same, so the mean over the batches of several processes or
accumulation steps is exactly the mean over one large batch.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from dspy_diffusion_infill.training.options import LossName


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

    Raises:
        ValueError: if ``elbo`` is asked for without ``num_maskable``.
    """
    nll: Tensor = _TokenLoss.apply(logits, x0[masked])  # pyright: ignore
    sequence = masked.nonzero()[:, 0]
    if loss == "elbo":
        if num_maskable is None:
            raise ValueError("loss='elbo' needs num_maskable, the number of maskable tokens")
        weight = 1.0 / (t * num_maskable)
    else:
        weight = 1.0 / masked.sum(1)
    return (nll * weight[sequence]).sum() / len(x0)


class _TokenLoss(torch.autograd.Function):
    """Cross-entropy in float32, some rows at a time.

    Of bfloat16 logits, the plain way holds 12 bytes a logit at its peak: log-probabilities and two
    gradients in float32. Here it is 4, the logits and their gradient as they are, and some rows.
    """

    ROWS = 64

    @staticmethod
    def forward(
        ctx: Any, logits: Float[Tensor, "rows vocabulary"], targets: Int[Tensor, " rows"]
    ) -> Float[Tensor, " rows"]:
        ctx.save_for_backward(logits, targets)
        pairs = zip(logits.split(_TokenLoss.ROWS), targets.split(_TokenLoss.ROWS), strict=True)
        return torch.cat([F.cross_entropy(x.float(), y, reduction="none") for x, y in pairs])

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - the decorator names no ctx
        ctx: Any, *grads: Float[Tensor, " rows"]
    ) -> tuple[Tensor, None]:
        logits, targets = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        for first in range(0, len(logits), _TokenLoss.ROWS):
            rows = slice(first, first + _TokenLoss.ROWS)
            # d nll / d logits = softmax - one-hot of the target
            change = logits[rows].float().softmax(-1)
            change.scatter_add_(1, targets[rows, None], torch.full_like(change[:, :1], -1.0))
            gradient[rows] = change.mul_(grads[0][rows, None])
        return gradient, None
