"""Texts in one tree of tokens, and attention over it in blocks."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from dspy_diffusion_infill.scorers import token_tree
from dspy_diffusion_infill.scorers.token_tree import (
    IN_BLOCKS,
    TokenTree,
    attend_in_blocks,
    block_attention,
    blocks_of,
)

TEXTS = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=8), min_size=1, max_size=6)


def tree_of(texts: list[list[int]]) -> tuple[TokenTree, list[list[int]]]:
    tree = TokenTree()
    return tree, [tree.add(text) for text in texts]


def mask_of(tree: TokenTree) -> torch.Tensor:
    return torch.finfo(torch.float32).min * ~tree.visible()


@given(TEXTS)
def test_a_token_sees_its_own_text_up_to_itself_and_nothing_else(texts):
    tree, nodes = tree_of(texts)
    visible = tree.visible()
    for text, own in zip(texts, nodes, strict=True):
        assert [tree.ids[node] for node in own] == text
        for depth, node in enumerate(own):
            assert visible[node].nonzero()[:, 0].tolist() == own[: depth + 1]
            assert tree.depths[node] == depth


@given(TEXTS, st.integers(1, 5))
def test_blocks_hold_every_token_once_with_all_that_it_sees(texts, size):
    tree, _ = tree_of(texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_tree, "TOKENS_PER_BLOCK", size)
        blocks = blocks_of(mask_of(tree))
    rebuilt = torch.zeros_like(tree.visible())
    for block in blocks:
        assert block.last - block.first <= size
        rebuilt[block.first : block.last, block.seen] = block.mask == 0
    assert torch.equal(rebuilt, tree.visible())
    assert [block.first for block in blocks[1:]] == [block.last for block in blocks[:-1]]


@pytest.mark.parametrize("size", [1, 3, 100])
def test_blocks_attend_as_the_whole_mask_does(monkeypatch, size):
    monkeypatch.setattr(token_tree, "TOKENS_PER_BLOCK", size)
    tree, _ = tree_of([[1, 2, 3, 4], [1, 2, 5, 6, 7], [1, 8], [9, 9]])
    generator, mask = torch.Generator().manual_seed(0), mask_of(tree)

    def random(heads: int) -> torch.Tensor:
        return torch.randn(1, heads, len(mask), 16, generator=generator)

    query, key, value = random(6), random(2), random(2)
    # transformers' sdpa reads the groups off the module
    module = torch.nn.Module()
    vars(module).update(vars(SimpleNamespace(num_key_value_groups=3, is_causal=True)))
    options = {"scaling": 0.25, "dropout": 0.0}
    whole, _ = block_attention(module, query, key, value, mask[None, None], **options)
    parts, _ = block_attention(
        module, query, key, value, mask[None, None], blocks=blocks_of(mask), **options
    )
    assert torch.allclose(whole, parts, atol=1e-6)


def test_without_blocks_a_model_attends_as_before():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model, ids = LlamaForCausalLM(config).eval(), torch.tensor([[1, 2, 3, 0], [4, 5, 6, 7]])
    real = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    with torch.inference_mode():
        before = model(ids, attention_mask=real).logits
        attend_in_blocks(model)
        assert model.config._attn_implementation == IN_BLOCKS
        assert torch.equal(model(ids, attention_mask=real).logits, before)


def test_a_model_that_attends_in_another_way_keeps_it():
    config = LlamaConfig(vocab_size=8, hidden_size=8, num_attention_heads=2, num_hidden_layers=1)
    model = LlamaForCausalLM._from_config(config, attn_implementation="eager")
    attend_in_blocks(model)
    assert model.config._attn_implementation == "eager"
