"""Masked diffusion LMs that say how they are used in a ``masked_diffusion.json``.

Such a folder holds a LoRA adapter (peft's files) for a base model, or whole weights in
transformers' own layout. The base may be a causal LM, whose causal mask is then dropped, or a
published masked diffusion LM.
"""

import json
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Annotated, cast

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dspy_diffusion_infill.denoisers.checkpoints import hub, smollm2
from dspy_diffusion_infill.denoisers.checkpoints.adapter import merge_adapter
from dspy_diffusion_infill.denoisers.checkpoints.causal import CAUSAL_CLASSES, causal_config
from dspy_diffusion_infill.denoisers.checkpoints.checkpoint import Checkpoint
from dspy_diffusion_infill.denoisers.checkpoints.placement import Options, has_fast_bfloat16
from dspy_diffusion_infill.denoisers.checkpoints.published import (
    FAMILIES,
    load_weights,
    open_published,
)
from dspy_diffusion_infill.denoisers.checkpoints.reading import read_config, read_object
from dspy_diffusion_infill.denoisers.checkpoints.tokenizer import check_mask_id, load_tokenizer
from dspy_diffusion_infill.denoisers.protocol import Algorithm
from dspy_diffusion_infill.errors import (
    DenoiserError,
    MissingMaskTokenError,
    NotMaskedDiffusionError,
)
from dspy_diffusion_infill.yaml_settings import STRICT, Bool, Float, Int, validated

SETTINGS_FILE = "masked_diffusion.json"


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class Settings:
    """What ``masked_diffusion.json`` holds.

    Attributes:
        base: ``smollm2-135m-instruct``, a hub id, or a folder relative to this one; None where the
            folder has all weights.
        revision: of a base on the hub.
        mask_token: the token that stands for what is masked.
        shift: whether token i is scored at position i - 1.
        chat_template: a Jinja template.
        context_length: tokens that fit, that is, were met in training.
        algorithm: the sampler that suits it.
        temperature: the temperature that suits it.
        block_length: masks that are best filled before those that follow.

    What is None is as in the base; of a causal LM: shifted, ``low_confidence``, temperature 0.8,
    all positions, and the tokenizer's own mask token.
    """

    base: str | None = None
    revision: str | None = None
    mask_token: str | None = None
    shift: Bool | None = None
    chat_template: str | None = None
    context_length: Annotated[Int, Field(ge=1)] | None = None
    algorithm: Algorithm | None = None
    temperature: Annotated[Float, Field(ge=0)] | None = None
    block_length: Annotated[Int, Field(ge=1)] | None = None

    @classmethod
    def read(cls, folder: Path) -> "Settings":
        """Reads the folder's file.

        Raises:
            DenoiserError: it is no JSON object of the known keys, or a value is of another type
                or range.
        """
        path = folder / SETTINGS_FILE
        values, known = read_object(path), {field.name for field in fields(cls)}
        if not values.keys() <= known:
            raise DenoiserError(
                f"{path} must be a JSON object with keys among {', '.join(sorted(known))}"
            )
        try:
            return validated(cls, values, str(path))
        except ValueError as error:
            raise DenoiserError(str(error)) from None

    def write(self, folder: Path) -> None:
        """Writes the file into ``folder``, without what is None."""
        values = {key: value for key, value in asdict(self).items() if value is not None}
        (folder / SETTINGS_FILE).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def open_adapted(folder: Path, options: Options) -> Checkpoint:
    """Loads the base, merges the adapter into its weights, and drops the causal mask.

    Raises:
        DenoiserError: the base or the adapter cannot be loaded.
        NotMaskedDiffusionError: the base is of a type whose causal mask cannot be dropped.
        MissingMaskTokenError: no mask token is named, or the tokenizer does not know it.
    """
    settings = Settings.read(folder)
    if settings.base == smollm2.BASE:
        checkpoint = _on_smollm2(folder, settings, options)
    else:
        checkpoint = _on_folder(folder, settings, options)
    if settings.chat_template is not None:
        checkpoint.tokenizer.chat_template = settings.chat_template
    own = (
        ("shift", settings.shift),
        ("context_length", settings.context_length),
        ("algorithm", settings.algorithm),
        ("temperature", settings.temperature),
        ("block_length", settings.block_length),
    )
    return replace(checkpoint, **{key: value for key, value in own if value is not None})


def _on_smollm2(folder: Path, settings: Settings, options: Options) -> Checkpoint:
    """Merges in float32 and rounds once; bfloat16 on CPUs that multiply it natively."""
    if options.quantization is not None:
        raise DenoiserError(
            f"{folder} is on {smollm2.BASE}, which is small and quantised already; "
            f"use quantization=None, got quantization={options.quantization!r}"
        )
    placement = options.place(cpu_dtype=torch.bfloat16 if has_fast_bfloat16() else torch.float32)
    model, tokenizer = smollm2.load_base(torch.float32)
    device = "cuda" if isinstance(placement.device_map, str) else placement.device_map[""]
    merged = merge_adapter(model, folder)
    cast(torch.nn.Module, merged).to(device=device, dtype=placement.dtype)  # in place
    return _from_causal(merged, tokenizer, settings, folder)


def _on_folder(folder: Path, settings: Settings, options: Options) -> Checkpoint:
    """The base is a folder or on the hub: a published masked diffusion LM or a causal LM."""
    base = folder
    if settings.base is not None:
        beside = folder / settings.base
        source = hub.find(str(beside) if beside.is_dir() else settings.base, settings.revision)
        hub.fetch_weights(source)
        base = source.folder
    model_type = read_config(base).get("model_type")
    if model_type in FAMILIES:
        checkpoint = open_published(base, FAMILIES[model_type], options.place())
        return replace(checkpoint, model=merge_adapter(checkpoint.model, folder))
    if model_type not in CAUSAL_CLASSES:
        raise NotMaskedDiffusionError(
            f"the base {base} has model_type={model_type!r}; an adapter can be on "
            f"{', '.join([*FAMILIES, *CAUSAL_CLASSES])}"
        )
    model = load_weights(base, CAUSAL_CLASSES[model_type], causal_config(base), options.place(), {})
    return _from_causal(merge_adapter(model, folder), load_tokenizer(base), settings, folder)


def _from_causal(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: Settings, folder: Path
) -> Checkpoint:
    model.config.is_causal = False
    model.config.use_cache = False
    if settings.mask_token is not None and settings.mask_token not in tokenizer.get_vocab():
        raise MissingMaskTokenError(
            f"{folder / SETTINGS_FILE} has mask_token={settings.mask_token!r}, which the tokenizer "
            f"does not know; name one of its tokens that no text holds, such as an unused special"
        )
    named = settings.mask_token or cast(str | None, tokenizer.mask_token)
    if named is None:
        raise MissingMaskTokenError(
            f"{folder} names no mask token: set mask_token in its {SETTINGS_FILE}"
        )
    mask_id = tokenizer.get_vocab()[named]
    check_mask_id(mask_id, model.config.vocab_size, folder)
    return Checkpoint(
        model=model.eval(),
        tokenizer=tokenizer,
        mask_id=mask_id,
        shift=True,
        context_length=model.config.max_position_embeddings,
        algorithm="low_confidence",
        temperature=0.8,
    )
