"""``Sampling(max_drift=…)``: a token tells when what is kept of a context is not used any more."""

from dataclasses import replace

import pytest
import torch
from test_denoisers_context_cache import CONTEXT, SHARED, masked, requests_for, sizes, with_room
from test_denoisers_transformer import FAMILIES
from tiny_denoisers import MASK_ID, tiny_denoiser

from dspy_diffusion_infill.denoisers import InfillRequest, Sampling, SharedContext
from dspy_diffusion_infill.denoisers.context_cache import Later
from dspy_diffusion_infill.denoisers.drift import DriftProbe, with_probe
from dspy_diffusion_infill.denoisers.growing_cache import GrowingCache
from dspy_diffusion_infill.denoisers.transformer import TransformerDenoiser

MASKED = [masked(), masked(put_in=7), masked(put_in=2), masked(out=0, put_in=5), masked(20, 12, 12)]


@pytest.fixture(scope="module", params=FAMILIES)
def denoiser(request, tmp_path_factory) -> TransformerDenoiser:
    return with_room(tiny_denoiser(tmp_path_factory.mktemp("model"), request.param), 1e9)


@pytest.fixture(params=["around", "context"])
def shared(request) -> Sampling:
    return replace(SHARED, cache=request.param)


@pytest.mark.parametrize("ids", MASKED)
def test_no_drift_allowed_is_exact(denoiser, shared, ids):
    requests = requests_for(ids)
    exact = denoiser.infill(requests, replace(SHARED, cache="off"))
    found = denoiser.infill(requests, replace(shared, max_drift=0))
    assert [one.input_ids for one in found] == [one.input_ids for one in exact]
    assert [one.num_passes for one in found] == [one.num_passes for one in exact]
    # Once for all at the beginning, and in each step before which something was filled.
    assert [one.num_refreshes for one in found] == [one.num_passes for one in exact]
    assert denoiser.infill(requests, shared) != exact


def test_a_drift_that_is_never_reached_refreshes_nothing(denoiser, shared):
    found = denoiser.infill(requests_for(masked()), replace(shared, max_drift=1e6))
    assert [one.num_refreshes for one in found] == [0] * 4


@pytest.mark.parametrize("ids", MASKED)
def test_a_batch_refreshes_each_request_as_it_is_refreshed_alone(denoiser, shared, ids):
    sampling = replace(shared, max_drift=0.05)
    together = denoiser.infill(requests_for(ids), sampling)
    for request, result in zip(requests_for(ids), together, strict=True):
        [alone] = denoiser.infill([request], sampling)
        assert (alone.input_ids, alone.num_refreshes) == (result.input_ids, result.num_refreshes)
    assert 0 < sum(one.num_refreshes for one in together)


def test_what_is_kept_of_a_context_stays_after_a_refresh(denoiser, shared):
    before = denoiser.infill(requests_for(masked()), shared)
    denoiser.infill(requests_for(masked(26)), replace(shared, max_drift=0))
    with sizes(denoiser) as seen:
        assert denoiser.infill(requests_for(masked()), shared) == before
    assert max(seen) < len(CONTEXT.input_ids)


def test_a_probe_is_computed_beside_the_tokens_of_each_pass(denoiser):
    never = replace(SHARED, block_length=1, max_drift=1e6)
    denoiser.infill([InfillRequest(masked(), 0, CONTEXT)], never)  # keeps the context
    alone = 1 if denoiser.checkpoint.shift else 2
    with sizes(denoiser) as seen:
        denoiser.infill([InfillRequest(masked(), 0, CONTEXT)], never)
    assert seen == [12 + 1] + [alone + 1] * 3


@pytest.mark.parametrize("max_drift", [None, 1e6])
def test_around_computes_the_instructions_and_a_token_beside_them_in_each_pass(denoiser, max_drift):
    sampling = replace(SHARED, cache="around", block_length=1, max_drift=max_drift)
    with sizes(denoiser) as seen:
        denoiser.infill(requests_for(masked(), 3), sampling)
    assert seen[-4:] == [13] + [3 * 13] * 3


def test_around_is_exact_where_nothing_is_around(denoiser):
    everything = SharedContext(CONTEXT.input_ids, 0, len(CONTEXT.input_ids))
    for context, max_drift in ((everything, None), (everything, 1e6), (None, None), (None, 0.0)):
        requests = [replace(one, context=context) for one in requests_for(masked(put_in=7))]
        exact = denoiser.infill(requests, replace(SHARED, cache="off"))
        around = replace(SHARED, cache="around", max_drift=max_drift)
        found = denoiser.infill(requests, around)
        assert [one.input_ids for one in found] == [one.input_ids for one in exact]
        assert not any(one.num_refreshes for one in found)


def test_the_probe_is_behind_the_instructions_or_in_front_of_them():
    assert with_probe(3, 7, 10) == (3, 8, 7)
    assert with_probe(3, 10, 10) == (2, 10, 2)
    assert with_probe(0, 10, 10) == (0, 10, None)


def test_instructions_at_the_end_of_a_text_have_their_probe_in_front(denoiser, shared):
    ids = CONTEXT.input_ids[:26] + (MASK_ID,) * 4
    context = SharedContext(CONTEXT.input_ids[:30], 20, 30)
    requests = [InfillRequest(ids, seed, context) for seed in range(3)]
    exact = denoiser.infill(requests, replace(SHARED, cache="off"))
    found = denoiser.infill(requests, replace(shared, max_drift=0))
    assert [one.input_ids for one in found] == [one.input_ids for one in exact]
    assert all(one.num_refreshes for one in found)


@pytest.mark.parametrize(("start", "end", "place"), [(20, 32, 32), (20, 60, 19), (0, 12, 12)])
@pytest.mark.parametrize("longer", [0, 3])
def test_a_text_that_is_its_context_has_not_drifted(denoiser, start, end, place, longer):
    context = SharedContext(CONTEXT.input_ids, start, end)
    own = torch.tensor((*CONTEXT.input_ids[:end], *[MASK_ID] * longer, *CONTEXT.input_ids[end:]))
    text, _ = denoiser._contexts._open(
        own, torch.arange(start + 2, start + 4), context, Later(max_drift=1.0)
    )
    assert text.probe is not None and text.probe.position == place + (place >= end) * longer
    entry = int((text.is_seen & (text.positions == text.probe.position)).nonzero()[-1])
    drift = text.probe.drift(text.cache, entry)
    assert (drift < 1e-4) == (longer == 0)


def test_drift_is_the_distance_from_what_is_kept_as_a_share_of_it():
    cache, values = GrowingCache(2), torch.tensor([[3.0, 4.0], [3.0, 4.0], [6.0, 8.0], [0.0, 0.0]])
    for number in range(2):
        cache.update(torch.zeros(1, 1, 4, 2), number * values[None, None], number)
    probe = DriftProbe(7, max_drift=0.5).over(cache, 0)
    assert [probe.drift(cache, entry) for entry in (1, 2, 3)] == [0, 1, 1]
    assert [probe.has_drifted(cache, entry) for entry in (1, 2)] == [False, True]


@pytest.mark.parametrize("value", [-0.1, float("inf"), float("nan")])
def test_a_drift_is_a_share(value):
    with pytest.raises(ValueError, match="max_drift must be 0 or more, got max_drift="):
        Sampling(cache="context", max_drift=value)


@pytest.mark.parametrize("cache", ["off", "window"])
def test_drift_is_of_what_requests_share(cache):
    with pytest.raises(ValueError, match="None unless cache is 'around' or 'context', got"):
        Sampling(cache=cache, max_drift=0.3)
    with pytest.raises(TypeError, match="max_drift must be a number or None, got max_drift='1'"):
        Sampling(cache="context", max_drift="1")  # type: ignore[arg-type]
