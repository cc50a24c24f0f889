"""Keys and values that requests share: those of a context, and of the texts that fill it.

``Sampling(cache="context")`` computes in three layers, each over the one before:

1. Of a context, with the instructions as they are, every token. What lies around the instructions
   is kept, for all windows, steps and requests.
2. Of a masked text, the instructions' tokens, once for all requests that share it.
3. In each later pass, the tokens that are read and those that the last step filled. All other
   tokens keep what they had, masked ones that are not read included.

The requests of a text are rows of one sequence: a mask says which entry of the cache each token
sees, so nothing is copied for each row, and the weights are read once for all of them. What lies
behind the instructions moves where these get longer or shorter; its keys are rotated to the new
positions (RoPE, arXiv 2104.09864).

An approximation: in a bidirectional model every token depends on every other one.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from dspy_diffusion_infill.denoisers.forward import ForwardPasses, Logits
from dspy_diffusion_infill.denoisers.infill_state import Filling
from dspy_diffusion_infill.denoisers.protocol import SharedContext

SHARE_OF_WEIGHTS = 0.25
SHARE_OF_GPU = 0.5
"""Contexts that are kept take at most this share of the weights' memory, on a GPU of what is free
beside them; one is always kept."""
TOKENS_PER_PASS = 1024
"""Rows beyond this go through the model in a second pass: attention among them is quadratic."""

Layers = tuple[tuple[Tensor, Tensor], ...]
"""Keys and values of each layer, (1, heads, tokens, head size)."""


class ContextCache:
    """Infills over contexts that are computed once; safe to call from several threads."""

    def __init__(self, passes: ForwardPasses) -> None:
        self._passes = passes
        self._room = _room(passes.model)
        self._kept: OrderedDict[tuple[int, ...], Layers] = OrderedDict()
        self._lock = threading.Lock()

    def infill(self, states: Sequence[Filling], contexts: Sequence[SharedContext | None]) -> None:
        """Takes every state to its end; those that share text and context advance as one batch.

        Args:
            states: one for each request.
            contexts: what each request shares with others; None is nothing.
        """
        same: dict[tuple[tuple[int, ...], SharedContext | None], list[Filling]] = {}
        for state, context in zip(states, contexts, strict=True):
            if not state.done:
                same.setdefault((tuple(state.ids.tolist()), context), []).append(state)
        # What is kept comes first: otherwise it may have to make room before it is used.
        for (_, context), group in sorted(same.items(), key=lambda item: not self._has(item[0][1])):
            first = group[0]
            text, logits = self.open(first.ids, first.candidates(), context)
            for state in group:
                state.advance(logits)
            rows = Rows(self._passes, text, len(first.ids), group)
            while unfinished := [number for number, state in enumerate(group) if not state.done]:
                rows.step(unfinished)

    def open(
        self,
        text: Int[Tensor, " length"],
        places: Int[Tensor, " places"],
        context: SharedContext | None,
    ) -> tuple["Text", Logits]:
        """Computes a masked text over its context; returns it, and the logits of ``places``."""
        cache, read = DynamicCache(), self._passes.reads(places)
        first, last = 0, len(text)
        if context is not None:
            first, last = _span(text, context, before=int(read.min()))
            rest, shift = len(text) - last, len(text) - len(context.input_ids)
            for number, (keys, values) in enumerate(self._layers(context.input_ids)):
                behind = keys.shape[2] - rest
                moved = rotated(keys[:, :, behind:], shift, self._frequencies)
                cache.update(
                    torch.cat([keys[:, :, :first], moved], dim=2),
                    torch.cat([values[:, :, :first], values[:, :, behind:]], dim=2),
                    number,
                )
        at = torch.arange(first, last)
        logits = self._passes.extend(cache, text[at], at=at, read=read - first)
        around = [torch.arange(first), torch.arange(last, len(text))]
        return Text(cache, torch.cat([*around, at])), logits

    @property
    def _frequencies(self) -> Float[Tensor, " half"]:
        rotary = self._passes.model.get_decoder().get_submodule("rotary_emb")
        return cast(Tensor, rotary.inv_freq)

    def _has(self, context: SharedContext | None) -> bool:
        return context is not None and context.input_ids in self._kept

    def _layers(self, input_ids: tuple[int, ...]) -> Layers:
        with self._lock:
            if (known := self._kept.get(input_ids)) is not None:
                self._kept.move_to_end(input_ids)
                return known
        cache, at = DynamicCache(), torch.arange(len(input_ids))
        self._passes.extend(cache, torch.tensor(input_ids), at=at, read=at[:0])
        layers = layers_of(cache)
        with self._lock:
            self._kept[input_ids] = layers
            while len(self._kept) > 1 and sum(map(_num_bytes, self._kept.values())) > self._room:
                self._kept.popitem(last=False)
        return layers


@dataclass(frozen=True, slots=True)
class Text:
    """A masked text: the cache of all its tokens, and the position of each entry."""

    cache: DynamicCache
    positions: Int[Tensor, " entries"]


class Rows:
    """States that fill the same text, each a row with the tokens that it has changed.

    An entry of the cache belongs to one row, or to all (row -1). A row sees, for each position, the
    entry that was computed for it last.
    """

    def __init__(
        self, passes: ForwardPasses, text: Text, length: int, states: Sequence[Filling]
    ) -> None:
        self._passes, self._cache, self._states = passes, text.cache, states
        self._positions = text.positions
        self._rows = torch.full_like(text.positions, -1)
        self._is_last = torch.ones(len(text.positions), dtype=torch.bool)
        self._is_changed = torch.zeros(len(states), length, dtype=torch.bool)

    def step(self, numbers: Sequence[int]) -> None:
        """One step of the states with these numbers."""
        reads = [self._passes.reads(self._states[number].candidates()) for number in numbers]
        computed = [
            torch.cat([read, self._states[number].filled]).unique()
            for number, read in zip(numbers, reads, strict=True)
        ]
        size = max(1, TOKENS_PER_PASS // max(map(len, computed)))
        for k in range(0, len(numbers), size):
            some = slice(k, k + size)
            self._pass(numbers[some], reads[some], computed[some])

    def _pass(
        self,
        numbers: Sequence[int],
        reads: Sequence[Int[Tensor, " read"]],
        computed: Sequence[Int[Tensor, " computed"]],
    ) -> None:
        # 1. The rows' tokens, one after the other.
        sizes = torch.tensor([len(own) for own in computed])
        row, at = torch.tensor(numbers).repeat_interleave(sizes), torch.cat(list(computed))
        pairs = zip(numbers, computed, strict=True)
        tokens = torch.cat([self._states[number].ids[own] for number, own in pairs])
        # 2. They take the place of what their rows had there, and each sees its own row.
        is_new = torch.zeros_like(self._is_changed)
        is_new[row, at] = True
        self._is_changed |= is_new
        self._is_last &= (self._rows < 0) | ~is_new[self._rows.clamp(min=0), self._positions]
        self._forget()
        self._positions, self._rows = torch.cat([self._positions, at]), torch.cat([self._rows, row])
        self._is_last = torch.cat([self._is_last, torch.ones_like(at, dtype=torch.bool)])
        is_seen_by_all = (self._rows < 0) & ~self._is_changed[row][:, self._positions]
        visible = (is_seen_by_all | (self._rows == row[:, None])) & self._is_last
        # 3. One pass, and a step of each.
        places = [
            start + torch.searchsorted(own, read.contiguous())
            for start, own, read in zip(sizes.cumsum(0) - sizes, computed, reads, strict=True)
        ]
        logits = self._passes.extend(
            self._cache, tokens, at=at, read=torch.cat(places), visible=visible
        )
        for number, own in zip(numbers, logits.split([len(read) for read in reads]), strict=True):
            self._states[number].advance(own)

    def _forget(self) -> None:
        """Drops the entries that nothing sees any more, once they are half of all."""
        if 2 * int(self._is_last.sum()) >= len(self._is_last):
            return
        cache = DynamicCache()
        for number, (keys, values) in enumerate(layers_of(self._cache)):
            last = self._is_last.to(keys.device)
            cache.update(keys[:, :, last], values[:, :, last], number)
        self._cache = cache
        self._positions, self._rows = self._positions[self._is_last], self._rows[self._is_last]
        self._is_last = self._is_last[self._is_last]


def rotated(
    keys: Float[Tensor, "1 heads tokens size"], by: int, frequencies: Float[Tensor, " half"]
) -> Float[Tensor, "1 heads tokens size"]:
    """Keys as they are ``by`` positions further on, or back where it is below 0."""
    if by == 0:
        return keys
    angles = by * torch.cat([frequencies, frequencies]).to(keys.device)
    left, right = keys.float().chunk(2, dim=-1)
    turned = torch.cat([-right, left], dim=-1)
    return (keys * angles.cos() + turned * angles.sin()).to(keys.dtype)


def layers_of(cache: DynamicCache) -> Layers:
    """The cache's keys and values."""
    entries = cast(Iterable[tuple[Tensor, Tensor, None]], cache)
    return tuple((keys, values) for keys, values, _ in entries)


def _span(text: Int[Tensor, " length"], context: SharedContext, *, before: int) -> tuple[int, int]:
    """The tokens of a text that are computed over its context: the others stand in both.

    Args:
        text: masked.
        context: the same, not masked.
        before: the first token that is computed in any case.
    """
    ids, shared = text.tolist(), context.input_ids
    first = _num_equal(ids, shared, most=min(context.start, before))
    behind = _num_equal(ids[::-1], shared[::-1], most=len(shared) - context.end)
    return first, len(ids) - behind


def _num_equal(a: Sequence[int], b: Sequence[int], *, most: int) -> int:
    """How many tokens are equal from the first on."""
    number = 0
    while number < min(most, len(a), len(b)) and a[number] == b[number]:
        number += 1
    return number


def _room(model: PreTrainedModel) -> float:
    """For contexts, bytes."""
    if model.device.type == "cuda":
        return SHARE_OF_GPU * torch.cuda.mem_get_info(model.device)[0]
    return SHARE_OF_WEIGHTS * model.get_memory_footprint()


def _num_bytes(layers: Layers) -> int:
    return sum(part.numel() * part.element_size() for layer in layers for part in layer)
