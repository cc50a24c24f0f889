"""What infilling and scoring promise: batches, seeds, passes, special tokens, threads."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import full_forward
from test_denoisers_transformer import FAMILIES, TEXT_TOKENS, few, tokens
from tiny_denoisers import MASK_ID, UNUSED, tiny_denoiser

from dspy_diffusion_infill.denoisers import Infilled, InfillRequest, Sampling, ScoreRequest
from dspy_diffusion_infill.denoisers.transformer import TransformerDenoiser


@pytest.fixture(scope="module", params=FAMILIES)
def denoiser(request, tmp_path_factory) -> TransformerDenoiser:
    return tiny_denoiser(tmp_path_factory.mktemp("model"), request.param)


@pytest.fixture(scope="module", params=FAMILIES)
def batching(request, tmp_path_factory) -> TransformerDenoiser:
    """Puts several texts into a batch, as on a GPU."""
    folder = tmp_path_factory.mktemp("model")
    return tiny_denoiser(folder, request.param, tokens_per_batch=120)


texts = st.lists(st.one_of(tokens, st.just(MASK_ID)), min_size=1, max_size=24)
requests = st.lists(st.builds(InfillRequest, texts, st.integers(0, 99)), min_size=1, max_size=4)
samplings = st.builds(
    Sampling,
    steps=st.integers(1, 6),
    temperature=st.sampled_from([0.0, 0.8, 2.0]),
    algorithm=st.sampled_from(
        ["low_confidence", "random", "entropy", "maskgit_plus", "topk_margin", "origin"]
    ),
    block_length=st.none() | st.integers(1, 10),
    cache=st.sampled_from(["off", "window"]),
)


# Invariants of infill


@few
@given(requests=requests, sampling=samplings)
def test_visible_tokens_stay_and_masks_become_plain_text(batching, requests, sampling):
    for request, result in zip(requests, batching.infill(requests, sampling), strict=True):
        assert len(result.input_ids) == len(request.input_ids)
        for before, after in zip(request.input_ids, result.input_ids, strict=True):
            assert after == before if before != MASK_ID else 0 <= after < TEXT_TOKENS
        assert 0 < result.confidence <= 1


@few
@given(requests=requests, sampling=samplings)
def test_a_batch_gives_each_request_what_it_gets_alone(denoiser, requests, sampling):
    together = denoiser.infill(requests, sampling)
    assert together == [denoiser.infill([request], sampling)[0] for request in requests]


@few
@given(requests=requests, sampling=samplings)
def test_a_padded_batch_gives_each_request_what_it_gets_alone(batching, requests, sampling):
    # Where all tokens are masks all places tie, and rounding decides between them.
    requests = [InfillRequest([7, 8, 9, *r.input_ids, 5, 6], r.seed) for r in requests]
    together = batching.infill(requests, sampling)
    for request, result in zip(requests, together, strict=True):
        [alone] = batching.infill([request], sampling)
        assert result.input_ids == alone.input_ids
        assert result.confidence == pytest.approx(alone.confidence, rel=1e-4)


def test_tokens_are_those_of_a_whole_pass_for_each_step_of_each_request(batching):
    # 500 of them: tests/benchmarks/infill_speed.py --model llada-tiny --check 500
    assert full_forward.num_differing(batching, 40, seed=0) == 0


@few
@given(requests=requests, sampling=samplings)
def test_a_request_takes_no_more_passes_than_steps_or_masks(denoiser, requests, sampling):
    before = denoiser.num_passes
    results = denoiser.infill(requests, sampling)
    limits = [min(sampling.steps, list(request.input_ids).count(MASK_ID)) for request in requests]
    assert all(result.num_passes <= limit for result, limit in zip(results, limits, strict=True))
    assert denoiser.num_passes - before <= sum(limits)


@few
@given(requests=requests, sampling=samplings)
def test_equal_seeds_give_equal_results(denoiser, requests, sampling):
    assert denoiser.infill(requests, sampling) == denoiser.infill(requests, sampling)


def masked_text(length: int = 30, first: int = 10, num_masks: int = 8, seed: int = 0) -> list[int]:
    ids = torch.randint(TEXT_TOKENS, (length,), generator=torch.Generator().manual_seed(seed))
    ids[first : first + num_masks] = MASK_ID
    return ids.tolist()


def test_other_seeds_give_other_results(denoiser):
    proposals = [InfillRequest(masked_text(), seed) for seed in range(8)]
    filled = {result.input_ids for result in denoiser.infill(proposals, Sampling(temperature=2.0))}
    assert len(filled) > 4


@pytest.mark.parametrize("steps", [1, 3, 8, 128])
def test_the_head_is_computed_on_masked_positions_only(denoiser, steps):
    seen = []
    head = denoiser.model.get_output_embeddings()
    handle = head.register_forward_hook(lambda _module, args, _output: seen.append(args[0].shape))
    try:
        denoiser.infill([InfillRequest(masked_text())], Sampling(steps=steps, temperature=0.0))
    finally:
        handle.remove()
    assert 1 <= len(seen) <= min(steps, 8)
    assert all(shape[0] <= 8 and len(shape) == 2 for shape in seen)
    assert seen[0][0] == 8


def test_proposals_for_one_text_share_the_first_pass(denoiser):
    proposals = [InfillRequest(masked_text(), seed) for seed in range(4)]
    before = denoiser.num_passes
    denoiser.infill(proposals, Sampling(steps=1, temperature=0.8))
    assert denoiser.num_passes - before == 1


@contextmanager
def sure_of(denoiser: TransformerDenoiser, ids: list[int]) -> Iterator[None]:
    """The model gives these tokens a logit of 50 in every place."""
    handle = denoiser.model.get_output_embeddings().register_forward_hook(
        lambda _module, _args, output: output.index_fill(-1, torch.tensor(ids), 50.0)
    )
    try:
        yield
    finally:
        handle.remove()


def plain_and_free(denoiser: TransformerDenoiser, ids: list[int]) -> tuple[Infilled, Infilled]:
    """What a model that is sure of ``ids`` fills in without special tokens, and with them."""
    requests = [InfillRequest(masked_text())]
    with sure_of(denoiser, ids):
        [plain] = denoiser.infill(requests, Sampling(temperature=0.0))
        [free] = denoiser.infill(requests, Sampling(temperature=0.0, forbid_special=False))
    return plain, free


def test_the_mask_is_not_filled_in_even_where_special_tokens_are_allowed(denoiser):
    plain, free = plain_and_free(denoiser, [denoiser.tokenizer.eos_token_id, MASK_ID])
    assert all(token < TEXT_TOKENS for token in plain.input_ids)
    assert free.input_ids[10:18] == (denoiser.tokenizer.eos_token_id,) * 8


def test_tokens_without_a_text_are_not_filled_in(denoiser):
    vocabulary = denoiser.model.config.vocab_size
    unused = list(range(vocabulary - UNUSED, vocabulary))
    with sure_of(denoiser, unused):
        [result] = denoiser.infill([InfillRequest(masked_text())], Sampling(temperature=0.0))
    assert max(result.input_ids) < TEXT_TOKENS


def test_a_text_without_masks_comes_back_without_a_pass(denoiser):
    before = denoiser.num_passes
    [result] = denoiser.infill([InfillRequest([1, 2, 3])], Sampling())
    assert (result.input_ids, result.confidence, result.num_passes) == ((1, 2, 3), 1.0, 0)
    assert denoiser.infill([], Sampling()) == []
    assert denoiser.num_passes == before


def test_the_first_token_can_be_filled_too(denoiser):
    [result] = denoiser.infill([InfillRequest([MASK_ID, 5, 6])], Sampling(temperature=0.0))
    allowed = denoiser.logits(torch.tensor([[MASK_ID, 5, 6]]))[0, 0, :TEXT_TOKENS]
    assert result.input_ids[0] == int(allowed.argmax())


def test_the_confidence_is_the_mean_probability_when_filled(denoiser):
    ids = masked_text(num_masks=2)
    [result] = denoiser.infill([InfillRequest(ids)], Sampling(steps=1, temperature=0.0))
    probs = denoiser.logits(torch.tensor([ids]))[0, 10:12].softmax(-1)[:, :TEXT_TOKENS]
    assert result.confidence == pytest.approx(probs.amax(-1).mean().item(), rel=1e-4)


def test_a_model_that_would_end_the_text_is_not_confident_of_what_it_fills_in(denoiser):
    plain, free = plain_and_free(denoiser, [denoiser.tokenizer.eos_token_id])
    assert 0 < plain.confidence < 1e-6
    assert free.confidence > 0.999


def test_threads_get_what_one_thread_gets(denoiser):
    sampling = Sampling(steps=4, temperature=0.8)
    proposals = [InfillRequest(masked_text(seed=seed), seed) for seed in range(16)]
    before = denoiser.num_passes
    alone = [denoiser.infill([request], sampling)[0] for request in proposals]
    passes = denoiser.num_passes - before
    with ThreadPoolExecutor(8) as pool:
        threaded = list(pool.map(lambda r: denoiser.infill([r], sampling)[0], proposals))
    assert threaded == alone
    assert denoiser.num_passes - before == 2 * passes


# Cached passes


def test_cached_passes_are_exact_where_nothing_is_visible(denoiser):
    request = [InfillRequest([MASK_ID] * 12, seed=3)]
    exact = denoiser.infill(request, Sampling(steps=6, temperature=0.8))
    cached = denoiser.infill(request, Sampling(steps=6, temperature=0.8, cache="window"))
    assert cached[0].input_ids == exact[0].input_ids


def test_cached_passes_compute_the_masked_tokens_alone(denoiser):
    lengths = []
    handle = denoiser.model.get_input_embeddings().register_forward_hook(
        lambda _module, args, _output: lengths.append(args[0].numel())
    )
    proposals = [InfillRequest(masked_text(), seed) for seed in range(3)]
    try:
        denoiser.infill(proposals, Sampling(steps=4, temperature=2.0, cache="window"))
    finally:
        handle.remove()
    extra = 1 if denoiser.checkpoint.shift else 0  # the token before the first mask scores it
    assert lengths == [30] + [8 + extra] * 9


# Scoring


@few
@given(requests=requests)
def test_scores_are_log_probabilities_with_all_masks_hidden(batching, requests):
    generator = torch.Generator().manual_seed(0)
    asked, truths = [], []
    for request in requests:
        ids = torch.tensor(request.input_ids)
        places = (ids == MASK_ID).nonzero()[:, 0]
        targets = torch.randint(TEXT_TOKENS, (len(places),), generator=generator)
        asked.append(ScoreRequest(request.input_ids, targets.tolist()))
        log_probs = batching.logits(ids[None])[0].log_softmax(-1)
        truths.append([log_probs[p, t].item() for p, t in zip(places, targets, strict=True)])
    for scores, truth in zip(batching.score(asked), truths, strict=True):
        assert list(scores) == pytest.approx(truth, abs=1e-4)


def test_scoring_needs_a_target_for_each_mask(denoiser):
    with pytest.raises(ValueError, match="got 1 targets for 2 places"):
        denoiser.score([ScoreRequest([1, MASK_ID, MASK_ID], [5])])
