import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from dspy_diffusion_infill.denoisers.growing_cache import ROOM, GrowingCache, grouped_attention


def entries(num: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(1, 2, num, 4, generator=torch.Generator().manual_seed(seed))


def filled(num: int, dtype: torch.dtype | None = None) -> GrowingCache:
    cache = GrowingCache(2, dtype=dtype)
    for number in range(2):
        cache.update(entries(num, number), -entries(num, number), number)
    return cache


def test_new_entries_stand_behind_the_old_ones_in_the_same_buffer():
    cache = filled(3)
    before = cache.entries(1)[0].data_ptr()
    keys, values = cache.update(entries(2, 9), entries(2, 8), 1)
    assert torch.equal(keys, torch.cat([entries(3, 1), entries(2, 9)], dim=2))
    assert torch.equal(values, torch.cat([-entries(3, 1), entries(2, 8)], dim=2))
    assert keys.data_ptr() == before
    assert (cache.get_seq_length(0), cache.get_seq_length(1)) == (3, 5)


def test_a_buffer_that_is_full_is_replaced_with_what_it_holds():
    cache = filled(3)
    assert cache.has_room(ROOM) and not cache.has_room(ROOM + 1)
    cache.update(entries(ROOM + 1, 9), entries(ROOM + 1, 9), 0)
    assert torch.equal(cache.entries(0)[0][:, :, :3], entries(3, 0))
    assert torch.equal(cache.entries(1)[1], -entries(3, 1))


def test_entries_that_are_kept_close_up():
    cache = filled(6)
    cache.keep(torch.tensor([True, False, True, False, True, True]))
    for number in range(2):
        keys, values = cache.entries(number)
        assert torch.equal(keys, entries(6, number)[:, :, [0, 2, 4, 5]])
        assert torch.equal(values, -entries(6, number)[:, :, [0, 2, 4, 5]])
    cache.cut(1)
    assert cache.get_seq_length() == 1


def test_half_precision_takes_half_the_memory_and_is_given_out_in_the_models():
    half, whole = filled(3, torch.float16), filled(3)
    assert 2 * half.num_bytes == whole.num_bytes == 2 * 2 * 2 * (3 + ROOM) * 4 * 4
    keys, _ = half.update(entries(1), entries(1), 0)
    assert keys.dtype == torch.float32
    torch.testing.assert_close(keys[:, :, :3], entries(3), atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("is_masked", [True, False])
def test_attention_in_groups_is_attention_with_keys_repeated_for_each_head(is_masked):
    module = torch.nn.Module()
    module.num_key_value_groups = 3  # type: ignore[assignment]
    query = torch.randn(1, 6, 5, 4, generator=torch.Generator().manual_seed(1))
    key, value = entries(9, 2), entries(9, 3)
    mask = torch.zeros(1, 1, 5, 9)
    mask[0, 0, torch.arange(5), torch.arange(5)] = torch.finfo(torch.float32).min
    given = mask if is_masked else None
    found, _ = grouped_attention(module, query, key, value, given, scaling=0.5, dropout=0.0)
    repeated = (part.repeat_interleave(3, dim=1) for part in (key, value))
    truth, _ = sdpa_attention_forward(
        torch.nn.Module(), query, *repeated, given, scaling=0.5, is_causal=False
    )
    torch.testing.assert_close(found, truth)
