"""Random LLaDA and Dream checkpoints of two layers, in the layout of the published ones."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny_models import MASK, byte_tokenizer

from dspy_diffusion_infill.denoisers import load_denoiser
from dspy_diffusion_infill.denoisers.transformer import TransformerDenoiser

WIDTH, HIDDEN, LAYERS, HEADS = 32, 64, 2, 4
MASK_ID = byte_tokenizer().convert_tokens_to_ids(MASK)
UNUSED = 4  # rows of the embedding that no token has, as in LLaDA-8B and Dream-7B


def llada_config(vocabulary: int) -> dict[str, Any]:
    return {
        "model_type": "llada",
        "architectures": ["LLaDAModelLM"],
        "auto_map": {"AutoModel": "modeling_llada.LLaDAModelLM"},
        "block_type": "llama",
        "layer_norm_type": "rms",
        "activation_type": "silu",
        "d_model": WIDTH,
        "mlp_hidden_size": HIDDEN,
        "mlp_ratio": 4,
        "n_layers": LAYERS,
        "n_heads": HEADS,
        "n_kv_heads": HEADS,
        "vocab_size": vocabulary,
        "embedding_size": vocabulary,
        "max_sequence_length": 96,
        "rope": True,
        "rope_theta": 500000.0,
        "rms_norm_eps": 1e-5,
        "weight_tying": False,
        "mask_token_id": MASK_ID,
        "torch_dtype": "float32",
    }


def dream_config(vocabulary: int) -> dict[str, Any]:
    return {
        "model_type": "Dream",
        "architectures": ["DreamModel"],
        "auto_map": {"AutoModel": "modeling_dream.DreamModel"},
        "vocab_size": vocabulary,
        "hidden_size": WIDTH,
        "intermediate_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS // 2,
        "max_position_embeddings": 96,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": False,
        "mask_token_id": MASK_ID,
        "torch_dtype": "float32",
    }


def llada_shapes(vocabulary: int) -> dict[str, tuple[int, ...]]:
    shapes = {
        "model.transformer.wte.weight": (vocabulary, WIDTH),
        "model.transformer.ln_f.weight": (WIDTH,),
        "model.transformer.ff_out.weight": (vocabulary, WIDTH),
    }
    for k in range(LAYERS):
        block = f"model.transformer.blocks.{k}."
        for name in ("q_proj", "k_proj", "v_proj", "attn_out"):
            shapes[f"{block}{name}.weight"] = (WIDTH, WIDTH)
        for name in ("ff_proj", "up_proj"):
            shapes[f"{block}{name}.weight"] = (HIDDEN, WIDTH)
        shapes[f"{block}ff_out.weight"] = (WIDTH, HIDDEN)
        for name in ("attn_norm", "ff_norm"):
            shapes[f"{block}{name}.weight"] = (WIDTH,)
    return shapes


def dream_shapes(vocabulary: int) -> dict[str, tuple[int, ...]]:
    shapes = {
        "model.embed_tokens.weight": (vocabulary, WIDTH),
        "model.norm.weight": (WIDTH,),
        "lm_head.weight": (vocabulary, WIDTH),
    }
    for k in range(LAYERS):
        layer = f"model.layers.{k}."
        for name, size in (("q", WIDTH), ("k", WIDTH // 2), ("v", WIDTH // 2)):
            shapes[f"{layer}self_attn.{name}_proj.weight"] = (size, WIDTH)
            shapes[f"{layer}self_attn.{name}_proj.bias"] = (size,)
        shapes[f"{layer}self_attn.o_proj.weight"] = (WIDTH, WIDTH)
        for name in ("gate", "up"):
            shapes[f"{layer}mlp.{name}_proj.weight"] = (HIDDEN, WIDTH)
        shapes[f"{layer}mlp.down_proj.weight"] = (WIDTH, HIDDEN)
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{layer}{name}.weight"] = (WIDTH,)
    return shapes


def save_published(folder: Path, family: str, *, seed: int = 0, **config_changes: Any) -> Path:
    """Writes ``llada`` or ``dream``; a config value of None is left out."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(folder)
    vocabulary = len(tokenizer) + UNUSED
    make_config, shapes = {
        "llada": (llada_config, llada_shapes),
        "dream": (dream_config, dream_shapes),
    }[family]
    config = make_config(vocabulary) | config_changes
    config = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    generator = torch.Generator().manual_seed(seed)
    state = {
        name: torch.ones(shape) if "norm" in name or "ln_f" in name else draw(shape, generator)
        for name, shape in shapes(vocabulary).items()
    }
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def draw(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Large enough that what is masked depends on what surrounds it."""
    return torch.randn(shape, generator=generator) * (0.3 if len(shape) > 1 else 0.1)


def tiny_denoiser(folder: Path, family: str, *, tokens_per_batch: int = 1) -> TransformerDenoiser:
    loaded = load_denoiser(str(save_published(folder, family)), device="cpu")
    return TransformerDenoiser(loaded.checkpoint, name=family, tokens_per_batch=tokens_per_batch)
