"""Masked diffusion LMs in the layout they were published in, opened without their code."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor
from transformers import (
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from dspy_diffusion_infill.denoisers.checkpoints.checkpoint import Checkpoint
from dspy_diffusion_infill.denoisers.checkpoints.dream import DREAM
from dspy_diffusion_infill.denoisers.checkpoints.family import Family, PublishedConfig
from dspy_diffusion_infill.denoisers.checkpoints.llada import LLADA
from dspy_diffusion_infill.denoisers.checkpoints.placement import (
    Placement,
    silent_progress,
    silent_warnings,
)
from dspy_diffusion_infill.denoisers.checkpoints.reading import (
    WEIGHT_FILES,
    check_index,
    check_sizes,
    read_config,
)
from dspy_diffusion_infill.denoisers.checkpoints.tokenizer import (
    check_mask_id,
    find_mask_id,
    load_tokenizer,
)
from dspy_diffusion_infill.errors import DenoiserError, DenoiserMemoryError

FAMILIES: dict[str, Family] = {family.model_type: family for family in (LLADA, DREAM)}


def open_published(folder: Path, family: Family, placement: Placement) -> Checkpoint:
    """Loads a checkpoint into the family's native class.

    Raises:
        DenoiserError: there are no weights, or they do not fit the config.
        MissingMaskTokenError: no mask token is named.
    """
    published, where = read_config(folder), folder / "config.json"
    try:
        config = family.native_config(published)
    except DenoiserError:
        raise
    except KeyError as error:
        raise DenoiserError(f"{where} has no {error}") from error
    except Exception as error:  # the validators of transformers raise classes of their own
        raise DenoiserError(f"{where} is no {family.model_type}: {error}") from error
    config.is_causal = False
    config.published = published  # what save_published writes again
    tokenizer = load_tokenizer(folder)
    mask_id = find_mask_id(tokenizer, published.get("mask_token_id"), folder)
    check_mask_id(mask_id, config.vocab_size, folder)
    return Checkpoint(
        model=load_weights(folder, family.model_class, config, placement, family.key_mapping()),
        tokenizer=tokenizer,
        mask_id=mask_id,
        shift=family.shift,
        context_length=family.context_length(published),
        algorithm=family.algorithm,
        temperature=family.temperature,
    )


def load_weights(
    folder: Path,
    model_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    placement: Placement,
    key_mapping: Mapping[str, str],
) -> PreTrainedModel:
    """``from_pretrained`` on a local folder, with nothing but weights read from it.

    Raises:
        DenoiserError: there are no weights, or they do not fit the config.
        DenoiserMemoryError: they do not fit the device.
    """
    if not any(path for pattern in WEIGHT_FILES for path in folder.glob(pattern)):
        raise DenoiserError(
            f"{folder} holds no weights: put the checkpoint's *.safetensors files there"
        )
    check_index(folder)
    check_sizes(config, folder)
    try:
        with silent_progress(), silent_warnings():
            loaded = model_class.from_pretrained(
                folder,
                config=config,
                dtype=placement.dtype,
                device_map=placement.device_map,
                quantization_config=placement.quantization_config,
                key_mapping=dict(key_mapping),
                generation_config=GenerationConfig(),
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported below, with their names
            )
    except torch.OutOfMemoryError as error:
        size = sum(path.stat().st_size for pattern in WEIGHT_FILES for path in folder.glob(pattern))
        raise DenoiserMemoryError(
            f"the weights in {folder}, {size / 2**30:.1f} GiB on disk, do not fit the device: use "
            f"quantization='8bit' or '4bit', or device='balanced' with several GPUs"
        ) from error
    except Exception as error:  # whatever a damaged file makes of the loaders; pickles are refused
        raise DenoiserError(f"the weights in {folder} cannot be loaded: {error}") from error
    model, report = cast(tuple[PreTrainedModel, dict[str, Any]], loaded)
    misfits = {
        kind: sorted(str(key) for key in report[f"{kind}_keys"])[:3]
        for kind in ("missing", "unexpected", "mismatched")
        if report[f"{kind}_keys"]
    }
    if misfits:
        found = ", ".join(f"{kind} {keys}" for kind, keys in misfits.items())
        raise DenoiserError(f"the weights in {folder} do not fit its config.json: {found}")
    return model


def save_published(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    state_dict: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes a checkpoint with its published parameter names and config, and its tokenizer.

    Args:
        model: as ``open_published`` made it; LoRA must have been merged.
        tokenizer: its tokenizer.
        folder: made if it is not there.
        state_dict: the model's whole state where the model holds only a part of it (FSDP, ZeRO-3).
    """
    published: PublishedConfig = model.config.published
    family = FAMILIES[published["model_type"]]
    state = model.state_dict() if state_dict is None else state_dict
    if model.config.tie_word_embeddings:
        state = {name: tensor for name, tensor in state.items() if name != "lm_head.weight"}
    folder.mkdir(parents=True, exist_ok=True)
    save_torch_state_dict(
        {family.published_name(name): tensor for name, tensor in state.items()},
        folder,
        filename_pattern="model{suffix}.safetensors",
    )
    dtype = str(next(iter(state.values())).dtype).removeprefix("torch.")
    config = dict(published) | {"torch_dtype": dtype}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    tokenizer.save_pretrained(folder)
