"""transformers' Trainer, for its loop, checkpoints and processes, with a masked-diffusion loss."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor
from transformers import Trainer

from dspy_diffusion_infill.denoisers.masked_head import head_on_positions, shifted_left
from dspy_diffusion_infill.training.loss import diffusion_loss
from dspy_diffusion_infill.training.options import LossName


class DiffusionTrainer(Trainer):
    """Computes the loss on masked positions only.

    Batches are those of ``training.dataset.Collator``. Logged beside the loss, since the last log:
    ``masked_accuracy``, the share of masked tokens whose most likely token is the right one;
    ``tokens_per_second``; and ``num_cut``, sequences that were cut at their longest length.

    Args:
        args: Trainer's own arguments, by position.
        shift: whether the model scores token i at position i - 1.
        loss: ``masked_mean`` or ``elbo``.
        annealing_steps: optimizer steps over which a causal LM's later tokens come into sight.
        kwargs: Trainer's own arguments.
    """

    def __init__(
        self,
        *args: Any,
        shift: bool,
        loss: LossName = "masked_mean",
        annealing_steps: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.loss_name: LossName = loss
        self.shift, self.annealing_steps = shift, annealing_steps
        self.model_accepts_loss_kwargs = False  # the loss of a batch is a mean: Trainer averages it
        # Since the last log, summed where the model is: right answers, masked tokens, tokens, and
        # sequences that were cut.
        self._counts = torch.zeros(4, device=self.args.device)
        self._since = time.monotonic()

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss of a batch, and with ``return_outputs`` the logits of its masked tokens."""
        # 1. Where the model scores the masked tokens.
        masked, x0 = inputs["masked"], inputs["x0"]
        positions = shifted_left(masked) if self.shift else masked
        # 2. One pass, with the vocabulary head there only.
        unwrapped: Any = self.accelerator.unwrap_model(model)
        with head_on_positions(unwrapped, positions):
            logits = model(
                input_ids=inputs["input_ids"],
                attention_mask=self._attention(inputs["attention_mask"], unwrapped),
                use_cache=False,
            ).logits
        # 3. The cross-entropy, weighed.
        loss = diffusion_loss(
            logits, x0, masked, inputs["t"], inputs["num_maskable"], loss=self.loss_name
        )
        self._count(logits.detach(), x0[masked], inputs)
        return (loss, {"logits": logits}) if return_outputs else loss

    @contextmanager
    def clock_stopped(self) -> Iterator[None]:
        """Leaves what is done inside out of the speed."""
        began = time.monotonic()
        yield
        self._since += time.monotonic() - began

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds what was counted since the last log, over all processes."""
        if "loss" in logs:
            counts: Any = self.accelerator.reduce(self._counts, "sum")
            right, seen, tokens, num_cut = counts.tolist()
            now = time.monotonic()
            logs["masked_accuracy"] = right / max(1.0, seen)
            logs["tokens_per_second"] = tokens / max(1e-9, now - self._since)
            logs["num_cut"] = int(num_cut)
            self._counts, self._since = torch.zeros_like(self._counts), now
        super().log(logs, *args, **kwargs)

    def _attention(self, mask: Int[Tensor, "batch length"], model: Any) -> Tensor:
        """The padding mask; while a causal LM is annealed, what each token sees of the others.

        Plain attention adds a mask of four dimensions to its scores; the fused kernels read a
        boolean one as what is seen, whatever precision they compute in.
        """
        step = self.state.global_step
        if step >= self.annealing_steps:
            return mask
        generator = Generator().manual_seed(step)
        seen = annealed_mask(mask, share=step / self.annealing_steps, generator=generator)
        return additive(seen) if model.config._attn_implementation == "eager" else seen

    @torch.no_grad()
    def _count(self, logits: Tensor, targets: Tensor, inputs: dict[str, Tensor]) -> None:
        right = (logits.argmax(-1) == targets).sum()
        seen = torch.tensor(len(targets), device=right.device)
        tokens, num_cut = inputs["attention_mask"].sum(), inputs["is_cut"].sum()
        self._counts += torch.stack([right, seen, tokens, num_cut]).to(self._counts)


def annealed_mask(
    padding: Int[Tensor, "batch length"], *, share: float, generator: Generator
) -> Bool[Tensor, "batch 1 length length"]:
    """What each token sees, from causal to bidirectional: a later one with a probability.

    Args:
        padding: 1 for tokens, 0 for padding.
        share: the probability that a token sees a later one; 0 is causal, 1 is bidirectional.
        generator: draws which pairs; the same for all sequences of the batch.
    """
    length = padding.shape[1]
    seen = torch.rand(length, length, generator=generator) < share
    seen |= torch.ones(length, length, dtype=torch.bool).tril()
    diagonal = torch.eye(length, dtype=torch.bool, device=padding.device)
    return (seen.to(padding.device) & padding[:, None, :].bool() | diagonal)[:, None]


def additive(
    seen: Bool[Tensor, "batch 1 length length"],
) -> Float[Tensor, "batch 1 length length"]:
    """What is added to attention scores: 0 where a token is seen, float32's lowest elsewhere."""
    scores = torch.zeros(seen.shape, device=seen.device)
    return scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
