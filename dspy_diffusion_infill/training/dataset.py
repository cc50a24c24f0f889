"""A data set of masked sequences in which sequence i depends on (seed, i) alone.

Row, worked examples, masking and t of sequence i come from generators made from the seed and i, and
the sequences are read in order. So a run that was killed and resumed sees the same data, in the
same order, under the same masks, whatever the number of processes; nothing of a data loader's state
has to be saved.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor
from torch.utils.data import Dataset

from dspy_diffusion_infill.training.masking import MaskDraw
from dspy_diffusion_infill.training.rows import TokenizedRow

RowDraw = Callable[[random.Random, int], TokenizedRow]
MaskFunction = Callable[[TokenizedRow, Generator, int], MaskDraw]


@dataclass(frozen=True, slots=True)
class MaskedSequence:
    """One masked sequence.

    Attributes:
        input_ids: the clean tokens.
        draw: which of them are masked.
        is_cut: whether the row had more tokens than fit.
    """

    input_ids: Int[Tensor, " length"]
    draw: MaskDraw
    is_cut: bool = False


class MaskedSequences(Dataset[MaskedSequence]):
    """``num_sequences`` sequences; batches of similar length lie next to each other.

    Args:
        draw_row: (generator, index) -> a tokenised row; the mixture of sources is decided in it.
        draw_mask: (row, generator, index) -> the masked positions.
        num_sequences: length of the data set.
        seed: with the index, decides everything.
        batch_size: sequences that share a batch and are therefore chosen to be of similar length.
        bucket: batches among which sequences are sorted by length; 1 keeps the plain order.
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
        self.chunk_size, self.batch_size = batch_size * bucket, batch_size
        self._chunk: tuple[int, list[tuple[int, TokenizedRow]]] = (-1, [])

    def __len__(self) -> int:
        return self.num_sequences

    def __getitem__(self, index: int) -> MaskedSequence:
        if not 0 <= index < self.num_sequences:
            raise IndexError(index)
        number, place = divmod(index, self.chunk_size)
        if self._chunk[0] != number:
            self._chunk = (number, self._ordered_chunk(number))
        source, row = self._chunk[1][place]
        generator = Generator().manual_seed(hash((self.seed, source)) % 2**63)
        draw = self.draw_mask(row, generator, source)
        return MaskedSequence(torch.tensor(row.input_ids), draw, row.is_cut)

    def row(self, index: int) -> TokenizedRow:
        """The row of the sequence that was drawn as number ``index``, before masking."""
        return self.draw_row(random.Random(f"{self.seed}/{index}"), index)

    def _ordered_chunk(self, number: int) -> list[tuple[int, TokenizedRow]]:
        """(index, row) of one chunk: sorted by length, then whole batches shuffled."""
        first, size = number * self.chunk_size, self.batch_size
        last = min(first + self.chunk_size, self.num_sequences)
        rows = [(index, self.row(index)) for index in range(first, last)]
        if self.chunk_size == size:
            return rows
        rows.sort(key=lambda item: (len(item[1].input_ids), item[0]))
        batches = [rows[k : k + size] for k in range(0, len(rows), size)]
        tail = [batches.pop()] if len(batches[-1]) < size else []
        random.Random(f"{self.seed}/chunk/{number}").shuffle(batches)
        return [item for batch in [*batches, *tail] for item in batch]


@dataclass(frozen=True, slots=True)
class Collator:
    """Pads masked sequences to one right-padded batch.

    Attributes:
        mask_id: what stands in ``input_ids`` where a token is masked.
        pad_id: what stands behind the shorter sequences; the attention mask hides it.
    """

    mask_id: int
    pad_id: int

    def __call__(self, sequences: Sequence[MaskedSequence]) -> dict[str, Tensor]:
        """The arguments of ``DiffusionTrainer.compute_loss``.

        Returns:
            ``input_ids`` (noised), ``x0`` (clean), ``masked`` and ``attention_mask`` of shape
            (batch, longest); ``t``, ``num_maskable`` and ``is_cut`` of shape (batch,).
        """
        length = max(len(s.input_ids) for s in sequences)
        x0 = torch.full((len(sequences), length), self.pad_id)
        masked = torch.zeros(len(sequences), length, dtype=torch.bool)
        attention = torch.zeros(len(sequences), length, dtype=torch.long)
        for k, s in enumerate(sequences):
            x0[k, : len(s.input_ids)] = s.input_ids
            masked[k, : len(s.input_ids)] = s.draw.masked
            attention[k, : len(s.input_ids)] = 1
        t: Float[Tensor, " batch"] = torch.tensor([s.draw.t for s in sequences])
        return {
            "input_ids": torch.where(masked, self.mask_id, x0),
            "x0": x0,
            "masked": masked,
            "attention_mask": attention,
            "t": t,
            "num_maskable": torch.tensor([s.draw.num_maskable for s in sequences]),
            "is_cut": torch.tensor([s.is_cut for s in sequences]),
        }
