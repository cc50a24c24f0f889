"""A data set of masked sequences in which sequence i depends on (seed, i) alone.

Row, worked examples, masking and t of sequence i come from a generator made from the seed and i, and the sequences are
read in order. So a run that was killed and resumed sees the same data, in the same order, under the same masks, whatever
the number of processes; nothing of a data loader's state has to be saved.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor
from torch.utils.data import Dataset

from dspy_diffusion_infill.training.masking import MaskDraw
from dspy_diffusion_infill.training.rows import TokenizedRow

RowDraw = Callable[[random.Random], TokenizedRow]
MaskFunction = Callable[[TokenizedRow, Generator, int], MaskDraw]


@dataclass(frozen=True, slots=True)
class Sequence1D:
    """One masked sequence: clean tokens, what is masked, and the masking ratio."""

    input_ids: Int[Tensor, " length"]
    masked: Bool[Tensor, " length"]
    t: float


class MaskedSequences(Dataset[Sequence1D]):
    """``num_sequences`` sequences; batches of similar length lie next to each other.

    Args:
        draw_row: makes one tokenised row with a generator; the mixture of sources is decided in it.
        draw_mask: (row, generator, index) -> the masked positions.
        num_sequences: length of the data set.
        seed: with the index, decides everything.
        batch_size: sequences that share a batch and are therefore chosen to be of similar length.
        bucket: number of batches among which sequences are sorted by length; 1 keeps the plain order.
    """

    def __init__(
        self,
        draw_row: RowDraw,
        draw_mask: MaskFunction,
        *,
        num_sequences: int,
        seed: int,
        batch_size: int = 1,
        bucket: int = 1,
    ) -> None:
        self.draw_row, self.draw_mask = draw_row, draw_mask
        self.num_sequences, self.seed = num_sequences, seed
        self.chunk, self.batch_size = batch_size * bucket, batch_size
        self._order: tuple[int, list[int]] = (-1, [])

    def __len__(self) -> int:
        return self.num_sequences

    def row(self, index: int) -> TokenizedRow:
        """The row of sequence ``index``, before masking."""
        return self.draw_row(random.Random(f"{self.seed}/{index}"))

    def __getitem__(self, index: int) -> Sequence1D:
        if not 0 <= index < self.num_sequences:
            raise IndexError(index)
        number = index // self.chunk
        if self._order[0] != number:
            self._order = (number, self._chunk_order(number))
        source = self._order[1][index - number * self.chunk]
        row = self.row(source)
        draw = self.draw_mask(row, Generator().manual_seed(hash((self.seed, source)) % 2**63), source)
        return Sequence1D(torch.tensor(row.input_ids), draw.masked, draw.t)

    def _chunk_order(self, number: int) -> list[int]:
        """Sorted by length inside the chunk, then whole batches shuffled."""
        indices = list(range(number * self.chunk, min((number + 1) * self.chunk, self.num_sequences)))
        if self.chunk == self.batch_size:
            return indices
        indices.sort(key=lambda index: (len(self.row(index).input_ids), index))
        batches = [indices[k : k + self.batch_size] for k in range(0, len(indices), self.batch_size)]
        tail = [batches.pop()] if len(batches[-1]) < self.batch_size else []
        random.Random(f"{self.seed}/chunk/{number}").shuffle(batches)
        return [index for batch in [*batches, *tail] for index in batch]


@dataclass(frozen=True, slots=True)
class Collator:
    """Pads masked sequences to one batch: ``xt`` (noised), ``x0`` (clean), ``masked``, ``t`` and ``attention_mask``."""

    mask_id: int
    pad_id: int

    def __call__(self, sequences: Sequence[Sequence1D]) -> dict[str, Tensor]:
        """Returns tensors of shape (batch, longest), right-padded, and t of shape (batch,)."""
        length = max(len(s.input_ids) for s in sequences)
        x0 = torch.full((len(sequences), length), self.pad_id)
        masked = torch.zeros(len(sequences), length, dtype=torch.bool)
        attention = torch.zeros(len(sequences), length, dtype=torch.long)
        for k, s in enumerate(sequences):
            x0[k, : len(s.input_ids)] = s.input_ids
            masked[k, : len(s.input_ids)] = s.masked
            attention[k, : len(s.input_ids)] = 1
        t: Float[Tensor, " batch"] = torch.tensor([s.t for s in sequences])
        xt = torch.where(masked, self.mask_id, x0)
        return {"input_ids": xt, "x0": x0, "masked": masked, "t": t, "attention_mask": attention}
