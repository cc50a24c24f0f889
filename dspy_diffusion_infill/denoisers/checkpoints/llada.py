"""LLaDA (arXiv 2502.09992): LLaMA without the causal mask, under parameter names of its own."""

from transformers import LlamaConfig, LlamaForCausalLM

from dspy_diffusion_infill.denoisers.checkpoints.family import Family, PublishedConfig
from dspy_diffusion_infill.errors import NotMaskedDiffusionError

_EXPECTED = {
    "block_type": "llama",
    "layer_norm_type": "rms",
    "activation_type": "silu",
    "rope": True,
    "alibi": False,
    "include_bias": False,
    "include_qkv_bias": False,
    "attention_layer_norm": False,
    "scale_logits": False,
    "input_emb_norm": False,
}
"""What the published code can vary and no published checkpoint does; LLaMA has just these."""


def llada_config(published: PublishedConfig) -> LlamaConfig:
    """The ``LlamaConfig`` with LLaDA's arithmetic.

    Raises:
        NotMaskedDiffusionError: the config asks for something that LLaMA cannot do.
    """
    for key, expected in _EXPECTED.items():
        if published.get(key, expected) not in (expected, None):
            raise NotMaskedDiffusionError(
                f"a LLaDA checkpoint must have {key}={expected!r} to run as LLaMA, "
                f"got {key}={published[key]!r} in config.json"
            )
    width, heads = published["d_model"], published["n_heads"]
    return LlamaConfig(
        vocab_size=published.get("embedding_size") or published["vocab_size"],
        hidden_size=width,
        intermediate_size=published.get("mlp_hidden_size") or published["mlp_ratio"] * width,
        num_hidden_layers=published["n_layers"],
        num_attention_heads=heads,
        num_key_value_heads=published.get("n_kv_heads") or heads,
        max_position_embeddings=published["max_sequence_length"],
        rms_norm_eps=published.get("rms_norm_eps", 1e-5),
        rope_parameters={
            "rope_type": "default",
            "rope_theta": published.get("rope_theta", 10000.0),
        },
        tie_word_embeddings=published.get("weight_tying", False),
        pad_token_id=published.get("pad_token_id"),
        bos_token_id=published.get("bos_token_id"),
        eos_token_id=published.get("eos_token_id"),
        use_cache=False,
    )


_BLOCK = "model.transformer.blocks.{i}."
LLADA = Family(
    model_type="llada",
    model_class=LlamaForCausalLM,
    native_config=llada_config,
    published_names=(
        ("model.transformer.wte", "model.embed_tokens"),
        ("model.transformer.ln_f", "model.norm"),
        ("model.transformer.ff_out", "lm_head"),
        (_BLOCK + "attn_norm", "model.layers.{i}.input_layernorm"),
        (_BLOCK + "q_proj", "model.layers.{i}.self_attn.q_proj"),
        (_BLOCK + "k_proj", "model.layers.{i}.self_attn.k_proj"),
        (_BLOCK + "v_proj", "model.layers.{i}.self_attn.v_proj"),
        (_BLOCK + "attn_out", "model.layers.{i}.self_attn.o_proj"),
        (_BLOCK + "ff_norm", "model.layers.{i}.post_attention_layernorm"),
        (_BLOCK + "ff_proj", "model.layers.{i}.mlp.gate_proj"),
        (_BLOCK + "up_proj", "model.layers.{i}.mlp.up_proj"),
        (_BLOCK + "ff_out", "model.layers.{i}.mlp.down_proj"),
    ),
    shift=False,
    context_length=lambda published: published["max_sequence_length"],
    algorithm="low_confidence",
    temperature=0.8,
)
