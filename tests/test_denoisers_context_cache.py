"""Infilling with ``Sampling(cache="context")``: what is shared, and where it is exact."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_denoisers_transformer import FAMILIES, TEXT_TOKENS, few, tokens
from tiny_denoisers import MASK_ID, tiny_denoiser

from dspy_diffusion_infill.denoisers import (
    InfillRequest,
    Sampling,
    ScoreRequest,
    SharedContext,
)
from dspy_diffusion_infill.denoisers import context_cache as context_cache_module
from dspy_diffusion_infill.denoisers.rotation import Rotation
from dspy_diffusion_infill.denoisers.transformer import TransformerDenoiser

SHARED = Sampling(steps=8, temperature=0.8, cache="context")


@pytest.fixture(scope="module", params=FAMILIES)
def denoiser(request, tmp_path_factory) -> TransformerDenoiser:
    return with_room(tiny_denoiser(tmp_path_factory.mktemp("model"), request.param), 1e9)


def with_room(denoiser: TransformerDenoiser, room: float) -> TransformerDenoiser:
    """Anew, with so many bytes for contexts: a share of a tiny model's weights is next to none."""
    denoiser = TransformerDenoiser(denoiser.checkpoint, name="with room")
    denoiser._contexts._room = room
    return denoiser


def ids_of(length: int, seed: int = 0) -> list[int]:
    return torch.randint(
        TEXT_TOKENS, (length,), generator=torch.Generator().manual_seed(seed)
    ).tolist()


CONTEXT = SharedContext(tuple(ids_of(60)), start=20, end=32)


def masked(first: int = 24, out: int = 4, put_in: int = 4) -> tuple[int, ...]:
    """The context's text with a window of the instructions masked."""
    ids = CONTEXT.input_ids
    return (*ids[:first], *[MASK_ID] * put_in, *ids[first + out :])


def requests_for(ids: tuple[int, ...], num: int = 4) -> list[InfillRequest]:
    return [InfillRequest(ids, seed, CONTEXT) for seed in range(num)]


@contextmanager
def sizes(denoiser: TransformerDenoiser) -> Iterator[list[int]]:
    """How many tokens each pass computes."""
    seen: list[int] = []
    handle = denoiser.model.get_input_embeddings().register_forward_hook(
        lambda _module, args, _output: seen.append(args[0].numel())
    )
    try:
        yield seen
    finally:
        handle.remove()


@few
@given(
    text=st.lists(st.one_of(tokens, st.just(MASK_ID)), min_size=1, max_size=24),
    seeds=st.lists(st.integers(0, 99), min_size=1, max_size=4),
    algorithm=st.sampled_from(["low_confidence", "random", "entropy", "origin"]),
    block_length=st.none() | st.integers(1, 10),
)
def test_visible_tokens_stay_and_masks_become_plain_text(
    denoiser, text, seeds, algorithm, block_length
):
    sampling = replace(SHARED, algorithm=algorithm, block_length=block_length)
    requests = [InfillRequest(text, seed) for seed in seeds]
    results = denoiser.infill(requests, sampling)
    for result in results:
        for before, after in zip(text, result.input_ids, strict=True):
            assert after == before if before != MASK_ID else 0 <= after < TEXT_TOKENS
        assert result.num_passes <= min(8, text.count(MASK_ID))
    assert denoiser.infill(requests, sampling) == results


@pytest.mark.parametrize(("out", "put_in"), [(4, 4), (4, 7), (4, 2), (0, 5)])
def test_a_batch_gives_each_request_what_it_gets_alone(denoiser, out, put_in):
    requests = requests_for(masked(out=out, put_in=put_in))
    together = denoiser.infill(requests, SHARED)
    for request, result in zip(requests, together, strict=True):
        [alone] = denoiser.infill([request], SHARED)
        assert result.input_ids == alone.input_ids
        assert result.confidence == pytest.approx(alone.confidence, rel=1e-4)


def test_what_lies_around_the_instructions_is_computed_once(denoiser):
    extra = 1 if denoiser.checkpoint.shift else 0  # the token before a mask scores it
    own = replace(CONTEXT, input_ids=tuple(ids_of(60, seed=1)))
    windows = [(*own.input_ids[:f], *[MASK_ID] * 4, *own.input_ids[f + 4 :]) for f in (22, 26)]
    with sizes(denoiser) as seen:
        for ids in windows:
            requests = [InfillRequest(ids, seed, own) for seed in range(3)]
            denoiser.infill(requests, replace(SHARED, steps=1))
    assert seen == [60, 12, 12]
    with sizes(denoiser) as seen:
        denoiser.infill([InfillRequest(windows[0], 0, own)], replace(SHARED, block_length=1))
    # Left to right, a step computes the token that was filled last and the one that is read.
    assert seen == [12] + [2 - extra] * 3


def test_all_requests_of_a_text_advance_in_one_pass(denoiser):
    with sizes(denoiser) as seen:
        denoiser.infill(requests_for(masked()), replace(SHARED, block_length=1))
    alone = 1 if denoiser.checkpoint.shift else 2
    assert seen[-3:] == [4 * alone] * 3


def test_rows_that_do_not_fit_one_pass_take_several(denoiser, monkeypatch):
    whole = denoiser.infill(requests_for(masked()), SHARED)
    monkeypatch.setattr(context_cache_module, "TOKENS_PER_PASS", 12)
    parts = denoiser.infill(requests_for(masked()), SHARED)
    assert [one.input_ids for one in parts] == [one.input_ids for one in whole]


def test_two_steps_are_exact_where_all_tokens_are_masked(denoiser):
    # The second pass computes what was filled and what is read: all, but the last token of a
    # model that reads the token before.
    num = 2 if denoiser.checkpoint.shift else 12
    requests = [InfillRequest([MASK_ID] * num, seed) for seed in range(4)]
    exact = denoiser.infill(requests, replace(SHARED, steps=2, cache="off"))
    shared = denoiser.infill(requests, replace(SHARED, steps=2))
    assert [one.input_ids for one in shared] == [one.input_ids for one in exact]


def test_a_score_over_its_own_context_is_that_of_a_text_that_masks_nothing_else(denoiser):
    # With every token inside of the span nothing is taken from the context.
    ids = masked()
    everything = SharedContext(CONTEXT.input_ids, 0, len(CONTEXT.input_ids))
    targets = CONTEXT.input_ids[24:28]
    [exact] = denoiser.score([ScoreRequest(ids, targets)])
    [same] = denoiser.score([ScoreRequest(ids, targets, everything)])
    [near] = denoiser.score([ScoreRequest(ids, targets, CONTEXT)])
    assert same == pytest.approx(exact, abs=1e-4)
    assert near != pytest.approx(exact, abs=1e-4)


@pytest.mark.parametrize("by", [7, -5])
def test_rotated_keys_are_those_of_the_same_text_further_on(denoiser, by):
    ids = torch.tensor(ids_of(12))
    inner = denoiser.model.get_decoder()

    def keys(first: int) -> list[torch.Tensor]:
        cache = denoiser._passes.new_cache()
        at = torch.arange(first, first + 12)
        denoiser._passes.extend(cache, ids, at=at, read=at[:0])
        return [cache.entries(number)[0] for number in range(len(cache))]

    for here, there in zip(keys(10), keys(10 + by), strict=True):
        moved = Rotation.by(by, inner.rotary_emb.inv_freq).of(here)
        torch.testing.assert_close(moved, there, atol=1e-4, rtol=1e-4)


def test_contexts_are_dropped_before_another_one_is_computed_beyond_their_share(denoiser):
    cache = context_cache_module.ContextCache(denoiser._passes)
    contexts = [SharedContext((k, k + 1, k + 2), 1, 2) for k in (1, 4, 7)]
    cache._room = 2.5 * cache._around(contexts[0]).num_bytes
    for context in contexts[1:]:
        cache._around(context)
    assert list(cache._kept) == contexts[1:]


def test_contexts_of_which_two_do_not_fit_are_kept_in_half_precision(denoiser):
    size = denoiser._contexts._around(CONTEXT).num_bytes
    small = with_room(denoiser, 1.5 * size)
    assert small._contexts._around(CONTEXT).num_bytes == size // 2
    # The second stays beside the first, and what is filled in differs by rounding at most.
    other = replace(CONTEXT, input_ids=tuple(ids_of(60, seed=1)))
    small._contexts._around(other)
    assert list(small._contexts._kept) == [CONTEXT, other]
    request = ScoreRequest(masked(), CONTEXT.input_ids[24:28], CONTEXT)
    [rounded], [whole] = small.score([request]), denoiser.score([request])
    assert rounded == pytest.approx(whole, abs=0.01) and rounded != whole


@pytest.mark.parametrize(("start", "put_in"), [(24, 2), (24, 7), (20, 4)])
def test_a_text_gets_what_a_context_moved_by_hand_gives(denoiser, start, put_in):
    # A model that reads the token before computes that token too, at 20 in front of the others.
    # Whether the tokens behind the instructions move or all others do is the same to the model.
    ids, targets = masked(first=start, put_in=put_in), list(range(put_in))
    [found] = denoiser.score([ScoreRequest(ids, targets, CONTEXT)])
    passes, at = denoiser._passes, torch.arange(60)
    whole = passes.new_cache()
    passes.extend(whole, torch.tensor(CONTEXT.input_ids), at=at, read=at[:0])
    cache, shift = passes.new_cache(), len(ids) - 60
    read = passes.reads(torch.arange(start, start + put_in))
    first, frequencies = min(20, int(read[0])), denoiser.model.get_decoder().rotary_emb.inv_freq
    with torch.inference_mode():
        for number in range(len(whole)):
            keys, values = whole.entries(number)
            moved = Rotation.by(shift, frequencies).of(keys[:, :, 32:])
            cache.update(
                torch.cat([keys[:, :, :first], moved], dim=2),
                torch.cat([values[:, :, :first], values[:, :, 32:]], dim=2),
                number,
            )
    own = torch.arange(first, 32 + shift)
    logits = passes.extend(cache, torch.tensor(ids)[own], at=own, read=read - first)
    truth = logits.log_softmax(-1)[torch.arange(put_in), torch.tensor(targets)]
    assert found == pytest.approx(truth.tolist(), abs=1e-4)


def test_a_context_that_is_kept_is_used_before_another_takes_its_room(denoiser):
    pool = [SharedContext(tuple(ids_of(60, seed=seed)), 20, 32) for seed in (2, 3)]
    denoiser = with_room(denoiser, 0)  # one is kept
    whole = []
    for first in (22, 26, 24):
        requests = [
            InfillRequest((*c.input_ids[:first], MASK_ID, *c.input_ids[first + 1 :]), 0, c)
            for c in pool
        ]
        with sizes(denoiser) as seen:
            denoiser.infill(requests, SHARED)
        whole.append(seen.count(60))
    assert whole == [2, 1, 1]


def test_entries_that_no_row_sees_are_forgotten(denoiser):
    ids = (5, *[MASK_ID] * 12)
    requests = [InfillRequest(ids, seed) for seed in range(6)]
    alone = [denoiser.infill([request], replace(SHARED, steps=12))[0] for request in requests]
    lengths = []
    real = denoiser._passes.extend

    def spy(cache, tokens, **options):
        logits = real(cache, tokens, **options)
        lengths.append(cache.get_seq_length())
        return logits

    denoiser._passes.extend = spy
    try:
        together = denoiser.infill(requests, replace(SHARED, steps=12))
    finally:
        del denoiser._passes.extend
    assert [one.input_ids for one in together] == [one.input_ids for one in alone]
    assert max(lengths) < 3 * (13 + 6 * 12)  # all entries of all steps would be 480 and more


def test_a_span_outside_of_its_text_is_refused():
    with pytest.raises(ValueError, match="0 <= start <= end <= 3 tokens, got start=2, end=4"):
        SharedContext((1, 2, 3), 2, 4)


def test_cached_is_a_deprecated_name_of_two_caches():
    with pytest.warns(DeprecationWarning, match="give cache='window'"):
        assert Sampling(cached=True) == Sampling(cache="window")
    with pytest.warns(DeprecationWarning, match="give cache='off'"):
        assert Sampling(cached=False) == Sampling()


def test_an_unknown_cache_is_refused():
    with pytest.raises(
        ValueError, match="cache must be one of 'off', 'window', 'around', 'context'"
    ):
        Sampling(cache="all")  # type: ignore[arg-type]
