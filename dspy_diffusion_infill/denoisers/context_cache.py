"""Keys and values that requests share: those of a context, and of the texts that fill it.

``Sampling(cache="context")`` computes in three layers, each over the one before:

1. Of a context, with the instructions as they are, every token. What lies around the instructions
   is kept, for all windows, steps and requests.
2. Of a masked text, the instructions' tokens, once for all requests that share it.
3. In each later pass, the tokens that are read and those that the last step filled. All other
   tokens keep what they had, masked ones that are not read included.

``Sampling(cache="around")`` computes in layer 3 what layer 2 has, for each request anew, and in
both the token next to the instructions too: that one depends on them most.

The requests of a text are rows of one sequence: a mask says which entry of the cache each token
sees, so nothing is copied for each row, and the weights are read once for all of them. A context's
entries stay where they are, and those of its texts come and go behind them. Where the instructions
get longer or shorter, all tokens but those behind them move; keys in front are copied and rotated
to the new positions (RoPE, arXiv 2104.09864).

An approximation: in a bidirectional model every token depends on every other one.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from dspy_diffusion_infill.denoisers.drift import DriftProbe, with_probe
from dspy_diffusion_infill.denoisers.forward import TOKENS_PER_PASS, ForwardPasses, Logits
from dspy_diffusion_infill.denoisers.growing_cache import ROOM, GrowingCache
from dspy_diffusion_infill.denoisers.infill_state import Filling
from dspy_diffusion_infill.denoisers.protocol import SharedContext
from dspy_diffusion_infill.denoisers.rotation import Rotation

SHARE_OF_WEIGHTS = 1 / 3
SHARE_OF_GPU = 0.5
"""Contexts that are kept take at most this share of the weights' memory, on a GPU of what is free
beside them; one is always kept."""


class ContextCache:
    """Infills over contexts that are computed once; safe to call from several threads."""

    def __init__(self, passes: ForwardPasses) -> None:
        self._passes = passes
        self._room = _room(passes.model)
        self._kept: OrderedDict[SharedContext, GrowingCache] = OrderedDict()
        self._lock = threading.Lock()

    def infill(
        self,
        states: Sequence[Filling],
        contexts: Sequence[SharedContext | None],
        later: "Later",
    ) -> None:
        """Takes states to their end; those that share text and context advance as one batch.

        Args:
            states: one for each request. Those without a context stay as they are where each pass
                would compute all of their text.
            contexts: what each request shares with others; None is nothing.
            later: what passes after the first compute.
        """
        same: dict[tuple[tuple[int, ...], SharedContext | None], list[Filling]] = {}
        for state, context in zip(states, contexts, strict=True):
            if not state.done and (context is not None or not later.is_whole):
                same.setdefault((tuple(state.ids.tolist()), context), []).append(state)
        # What is kept comes first: otherwise it may have to make room before it is used.
        for (_, context), group in sorted(
            same.items(), key=lambda item: item[0][1] not in self._kept
        ):
            with self._lock:
                self._fill(group, context, later)

    def logits(
        self,
        text: Int[Tensor, " length"],
        places: Int[Tensor, " places"],
        context: SharedContext | None,
    ) -> Logits:
        """Of the places of a masked text, over its context."""
        with self._lock:
            return self._open(text, places, context, Later())[1]

    def _fill(
        self,
        group: Sequence[Filling],
        context: SharedContext | None,
        later: "Later",
        before: "Text | None" = None,
    ) -> None:
        """Takes states with one text to their end.

        Args:
            group: the states.
            context: what lies around; None computes it.
            later: what passes after the first compute.
            before: the text over the context that has drifted from it.
        """
        first = group[0]
        text, logits = self._open(first.ids, first.candidates(), context, later, before)
        if text.has_drifted():
            return self._fill_anew(group, later, text)
        for state in group:
            state.advance(logits)
        rows = Rows(self._passes, text, len(first.ids), group)
        while unfinished := [number for number, state in enumerate(group) if not state.done]:
            for number in rows.step(unfinished):
                self._fill_anew([group[number]], later, text)
        return None

    def _fill_anew(self, group: Sequence[Filling], later: "Later", before: "Text") -> None:
        """For these states alone: no result may depend on what else was filled."""
        for state in group:
            state.num_refreshes += 1
        self._fill(group, None, later, before)

    @torch.inference_mode()
    def _open(
        self,
        text: Int[Tensor, " length"],
        places: Int[Tensor, " places"],
        context: SharedContext | None,
        later: "Later",
        before: "Text | None" = None,
    ) -> tuple["Text", Logits]:
        """Computes a masked text over its context; returns it, and the logits of ``places``."""
        read, first, last = self._passes.reads(places), 0, len(text)
        over, place = Text.empty(self._passes.new_cache()), None
        if context is not None:
            first, last = _span(text, context, before=int(read.min()))
            if later.is_whole or later.max_drift is not None:
                first, last, place = with_probe(first, last, len(text))
            over = self._over(context, len(text), first, last)
        at = torch.arange(first, last)
        is_seen = torch.cat([over.is_seen, torch.ones_like(at, dtype=torch.bool)])
        visible = None if is_seen.all() else is_seen.expand(len(at), -1)
        logits = self._passes.extend(
            over.cache, text[at], at=at - over.shift, read=read - first, visible=visible
        )
        opened = replace(over, positions=torch.cat([over.positions, at]), is_seen=is_seen)
        if before is not None and before.probe is not None:
            probe = before.probe.over(over.cache, before.probe.position)
            return replace(opened, always=before.always, probe=probe), logits
        if context is not None and place is not None and later.max_drift is not None:
            # What is kept comes first, in the order of the text.
            is_in_front, behind = place < context.start, len(text) - place
            entry = place if is_in_front else over.num_kept - behind
            probe = DriftProbe(place, later.max_drift).over(over.cache, entry)
            opened = replace(opened, always=torch.tensor([place]), probe=probe)
        return (replace(opened, always=at) if later.is_whole else opened), logits

    def _over(self, context: SharedContext, length: int, first: int, last: int) -> "Text":
        """A text of this length, whose tokens before ``first`` and from ``last`` on are known."""
        cache, shift = self._around(context), length - len(context.input_ids)
        num_kept, num_behind = len(_outside(context)), length - last
        is_seen = torch.zeros(num_kept, dtype=torch.bool)
        is_seen[num_kept - num_behind :] = True
        # Those that are not seen may have any position.
        positions = torch.arange(num_kept) + length - num_kept
        positions = positions.clamp(0, length - 1)
        front = torch.arange(first)
        if shift == 0:
            is_seen[front], positions[front] = True, front
        else:
            # What lies behind keeps its place, and all others move: as a rule they are fewer.
            rotation = Rotation.by(-shift, self._frequencies)
            for number in range(len(cache)):
                keys, values = (part[:, :, :first] for part in cache.entries(number))
                cache.update(rotation.of(keys), values, number)
            is_seen = torch.cat([is_seen, torch.ones_like(front, dtype=torch.bool)])
            positions = torch.cat([positions, front])
        return Text(cache, positions, is_seen, num_kept, shift, torch.arange(0))

    @property
    def _frequencies(self) -> Float[Tensor, " half"]:
        rotary = self._passes.model.get_decoder().get_submodule("rotary_emb")
        return cast(Tensor, rotary.inv_freq)

    def _around(self, context: SharedContext) -> GrowingCache:
        """What lies around the instructions of a context, and nothing else."""
        outside = _outside(context)
        if (known := self._kept.get(context)) is not None:
            self._kept.move_to_end(context)
            known.cut(len(outside))
            return known
        length = len(context.input_ids)
        dtype = self._make_room(length)
        cache, at = self._passes.new_cache(dtype), torch.arange(length)
        self._passes.extend(cache, torch.tensor(context.input_ids), at=at, read=at[:0])
        cache.keep(torch.zeros(length, dtype=torch.bool).index_fill(0, outside, True))
        self._kept[context] = cache
        return cache

    def _make_room(self, length: int) -> torch.dtype:
        """Forgets contexts until another one fits, those first that were not used for longest.

        Returns the dtype of its keys and values: the model's, and float16 in place of float32 where
        two contexts of its length do not fit.
        """
        dtype, number = self._passes.model.dtype, self._passes.numbers_per_token * (length + ROOM)
        if dtype == torch.float32 and 2 * number * dtype.itemsize > self._room:
            dtype = torch.float16
        room = self._room - number * dtype.itemsize
        while self._kept and sum(cache.num_bytes for cache in self._kept.values()) > room:
            self._kept.popitem(last=False)
        return dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class Later:
    """What the passes after the first one compute of a text, beside what is read and filled.

    Attributes:
        is_whole: all that was computed over the context, instructions and masks.
        max_drift: of a probe, which is computed too; beyond it, all that is kept. None is no probe.
    """

    is_whole: bool = False
    max_drift: float | None = None


@dataclass(frozen=True, slots=True)
class Text:
    """A masked text in a cache.

    Attributes:
        cache: of its tokens, and of some that it does not have.
        positions: of each entry, in the text.
        is_seen: which entries are the text's.
        num_kept: so many entries are the context's, and stay in any case.
        shift: positions that the model is given are smaller by it.
        always: positions that each pass computes.
        probe: one of them, which tells how far the context has drifted; None is no probe.
    """

    cache: GrowingCache
    positions: Int[Tensor, " entries"]
    is_seen: Bool[Tensor, " entries"]
    num_kept: int
    shift: int
    always: Int[Tensor, " always"]
    probe: DriftProbe | None = None

    @classmethod
    def empty(cls, cache: GrowingCache) -> "Text":
        """Of no tokens."""
        none = torch.arange(0)
        return cls(cache, none, none.bool(), 0, 0, none)

    def has_drifted(self) -> bool:
        """Whether the text as it was computed is too far from what is kept."""
        if self.probe is None:
            return False
        own = (self.is_seen & (self.positions == self.probe.position)).nonzero()
        return self.probe.has_drifted(self.cache, int(own[-1]))


class Rows:
    """States that fill the same text, each a row with the tokens that it has changed.

    An entry of the cache belongs to one row, or to all (row -1). A row sees, for each position, the
    entry that was computed for it last.
    """

    def __init__(
        self, passes: ForwardPasses, text: Text, length: int, states: Sequence[Filling]
    ) -> None:
        self._passes, self._text, self._states = passes, text, states
        self._positions, self._is_last = text.positions, text.is_seen
        self._rows = torch.full_like(text.positions, -1)
        self._is_changed = torch.zeros(len(states), length, dtype=torch.bool)

    def step(self, numbers: Sequence[int]) -> list[int]:
        """One step of the states with these numbers; returns those that have drifted before it."""
        reads = [self._passes.reads(self._states[number].candidates()) for number in numbers]
        computed = [
            torch.cat([read, self._states[number].filled, self._text.always]).unique()
            for number, read in zip(numbers, reads, strict=True)
        ]
        size, drifted = max(1, TOKENS_PER_PASS // max(map(len, computed))), list[int]()
        for k in range(0, len(numbers), size):
            some = slice(k, k + size)
            drifted += self._pass(numbers[some], reads[some], computed[some])
        return drifted

    def _pass(
        self,
        numbers: Sequence[int],
        reads: Sequence[Int[Tensor, " read"]],
        computed: Sequence[Int[Tensor, " computed"]],
    ) -> list[int]:
        # 1. The rows' tokens, one after the other.
        sizes = torch.tensor([len(own) for own in computed])
        row, at = torch.tensor(numbers).repeat_interleave(sizes), torch.cat(list(computed))
        pairs = zip(numbers, computed, strict=True)
        tokens = torch.cat([self._states[number].ids[own] for number, own in pairs])
        # 2. They take the place of what their rows had there, and each sees its own row.
        is_new = torch.zeros_like(self._is_changed)
        is_new[row, at] = True
        self._is_changed |= is_new
        is_replaced = is_new[self._rows.clamp(min=0), self._positions]
        self._is_last = self._is_last & ((self._rows < 0) | ~is_replaced)
        self._forget(len(at))
        self._positions, self._rows = torch.cat([self._positions, at]), torch.cat([self._rows, row])
        self._is_last = torch.cat([self._is_last, torch.ones_like(at, dtype=torch.bool)])
        is_seen_by_all = (self._rows < 0) & ~self._is_changed[row][:, self._positions]
        visible = (is_seen_by_all | (self._rows == row[:, None])) & self._is_last
        # 3. One pass, and a step of each whose context holds.
        places = [
            start + torch.searchsorted(own, read.contiguous())
            for start, own, read in zip(sizes.cumsum(0) - sizes, computed, reads, strict=True)
        ]
        logits = self._passes.extend(
            self._text.cache,
            tokens,
            at=at - self._text.shift,
            read=torch.cat(places),
            visible=visible,
        )
        drifted = self._drifted(row, at)
        for number, own in zip(numbers, logits.split([len(read) for read in reads]), strict=True):
            if number not in drifted:
                self._states[number].advance(own)
        return drifted

    def _drifted(self, row: Int[Tensor, " tokens"], at: Int[Tensor, " tokens"]) -> list[int]:
        """The rows whose probe has moved too far, of tokens that were computed last."""
        probe, cache = self._text.probe, self._text.cache
        if probe is None:
            return []
        found = (at == probe.position).nonzero()[:, 0].tolist()
        start = len(self._positions) - len(at)
        return [int(row[k]) for k in found if probe.has_drifted(cache, start + k)]

    def _forget(self, num_new: int) -> None:
        """Drops what nothing sees any more: where it is half of what was added, or for room."""
        is_kept = self._is_last | (torch.arange(len(self._is_last)) < self._text.num_kept)
        num_stale, num_added = int((~is_kept).sum()), len(is_kept) - self._text.num_kept
        if num_stale == 0 or (2 * num_stale <= num_added and self._text.cache.has_room(num_new)):
            return
        self._text.cache.keep(is_kept)
        self._positions, self._rows = self._positions[is_kept], self._rows[is_kept]
        self._is_last = self._is_last[is_kept]


def _outside(context: SharedContext) -> Int[Tensor, " tokens"]:
    """The tokens of a context around its instructions."""
    behind = torch.arange(context.end, len(context.input_ids))
    return torch.cat([torch.arange(context.start), behind])


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
