"""Forward passes that compute the vocabulary head only where it is asked for, in batches that fit.

A GPU takes several texts at once, right-padded. A CPU takes one at a time: batches were 5 % faster
on two cores, less than padding costs, and alone a text's logits cannot depend, not even by
rounding, on what else is asked.

Later passes over a text of which only the masked part changed can use a KV cache: ``prefill`` keeps
the keys and values of the rest, and ``decode_masked`` computes the changed tokens alone. This is an
approximation, as Fast-dLLM's (arXiv 2505.22618) is, but for masks anywhere in a text.
"""

import inspect
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedModel

from dspy_diffusion_infill.denoisers.checkpoints.placement import settle_kernels
from dspy_diffusion_infill.denoisers.growing_cache import GrowingCache, attend_in_groups
from dspy_diffusion_infill.denoisers.masked_head import head_on_positions
from dspy_diffusion_infill.errors import DenoiserMemoryError

GPU_TOKENS_PER_BATCH = 16384
TOKENS_PER_PASS = 1024
"""The most in one pass over texts that stand in one sequence: attention among them is quadratic."""
Logits = Float[Tensor, "places vocabulary"]

# What models call the cache: transformers renamed it in 5.24, and warns of the old name.
_IS_RENAMED = "cache" in inspect.signature(LlamaForCausalLM.forward).parameters
_CACHE = "cache" if _IS_RENAMED else "past_key_values"


@dataclass(frozen=True, slots=True)
class KVCache:
    """Keys and values of the part of a text that does not change.

    Attributes:
        cache: its first ``num_kept`` entries are these; the others are of no use.
        num_kept: tokens that do not change.
        active: positions that are computed anew in each pass, ascending.
    """

    cache: GrowingCache
    num_kept: int
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
        attend_in_groups(model)
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
        own = self.model.device
        return torch.device("cpu") if own.type == "mps" else own

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
        cache = self.new_cache()
        [(_, logits)] = self._batches(
            [len(text)], lambda _batch: self._run([text], [positions], cache=cache)
        )
        active = torch.cat([changing, self.reads(changing)]).unique()
        is_kept = torch.ones(len(text), dtype=torch.bool)
        is_kept[active] = False
        cache.keep(is_kept)
        return KVCache(cache, int(is_kept.sum()), active), logits

    def decode_masked(
        self,
        prefilled: KVCache,
        texts: Sequence[Int[Tensor, " length"]],
        positions: Sequence[Int[Tensor, " places"]],
    ) -> Iterator[tuple[int, Logits]]:
        """As ``at``, for texts that differ from the prefilled one in its active positions only.

        Texts of a batch stand in one sequence, and a mask parts them: nothing is copied for each.
        """
        active, size = prefilled.active, len(prefilled.active)
        places = [torch.searchsorted(active, self.reads(p).contiguous()) for p in positions]

        def run(batch: range) -> list[Logits]:
            prefilled.cache.cut(prefilled.num_kept)
            row = torch.arange(len(batch)).repeat_interleave(size)
            kept = torch.ones(len(row), prefilled.num_kept, dtype=torch.bool)
            [logits] = self._run(
                [torch.cat([texts[k][active] for k in batch])],
                [torch.cat([places[k] + size * number for number, k in enumerate(batch)])],
                cache=prefilled.cache,
                at=active.repeat(len(batch)),
                visible=torch.cat([kept, row[:, None] == row], dim=1) if len(batch) > 1 else None,
            )
            self.num_passes += len(batch) - 1
            return list(logits.split([len(places[k]) for k in batch]))

        yield from self._batches([size] * len(texts), run, most=TOKENS_PER_PASS)

    def extend(
        self,
        cache: GrowingCache,
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

    def new_cache(self, dtype: torch.dtype | None = None) -> GrowingCache:
        """An empty cache, in the model's dtype or another one."""
        return GrowingCache(self.model.config.num_hidden_layers, dtype=dtype)

    @property
    def numbers_per_token(self) -> int:
        """In the keys and values of a token, over all layers."""
        config = self.model.config
        heads = config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
        return 2 * config.num_hidden_layers * config.num_key_value_heads * size

    def reads(self, positions: Int[Tensor, " places"]) -> Int[Tensor, " places"]:
        """Where the model scores ``positions``; a shifted model scores 0 at 0 as well."""
        return (positions - 1).clamp(min=0) if self.shift else positions

    @torch.inference_mode()
    def _run(
        self,
        texts: Sequence[Int[Tensor, " length"]],
        positions: Sequence[Int[Tensor, " places"]],
        *,
        cache: GrowingCache | None = None,
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
        device, dtype = self.model.device, self.model.dtype
        mask = None if real.all() else real.long()
        if visible is not None:
            mask = (torch.finfo(dtype).min * ~visible).to(dtype)[None, None]
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
        return [_rows(logits, row[places]) for row, places in zip(rank, read, strict=True)]

    def _batches(
        self,
        lengths: Sequence[int],
        run: Callable[[range], list[Logits]],
        *,
        most: float = math.inf,
    ) -> Iterator[tuple[int, Logits]]:
        """Runs items of these lengths, the longest first, in batches of at most ``most`` tokens."""
        start, halved = 0, False
        while start < len(lengths):
            size = max(1, int(min(self.tokens_per_batch, most)) // lengths[start])
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


def _rows(logits: Float[Tensor, "rows vocabulary"], numbers: Int[Tensor, " places"]) -> Logits:
    """These rows in float32, copied once at most where they follow one another."""
    first = int(numbers[0]) if len(numbers) else 0
    if torch.equal(numbers, first + torch.arange(len(numbers))):
        return logits[first : first + len(numbers)].float()
    return logits[numbers].float()
