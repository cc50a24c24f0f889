"""Forward passes that compute the vocabulary head only where it is asked for, in batches that fit.

A GPU takes several texts at once, right-padded. A CPU takes one at a time: batches were 5 % faster
on two cores, less than padding costs, and alone a text's logits cannot depend, not even by
rounding, on what else is asked.

Later passes over a text of which only the masked part changed can use a KV cache: ``prefill`` keeps
the keys and values of the rest, and ``decode_masked`` computes the changed tokens alone. This is an
approximation, as Fast-dLLM's (arXiv 2505.22618) is, but for masks anywhere in a text.
"""

import inspect
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache, LlamaForCausalLM, PreTrainedModel

from dspy_diffusion_infill.denoisers.checkpoints.placement import settle_kernels
from dspy_diffusion_infill.denoisers.masked_head import head_on_positions
from dspy_diffusion_infill.errors import DenoiserMemoryError

GPU_TOKENS_PER_BATCH = 16384
Logits = Float[Tensor, "places vocabulary"]

# What models call the cache: transformers renamed it in 5.24, and warns of the old name.
_IS_RENAMED = "cache" in inspect.signature(LlamaForCausalLM.forward).parameters
_CACHE = "cache" if _IS_RENAMED else "past_key_values"


@dataclass(frozen=True, slots=True)
class KVCache:
    """Keys and values of the part of a text that does not change.

    Attributes:
        layers: of each layer, both (1, heads, kept tokens, head size).
        active: positions that are computed anew in each pass, ascending.
    """

    layers: tuple[tuple[Tensor, Tensor], ...]
    active: Int[Tensor, " active"]


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
        settle_kernels()
        self.model, self.shift, self.pad_id = model, shift, pad_id
        if tokens_per_batch is None:
            tokens_per_batch = 1 if model.device.type == "cpu" else GPU_TOKENS_PER_BATCH
        self.tokens_per_batch = tokens_per_batch
        self.num_passes = 0
        self._largest_batch = 0
        self._lock = threading.Lock()

    @property
    def device(self) -> torch.device:
        """Where logits are returned: the model's device; the CPU where that has no float64."""
        return torch.device("cpu") if self.model.device.type == "mps" else self.model.device

    @torch.inference_mode()
    def full(
        self,
        input_ids: Int[Tensor, "batch length"],
        attention_mask: Int[Tensor, "batch length"] | None,
    ) -> Float[Tensor, "batch length vocabulary"]:
        """Logits of every token in one pass; row i scores token i.

        Raises:
            DenoiserMemoryError: the batch does not fit; it is the caller's, and not halved.
        """
        device = self.model.device
        try:
            with self._lock:
                logits = self.model(
                    input_ids=input_ids.to(device),
                    attention_mask=None if attention_mask is None else attention_mask.to(device),
                    use_cache=False,
                ).logits.float()
                self.num_passes += len(input_ids)
        except torch.OutOfMemoryError as error:
            raise DenoiserMemoryError(self._what_fits(*input_ids.shape)) from error
        if self.shift:
            logits = torch.cat([logits[:, :1], logits[:, :-1]], dim=1)
        return logits

    def at(
        self, texts: Sequence[Int[Tensor, " length"]], positions: Sequence[Int[Tensor, " places"]]
    ) -> Iterator[tuple[int, Logits]]:
        """Yields (index of the text, logits that score its ``positions``), longest texts first.

        Raises:
            DenoiserMemoryError: half of a batch does not fit either.
        """
        order = sorted(range(len(texts)), key=lambda k: -len(texts[k]))

        def run(batch: range) -> list[Logits]:
            chosen = [order[k] for k in batch]
            return self._run([texts[k] for k in chosen], [positions[k] for k in chosen])

        for k, logits in self._batches([len(texts[k]) for k in order], run):
            yield order[k], logits

    def prefill(
        self,
        text: Int[Tensor, " length"],
        changing: Int[Tensor, " changing"],
        positions: Int[Tensor, " places"],
    ) -> tuple[KVCache, Logits]:
        """Runs a whole text once and caches all but the tokens at ``changing``.

        Returns the cache and the logits that score ``positions``.

        Raises:
            DenoiserMemoryError: the text does not fit.
        """
        cache = DynamicCache()
        [(_, logits)] = self._batches(
            [len(text)], lambda _batch: self._run([text], [positions], cache=cache)
        )
        active = torch.cat([changing, self.reads(changing)]).unique()
        is_kept = torch.ones(len(text), dtype=torch.bool)
        is_kept[active] = False
        layers = tuple(
            (keys[:, :, is_kept.to(keys.device)], values[:, :, is_kept.to(values.device)])
            for keys, values, _ in cast(Iterable[tuple[Tensor, Tensor, None]], cache)
        )
        return KVCache(layers, active), logits

    def decode_masked(
        self,
        prefilled: KVCache,
        texts: Sequence[Int[Tensor, " length"]],
        positions: Sequence[Int[Tensor, " places"]],
    ) -> Iterator[tuple[int, Logits]]:
        """As ``at``, for texts that differ from the prefilled one in its active positions only."""
        active = prefilled.active
        places = [torch.searchsorted(active, self.reads(p).contiguous()) for p in positions]

        def run(batch: range) -> list[Logits]:
            cache = DynamicCache()
            for number, (keys, values) in enumerate(prefilled.layers):
                shape = (len(batch), -1, -1, -1)
                cache.update(keys.expand(shape), values.expand(shape), number)
            chosen = [texts[k][active] for k in batch]
            return self._run(chosen, [places[k] for k in batch], cache=cache, at=active)

        yield from self._batches([len(active)] * len(texts), run)

    def extend(
        self,
        cache: DynamicCache,
        tokens: Int[Tensor, " tokens"],
        *,
        at: Int[Tensor, " tokens"],
        read: Int[Tensor, " read"],
        visible: Bool[Tensor, "tokens entries"] | None = None,
    ) -> Logits:
        """One pass over tokens that see a cache and one another; the cache takes them up.

        Args:
            cache: what was computed before.
            tokens: ids.
            at: their positions.
            read: which of them the logits are wanted of, by number.
            visible: which entries of the cache each token sees, the new ones last; None is all.

        Raises:
            DenoiserMemoryError: the pass does not fit.
        """

        def run(_batch: range) -> list[Logits]:
            return self._run([tokens], [read], cache=cache, at=at, visible=visible)

        [(_, logits)] = self._batches([len(tokens)], run)
        return logits

    def reads(self, positions: Int[Tensor, " places"]) -> Int[Tensor, " places"]:
        """Where the model scores ``positions``; a shifted model scores 0 at 0 as well."""
        return (positions - 1).clamp(min=0) if self.shift else positions

    @torch.inference_mode()
    def _run(
        self,
        texts: Sequence[Int[Tensor, " length"]],
        positions: Sequence[Int[Tensor, " places"]],
        *,
        cache: DynamicCache | None = None,
        at: Int[Tensor, " length"] | None = None,
        visible: Bool[Tensor, "length entries"] | None = None,
    ) -> list[Logits]:
        """One pass. With ``at``, the texts are tokens at these positions, and are read as given."""
        # 1. Right-pad. Without padding there is no attention mask, and the fastest attention.
        lengths = torch.tensor([len(text) for text in texts])
        input_ids = torch.nn.utils.rnn.pad_sequence(
            list(texts), batch_first=True, padding_value=self.pad_id
        )
        real = torch.arange(input_ids.shape[1]) < lengths[:, None]
        # 2. Mark the rows that are wanted of the head.
        read = [p if at is not None else self.reads(p) for p in positions]
        wanted: Bool[Tensor, "batch length"] = torch.zeros_like(real)
        for row, places in zip(wanted, read, strict=True):
            row[places] = True
        # 3. One pass; the head's rows come back in row-major order.
        device = self.model.device
        mask = None if real.all() else real.long()
        if visible is not None:
            mask = (torch.finfo(self.model.dtype).min * ~visible).to(self.model.dtype)[None, None]
        with self._lock, head_on_positions(self.model, wanted):
            logits = self.model(
                input_ids=input_ids.to(device),
                attention_mask=None if mask is None else mask.to(device),
                position_ids=None if at is None else at[None].to(device),
                use_cache=cache is not None,
                **({} if cache is None else {_CACHE: cache}),
            ).logits.to(self.device)
            self.num_passes += len(texts)
        # 4. Give each text its rows, in the order in which it asked for them.
        rank = wanted.flatten().cumsum(0).view_as(wanted) - 1
        return [logits[row[places]].float() for row, places in zip(rank, read, strict=True)]

    def _batches(
        self, lengths: Sequence[int], run: Callable[[range], list[Logits]]
    ) -> Iterator[tuple[int, Logits]]:
        """Runs items of these lengths, the longest first, in batches that fit."""
        start, halved = 0, False
        while start < len(lengths):
            size = max(1, self.tokens_per_batch // lengths[start])
            batch = range(start, min(start + size, len(lengths)))
            num_tokens = len(batch) * lengths[start]
            try:
                results = run(batch)
            except torch.OutOfMemoryError as error:
                if halved or len(batch) == 1:
                    raise DenoiserMemoryError(
                        self._what_fits(len(batch), lengths[start])
                    ) from error
                self.tokens_per_batch, halved = num_tokens // 2, True
                continue
            self._largest_batch = max(self._largest_batch, num_tokens)
            yield from zip(batch, results, strict=True)
            start = batch.stop

    def _what_fits(self, num_texts: int, length: int) -> str:
        gib = self.model.get_memory_footprint() / 2**30
        seen = f"batches of {self._largest_batch} tokens fitted before; "
        return (
            f"{self.model.device} ran out of memory on {num_texts} x {length} tokens, beside "
            f"{gib:.1f} GiB of weights; {seen if self._largest_batch else ''}put fewer or shorter "
            f"examples into a context, or load with quantization='8bit' or '4bit'"
        )
