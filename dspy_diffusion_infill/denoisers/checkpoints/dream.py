"""Dream (arXiv 2508.15487): Qwen2 without the causal mask; token i is scored at position i - 1."""

from transformers import Qwen2Config, Qwen2ForCausalLM

from dspy_diffusion_infill.denoisers.checkpoints.family import Family, PublishedConfig

CONTEXT_LENGTH = 2048
"""Prompt and response together, as stated by its authors; its config still has the base model's."""


def dream_config(published: PublishedConfig) -> Qwen2Config:
    """The ``Qwen2Config`` with Dream's arithmetic."""
    return Qwen2Config(
        vocab_size=published["vocab_size"],
        hidden_size=published["hidden_size"],
        intermediate_size=published["intermediate_size"],
        num_hidden_layers=published["num_hidden_layers"],
        num_attention_heads=published["num_attention_heads"],
        num_key_value_heads=published.get("num_key_value_heads"),
        hidden_act=published.get("hidden_act", "silu"),
        max_position_embeddings=published["max_position_embeddings"],
        rms_norm_eps=published.get("rms_norm_eps", 1e-6),
        rope_parameters={
            "rope_type": "default",
            "rope_theta": published.get("rope_theta", 10000.0),
        },
        tie_word_embeddings=published.get("tie_word_embeddings", False),
        pad_token_id=published.get("pad_token_id"),
        bos_token_id=published.get("bos_token_id"),
        eos_token_id=published.get("eos_token_id"),
        use_cache=False,
    )


DREAM = Family(
    model_type="Dream",
    model_class=Qwen2ForCausalLM,
    native_config=dream_config,
    published_names=(),
    shift=True,
    context_length=lambda published: min(CONTEXT_LENGTH, published["max_position_embeddings"]),
    algorithm="entropy",
    temperature=0.1,
)
