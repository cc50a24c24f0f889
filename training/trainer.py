"""transformers' Trainer with the loss of masked diffusion; the loop, checkpoints and distribution are the library's."""

from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from dspy_diffusion_infill.denoisers.masked_head import head_on_positions, shifted_left
from dspy_diffusion_infill.training.loss import diffusion_loss
from dspy_diffusion_infill.training.options import LossName


class DiffusionTrainer(Trainer):
    """Computes the loss on masked positions only; ``shift`` is for models that score token i at position i - 1.

    Batches are those of ``training.dataset.Collator``. Logged beside the loss: ``masked_accuracy``, the share of masked
    tokens whose most likely token is the right one.
    """

    def __init__(
        self, *args: Any, shift: bool, loss: LossName = "masked_mean", **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.shift, self.loss_name = shift, loss
        self._right, self._seen = torch.zeros(()), torch.zeros(())
        self.model_accepts_loss_kwargs = False

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Steps: read where the model scores the masked tokens, run it, weigh the cross-entropy."""
        positions = shifted_left(inputs["masked"]) if self.shift else inputs["masked"]
        with head_on_positions(self.accelerator.unwrap_model(model), positions):
            logits = model(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                use_cache=False,
            ).logits
        loss = diffusion_loss(
            logits,
            inputs["x0"],
            inputs["masked"],
            inputs["t"],
            inputs.get("num_maskable"),
            loss=self.loss_name,
        )
        with torch.no_grad():
            target = inputs["x0"][inputs["masked"]]
            self._right += (logits.argmax(-1) == target).sum().cpu()
            self._seen += len(target)
        return (loss, {"logits": logits}) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds the masked accuracy since the last log."""
        if "loss" in logs and self._seen > 0:
            logs["masked_accuracy"] = float(self._right / self._seen)
            self._right.zero_()
            self._seen.zero_()
        super().log(logs, *args, **kwargs)
