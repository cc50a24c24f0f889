from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_denoisers import MASK_ID, tiny_denoiser

from dspy_diffusion_infill.denoisers.forward import ForwardPasses
from dspy_diffusion_infill.errors import DenoiserMemoryError

few = settings(deadline=None, max_examples=20)
lengths = st.lists(st.integers(2, 30), min_size=1, max_size=6)


@pytest.fixture(scope="module", params=["llada", "dream"])
def passes(request, tmp_path_factory) -> ForwardPasses:
    denoiser = tiny_denoiser(tmp_path_factory.mktemp("model"), request.param)
    return ForwardPasses(
        denoiser.model, shift=denoiser.checkpoint.shift, pad_id=MASK_ID, tokens_per_batch=64
    )


def text(length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(256, (length,), generator=torch.Generator().manual_seed(seed))


def places_in(ids: torch.Tensor, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(len(ids), generator=generator)[: max(1, len(ids) // 3)]


@contextmanager
def room_for(num_tokens: int, model: torch.nn.Module) -> Iterator[list[int]]:
    """A device that runs out of memory on more tokens; yields the sizes that were tried."""
    tried: list[int] = []

    def check(_module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        tried.append(args[0].numel())
        if args[0].numel() > num_tokens:
            raise torch.OutOfMemoryError("no room")

    handle = model.get_input_embeddings().register_forward_pre_hook(check)  # type: ignore
    try:
        yield tried
    finally:
        handle.remove()


@few
@given(lengths=lengths)
def test_padded_batches_score_positions_as_the_full_pass_does(passes, lengths):
    texts = [text(length, seed) for seed, length in enumerate(lengths)]
    positions = [places_in(ids, seed) for seed, ids in enumerate(texts)]
    seen = []
    for k, logits in passes.at(texts, positions):
        truth = passes.full(texts[k][None], None)[0, positions[k]]
        torch.testing.assert_close(logits, truth, atol=1e-4, rtol=1e-4)
        seen.append(k)
    assert sorted(seen) == list(range(len(texts)))
    assert [lengths[k] for k in seen] == sorted(lengths, reverse=True)


@few
@given(lengths=lengths)
def test_batches_stay_within_the_tokens_that_fit(passes, lengths):
    texts = [text(length) for length in lengths]
    with room_for(64, passes.model) as tried:
        assert len(list(passes.at(texts, [torch.tensor([1])] * len(texts)))) == len(texts)
    assert all(size <= max(64, *lengths) for size in tried)


def test_a_cpu_takes_one_text_at_a_time(passes):
    alone = ForwardPasses(passes.model, shift=passes.shift, pad_id=MASK_ID)
    with room_for(9, passes.model) as tried:
        assert len(list(alone.at([text(9)] * 4, [torch.tensor([3])] * 4))) == 4
    assert tried == [9] * 4
    assert alone.num_passes == 4


@few
@given(length=st.integers(2, 40), data=st.data())
def test_a_text_that_did_not_change_is_recalled_exactly(passes, length, data):
    ids = text(length)
    places = data.draw(st.sets(st.integers(0, length - 1), min_size=1))
    changing = torch.tensor(sorted(places))
    positions = changing[:: data.draw(st.integers(1, 3))]
    visible, first = passes.prefill(ids, changing, positions)
    truth = passes.full(ids[None], None)[0, positions]
    torch.testing.assert_close(first, truth, atol=1e-4, rtol=1e-4)
    [(_, again)] = passes.decode_masked(visible, [ids], [positions])
    torch.testing.assert_close(again, truth, atol=1e-4, rtol=1e-4)


def test_recalled_texts_see_their_own_changes(passes):
    ids, changing = text(20), torch.arange(8, 12)
    visible, _ = passes.prefill(ids, changing, changing)
    other = ids.clone()
    other[9] = (other[9] + 1) % 256
    results = dict(passes.decode_masked(visible, [ids, other, ids], [changing] * 3))
    torch.testing.assert_close(results[0], results[2], atol=1e-5, rtol=1e-5)
    assert (results[0] - results[1]).abs().max() > 1e-2
    [(_, alone)] = passes.decode_masked(visible, [other], [changing])
    torch.testing.assert_close(results[1], alone, atol=1e-4, rtol=1e-4)


def fresh(passes: ForwardPasses, tokens_per_batch: int) -> ForwardPasses:
    return ForwardPasses(
        passes.model, shift=passes.shift, pad_id=MASK_ID, tokens_per_batch=tokens_per_batch
    )


def test_out_of_memory_halves_the_batch_for_good(passes):
    crowded = fresh(passes, 80)
    texts = [text(10, seed) for seed in range(8)]
    positions = [torch.tensor([4])] * 8
    with room_for(40, passes.model) as tried:
        results = dict(crowded.at(texts, positions))
    assert tried == [80, 40, 40]
    assert crowded.tokens_per_batch == 40
    truth = dict(passes.at(texts, positions))
    for k, logits in results.items():
        torch.testing.assert_close(logits, truth[k], atol=1e-4, rtol=1e-4)


def test_out_of_memory_with_half_the_batch_says_what_fits(passes):
    crowded = fresh(passes, 40)
    list(crowded.at([text(20)], [torch.tensor([1])]))
    crowded.tokens_per_batch = 80
    with (
        room_for(20, passes.model) as tried,
        pytest.raises(DenoiserMemoryError, match=r"4 x 10 tokens.*batches of 20 tokens fitted"),
    ):
        list(crowded.at([text(10)] * 8, [torch.tensor([1])] * 8))
    assert tried == [80, 40]


def test_out_of_memory_on_a_batch_of_the_callers_is_said_at_once(passes):
    with (
        room_for(20, passes.model) as tried,
        pytest.raises(DenoiserMemoryError, match="3 x 10 tokens"),
    ):
        passes.full(torch.stack([text(10)] * 3), None)
    assert tried == [30]


def test_out_of_memory_on_one_text_names_what_helps(passes):
    with (
        room_for(20, passes.model),
        pytest.raises(
            DenoiserMemoryError, match=r"1 x 30 tokens.*shorter examples.*quantization='8bit'"
        ),
    ):
        list(passes.at([text(30)], [torch.tensor([1])]))
