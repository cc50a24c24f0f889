import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_training_rows import CODER

from dspy_diffusion_infill.errors import DataError
from dspy_diffusion_infill.training.dataset import Collator, MaskedSequences
from dspy_diffusion_infill.training.masking import draw_mask
from dspy_diffusion_infill.training.mixture import Mixture, RowPool
from dspy_diffusion_infill.training.options import MaskingOptions
from dspy_diffusion_infill.training.rows import TokenizedRow, pair


def as_it_is(row, _rng):
    return row


def pool(*rows, weight=1.0, max_length=200):
    return RowPool(tuple(rows), as_it_is, weight, max_length)


ROWS = [pair(f"Say {'a' * k}.", "b" * (k % 5 + 1)) for k in range(20)]


def sequences(*, seed=0, num_sequences=40, batch_size=4, bucket=1, in_order=False, **options):
    mixture = Mixture(pools=(pool(*ROWS),), coder=CODER, in_order=in_order, seed=seed, **options)
    masking = MaskingOptions(full_sequence=0.5, response_only=0.5)

    def mask(row, generator, index):
        return draw_mask(masking, row, generator, index)

    return MaskedSequences(
        mixture, mask, num_sequences=num_sequences, seed=seed, batch_size=batch_size, bucket=bucket
    )


def as_plain(sequence):
    return sequence.input_ids.tolist(), sequence.draw.masked.tolist(), sequence.draw.t


@settings(deadline=None, max_examples=30)
@given(
    st.integers(0, 1000),
    st.integers(1, 5),
    st.integers(1, 4),
    st.lists(st.integers(0, 39), min_size=1, max_size=10),
)
def test_a_sequence_depends_on_seed_and_index_alone(seed, batch_size, bucket, order):
    """Read in any order, or again after others: a resumed run sees what the first would have."""
    options = {"seed": seed, "batch_size": batch_size, "bucket": bucket}
    once = {k: as_plain(sequences(**options)[k]) for k in order}
    data = sequences(**options)
    assert all(as_plain(data[k]) == once[k] for k in order)


def test_other_seeds_give_other_sequences():
    first, second = (list(map(as_plain, sequences(seed=seed))) for seed in (0, 1))
    assert sum(a == b for a, b in zip(first, second, strict=True)) < 5


@given(st.integers(1, 5), st.integers(2, 4))
@settings(deadline=None, max_examples=20)
def test_buckets_only_change_the_order_and_batch_like_lengths(batch_size, bucket):
    options = {"num_sequences": 50, "batch_size": batch_size}
    plain = sequences(**options)
    sorted_ = sequences(**options, bucket=bucket)
    assert sorted(as_plain(s) for s in sorted_) == sorted(as_plain(s) for s in plain)

    def padding(data):
        lengths = [len(s.input_ids) for s in data]
        batches = [lengths[k : k + batch_size] for k in range(0, 50, batch_size)]
        return sum(max(batch) * len(batch) - sum(batch) for batch in batches)

    assert padding(sorted_) <= padding(plain)


def test_every_row_comes_once_an_epoch_in_another_order_each_time():
    data = sequences(num_sequences=60, in_order=True)
    texts = [tuple(s.input_ids.tolist()) for s in data]
    epochs = [texts[0:20], texts[20:40], texts[40:60]]
    assert all(len(set(epoch)) == 20 for epoch in epochs)
    assert set(epochs[0]) == set(epochs[1]) == set(epochs[2])
    assert epochs[0] != epochs[1] != epochs[2]


def test_sources_are_drawn_by_their_weights():
    first, second = pool(pair("aaaaaaaa", "b"), weight=3.0), pool(pair("cccccccc", "d"))
    mixture = Mixture(pools=(first, second), coder=CODER, in_order=False)
    drawn = [mixture(random.Random(k), k).input_ids for k in range(1000)]
    share = sum(ids == drawn[0] for ids in drawn) / 1000
    assert min(abs(share - 0.75), abs(share - 0.25)) < 5 * (0.75 * 0.25 / 1000) ** 0.5


def test_a_row_whose_response_was_cut_off_is_passed_over():
    long, short = pair("a" * 300, "b"), pair("Say b.", "b")
    mixture = Mixture(pools=(pool(long, short),), coder=CODER, in_order=True, needs_response=True)
    assert all(any(mixture(random.Random(k), k).is_response) for k in range(10))
    hopeless = Mixture(pools=(pool(long),), coder=CODER, in_order=True, needs_response=True)
    with pytest.raises(DataError, match="fits in max_length"):
        hopeless(random.Random(0), 0)


def test_sequences_know_that_their_rows_were_cut():
    mixture = Mixture(pools=(pool(*ROWS, max_length=40),), coder=CODER, in_order=True)

    def mask(row, generator, index):
        return draw_mask(MaskingOptions(full_sequence=1.0), row, generator, index)

    data = MaskedSequences(mixture, mask, num_sequences=20, seed=0)
    assert {len(s.input_ids) == 40 for s in data if s.is_cut} == {True}
    assert any(not s.is_cut for s in data)


def test_eos_padding_ends_rows_at_a_multiple_that_fits():
    mixture = Mixture(
        pools=(pool(*ROWS, max_length=60),), coder=CODER, in_order=True, eos_id=3, eos_padding=16
    )
    lengths = {len(mixture(random.Random(k), k).input_ids) for k in range(20)}
    assert all(length % 16 == 0 or length > 48 for length in lengths)
    assert max(lengths) <= 60


def test_a_batch_shows_the_noised_tokens_and_hides_the_padding():
    data = sequences(batch_size=8)
    batch = Collator(mask_id=999, pad_id=0)([data[k] for k in range(8)])
    for k in range(8):
        ids, length = data[k].input_ids, len(data[k].input_ids)
        assert batch["x0"][k, :length].tolist() == ids.tolist()
        assert batch["attention_mask"][k].tolist() == [1] * length + [0] * (
            batch["x0"].shape[1] - length
        )
        masked = batch["masked"][k]
        assert (batch["input_ids"][k][masked] == 999).all()
        assert (batch["input_ids"][k][~masked] == batch["x0"][k][~masked]).all()
        assert batch["num_maskable"][k] == data[k].draw.num_maskable
        assert bool(batch["is_cut"][k]) == data[k].is_cut
    torch.testing.assert_close(batch["t"], torch.tensor([data[k].draw.t for k in range(8)]))


def test_indices_outside_are_errors():
    with pytest.raises(IndexError):
        sequences()[40]
    assert isinstance(sequences().row(0), TokenizedRow)
