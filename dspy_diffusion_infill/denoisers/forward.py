"""Forward passes that compute the vocabulary head only where it is asked for, in batches that fit.

A GPU takes several texts at once, right-padded. A CPU takes one at a time: batches were 5 % faster
on two cores, less than padding costs, and alone a text's logits cannot depend, not even by
rounding, on what else is asked.
"""

import threading
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from dspy_diffusion_infill.denoisers.masked_head import head_on_positions
from dspy_diffusion_infill.errors import DenoiserMemoryError

GPU_TOKENS_PER_BATCH = 16384


class ForwardPasses:
    """Runs a bidirectional model on texts; safe to call from several threads.

    Attributes:
        tokens_per_batch: the most tokens, padding included, that go through the model at once; a
            longer text goes alone. Halved for good when the device runs out of memory.
        num_passes: texts that went through the model so far.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        shift: bool,
        pad_id: int,
        tokens_per_batch: int | None = None,
    ) -> None:
        self.model, self.shift, self.pad_id = model, shift, pad_id
        if tokens_per_batch is None:
            tokens_per_batch = 1 if model.device.type == "cpu" else GPU_TOKENS_PER_BATCH
        self.tokens_per_batch = tokens_per_batch
        self.num_passes = 0
        self._lock = threading.Lock()

    @property
    def device(self) -> torch.device:
        """Where logits are returned: the model's device, or the CPU where the device has no float64 to sample in."""
        return torch.device("cpu") if self.model.device.type == "mps" else self.model.device

    @torch.inference_mode()
    def full(
        self,
        input_ids: Int[Tensor, "batch length"],
        attention_mask: Int[Tensor, "batch length"] | None,
    ) -> Float[Tensor, "batch length vocabulary"]:
        """Logits of every token in one pass; row i scores token i."""
        device = self.model.device
        with self._lock:
            logits = self.model(
                input_ids=input_ids.to(device),
                attention_mask=None if attention_mask is None else attention_mask.to(device),
                use_cache=False,
            ).logits.float()
            self.num_passes += len(input_ids)
        if self.shift:
            logits = torch.cat([logits[:, :1], logits[:, :-1]], dim=1)
        return logits

    def at(
        self, texts: Sequence[Int[Tensor, " length"]], positions: Sequence[Int[Tensor, " places"]]
    ) -> Iterator[tuple[int, Float[Tensor, "places vocabulary"]]]:
        """Yields (index of the text, logits that score its tokens at ``positions``), batch by batch, longest text first.

        Raises:
            DenoiserMemoryError: half of a batch does not fit either.
        """
        order = sorted(range(len(texts)), key=lambda k: -len(texts[k]))
        while order:
            size = max(1, self.tokens_per_batch // len(texts[order[0]]))
            batch = order[:size]
            chosen = [texts[k] for k in batch], [positions[k] for k in batch]
            try:
                logits = self._batch(*chosen)
            except torch.OutOfMemoryError:
                self._halve(len(batch), len(chosen[0][0]))
                continue
            yield from zip(batch, logits, strict=True)
            order = order[size:]

    @torch.inference_mode()
    def _batch(
        self, texts: Sequence[Int[Tensor, " length"]], positions: Sequence[Int[Tensor, " places"]]
    ) -> list[Float[Tensor, "places vocabulary"]]:
        # 1. Right-pad the texts; without padding no attention mask is needed, and the fastest
        # attention is used.
        lengths = torch.tensor([len(text) for text in texts])
        input_ids = torch.nn.utils.rnn.pad_sequence(
            list(texts), batch_first=True, padding_value=self.pad_id
        )
        visible = torch.arange(input_ids.shape[1]) < lengths[:, None]
        # 2. A shifted model scores token i at i - 1, and token 0, for want of better, at 0.
        read = [(p - 1).clamp(min=0) if self.shift else p for p in positions]
        wanted = torch.zeros_like(visible)
        for row, places in zip(wanted, read, strict=True):
            row[places] = True
        # 3. One pass with the head on the wanted rows only, which come back in row-major order.
        device = self.model.device
        with self._lock, head_on_positions(self.model, wanted):
            logits = self.model(
                input_ids=input_ids.to(device),
                attention_mask=None if visible.all() else visible.long().to(device),
                use_cache=False,
            ).logits.to(self.device)
            self.num_passes += len(texts)
        # 4. Give each text its rows, in the order in which it asked for them.
        rank = wanted.flatten().cumsum(0).view_as(wanted) - 1
        return [logits[row[places]].float() for row, places in zip(rank, read, strict=True)]

    def _halve(self, num_texts: int, length: int) -> None:
        if num_texts == 1:
            raise DenoiserMemoryError(
                f"{self.model.device} ran out of memory on one text of {length} tokens; put fewer or shorter examples "
                f"into the contexts, or load the denoiser with quantization='8bit' or '4bit'"
            )
        torch.cuda.empty_cache()
        self.tokens_per_batch = num_texts * length // 2
