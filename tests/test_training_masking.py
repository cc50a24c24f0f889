import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from reference import masking_truth as truth

from dspy_diffusion_infill.training.masking import (
    draw_mask,
    draw_t,
    full_sequence_mask,
    full_sequence_mask_for_elbo,
    response_only_mask,
    response_only_mask_for_elbo,
    window_mask,
)
from dspy_diffusion_infill.training.options import MaskingOptions
from dspy_diffusion_infill.training.rows import TokenizedRow

flags = st.lists(st.booleans(), min_size=1, max_size=60).filter(any)
ratios = st.floats(0.001, 1.0)
seeds = st.integers(0, 2**32)


def row_of(prompt: int, response: int, preferred: tuple[int, int] | None = None) -> TokenizedRow:
    """Two turn markers around a prompt, then a response."""
    maskable = [False, *[True] * prompt, False, *[True] * response]
    is_response = [False] * (prompt + 2) + [True] * response
    return TokenizedRow(
        list(range(len(maskable))), maskable, is_response, [preferred] if preferred else []
    )


@given(flags, ratios, seeds)
def test_full_sequence_equals_plain_python(maskable, t, seed):
    draw = full_sequence_mask(torch.tensor(maskable), t, truth.numbers(seed))
    assert draw.masked.tolist() == truth.full_sequence(maskable, t, seed)


@given(flags, ratios, seeds)
def test_response_only_equals_plain_python(response, t, seed):
    draw = response_only_mask(torch.tensor(response), t, truth.numbers(seed))
    assert draw.masked.tolist() == truth.response_only(response, t, seed)


@given(flags, st.floats(1e-9, 1.0), seeds)
def test_the_draws_for_elbo_equal_plain_python(flags, t, seed):
    for mask, plain in (
        (full_sequence_mask_for_elbo, truth.full_sequence_for_elbo),
        (response_only_mask_for_elbo, truth.response_only_for_elbo),
    ):
        draw = mask(torch.tensor(flags), t, truth.numbers(seed))
        assert (draw.masked.tolist(), draw.t) == plain(flags, t, seed)
        assert draw.num_maskable == sum(flags)


def test_full_sequence_for_elbo_masks_every_number_of_tokens_alike():
    row, options = row_of(3, 2), MaskingOptions(full_sequence=1.0, low_discrepancy=5)
    draws = [draw_mask(options, row, truth.numbers(k), k, loss="elbo") for k in range(50)]
    assert [int(draw.masked.sum()) for draw in draws] == [1, 2, 3, 4, 5] * 10
    assert all(draw.t == int(draw.masked.sum()) / 5 for draw in draws)


def test_response_only_for_elbo_forces_no_token_and_has_a_floor_under_its_ratio():
    row, options = row_of(3, 1), MaskingOptions(response_only=1.0)
    draws = [draw_mask(options, row, truth.numbers(k), k, loss="elbo") for k in range(2000)]
    assert min(draw.t for draw in draws) >= 1e-3
    empty = sum(not draw.masked.any() for draw in draws)
    assert abs(empty - 1000) < 5 * math.sqrt(500)  # five standard deviations


@given(
    flags,
    ratios,
    seeds,
    st.tuples(st.integers(1, 5), st.integers(0, 9)),
    st.integers(1, 70),
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 20)), max_size=2),
    st.sampled_from(["random", "left_to_right"]),
)
def test_windows_equal_plain_python(maskable, t, seed, lengths, tokens_per_window, spans, order):
    options = {
        "lengths": (lengths[0], sum(lengths)),
        "preferred": [(low, low + length) for low, length in spans],
        "tokens_per_window": tokens_per_window,
        "order": order,
    }
    draw = window_mask(torch.tensor(maskable), t, truth.numbers(seed), **options)
    assert draw.masked.tolist() == truth.window(maskable, t, seed, **options)


@given(flags, ratios, seeds, st.sampled_from(["full_sequence", "response_only", "window"]))
def test_only_maskable_tokens_are_masked_and_at_least_one(maskable, t, seed, way):
    row = TokenizedRow(list(range(len(maskable))), maskable, maskable, [])
    draw = draw_mask(MaskingOptions(**{way: 1.0}), row, truth.numbers(seed), 0)
    assert draw.masked.any()
    assert not (draw.masked & ~torch.tensor(maskable)).any()
    assert 0 < draw.t <= 1
    assert draw.num_maskable == sum(maskable)


@given(st.integers(1, 40), st.integers(1, 40), ratios, seeds)
def test_full_sequence_masks_the_floor_of_t_times_the_length(prompt, response, t, seed):
    row = row_of(prompt, response)
    masked = full_sequence_mask(torch.tensor(row.maskable), t, truth.numbers(seed)).masked
    assert int(masked.sum()) == max(1, math.floor(t * (prompt + response)))


@given(st.integers(1, 40), st.integers(1, 40), seeds)
def test_response_only_never_masks_the_prompt(prompt, response, seed):
    options = MaskingOptions(response_only=1.0)
    masked = draw_mask(options, row_of(prompt, response), truth.numbers(seed), 0).masked
    assert not masked[: prompt + 2].any()


def test_full_sequence_covers_every_token_of_prompt_and_response():
    row, options = row_of(10, 10), MaskingOptions(full_sequence=1.0)
    times = sum(draw_mask(options, row, truth.numbers(k), k).masked.long() for k in range(2000))
    expected = 2000 * sum(max(1, k) for k in range(20)) / 20 / 20  # floor(20 t) is uniform
    # Five standard deviations of a count of about 950 in 2000 draws.
    assert all(
        abs(count - expected) < 5 * math.sqrt(500) if free else count == 0
        for count, free in zip(times.tolist(), row.maskable, strict=True)
    )


@given(st.integers(20, 60), ratios, seeds)
def test_a_window_lies_in_the_instructions(length, t, seed):
    row = row_of(length, 5, preferred=(3, 12))
    draw = window_mask(
        torch.tensor(row.maskable),
        t,
        truth.numbers(seed),
        lengths=(4, 9),
        preferred=row.preferred,
        tokens_per_window=10_000,
    )
    places = draw.masked.nonzero()[:, 0]
    assert int(places.min()) >= 3
    assert int(places.max()) < 12
    assert int(places.max() - places.min()) < 9


@given(st.integers(20, 60), ratios, seeds)
def test_a_window_in_left_to_right_order_is_masked_to_its_end(length, t, seed):
    options = MaskingOptions(
        window=1.0, window_lengths=(8, 8), tokens_per_window=10_000, window_order="left_to_right"
    )
    row = row_of(length, 5, preferred=(5, 13))
    places = draw_mask(options, row, truth.numbers(seed), 0).masked.nonzero()[:, 0].tolist()
    assert places == list(range(min(places), 13))


def test_ways_are_mixed_by_their_shares():
    options = MaskingOptions(full_sequence=0.5, response_only=0.3, window=0.2)
    row = row_of(400, 1)
    only_response = sum(
        bool(draw.masked[-1]) and int(draw.masked.sum()) == 1
        for draw in (draw_mask(options, row, truth.numbers(k), k) for k in range(2000))
    )
    # Response-only draws of one token, and hardly any other; five standard deviations.
    assert abs(only_response - 600) < 5 * math.sqrt(2000 * 0.3 * 0.7)


@given(st.integers(1, 64), st.integers(0, 10_000), seeds)
def test_consecutive_indices_draw_t_from_different_strata(n, first, seed):
    assume(first % n == 0)
    generator = truth.numbers(seed)
    drawn = [draw_t(generator, index=first + k, low_discrepancy=n) for k in range(n)]
    assert all(k / n < t <= (k + 1) / n for k, t in enumerate(drawn))


def test_free_t_is_in_the_half_open_unit_interval():
    generator = truth.numbers(0)
    drawn = [draw_t(generator) for _ in range(1000)]
    assert 0 < min(drawn) < 0.01
    assert 0.99 < max(drawn) <= 1


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"full_sequence": 0.5}, "add up to 1"),
        ({"full_sequence": 1.5, "window": -0.5}, "add up to 1"),
        ({"window": 1.0, "window_lengths": (9, 4)}, "window_lengths"),
    ],
)
def test_wrong_shares_are_refused(shares, message):
    with pytest.raises(ValueError, match=message):
        MaskingOptions(**shares)
