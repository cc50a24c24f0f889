"""LoRA adapters in peft's files, merged into the weights of their base.

Of an ``adapter_config.json`` only the numbers of LoRA are taken. Which layers are adapted, the
names of the weights say. So no regular expression, module name or other method of peft is run that
an adapter could bring along.
"""

import warnings
from pathlib import Path
from typing import Annotated, Literal

from peft import LoraConfig, PeftModel
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from safetensors import safe_open
from transformers import PreTrainedModel

from dspy_diffusion_infill.denoisers.checkpoints.reading import read_object
from dspy_diffusion_infill.errors import DenoiserError
from dspy_diffusion_infill.yaml_settings import Bool, Float, Int, validated

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

Name = Annotated[str, Field(pattern=r"^[\w.]+$")]
Rank = Annotated[Int, Field(ge=1)]


@dataclass(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="ignore"))
class Lora:
    """What merging needs of an ``adapter_config.json``; its other keys are of no matter.

    Attributes:
        peft_type: the only method that can be merged.
        r: the rank.
        lora_alpha: the scale is ``lora_alpha / r``.
        use_rslora: whether it is ``lora_alpha / sqrt(r)``.
        use_dora: whether the weights' lengths were trained too.
        fan_in_fan_out: whether weights are stored transposed.
        bias: which biases the weights hold.
        rank_pattern: other ranks, by layer.
        alpha_pattern: other values of ``lora_alpha``, by layer.
        modules_to_save: layers whose weights are replaced.
        layer_replication: layers of the base in another number and order; not supported.
    """

    peft_type: Literal["LORA"]
    r: Rank
    lora_alpha: Float
    use_rslora: Bool = False
    use_dora: Bool = False
    fan_in_fan_out: Bool = False
    bias: Literal["none", "all", "lora_only"] = "none"
    rank_pattern: dict[Name, Rank] = Field(default_factory=dict)
    alpha_pattern: dict[Name, Float] = Field(default_factory=dict)
    modules_to_save: tuple[Name, ...] | None = None
    layer_replication: None = None


def merge_adapter(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """The model with the folder's LoRA in its weights, so that it costs nothing at run time.

    Raises:
        DenoiserError: the adapter is no LoRA, lacks its weights, or does not fit the model.
    """
    if not (folder / ADAPTER_CONFIG).is_file():
        return model
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise DenoiserError(f"{folder} has an {ADAPTER_CONFIG} but no {ADAPTER_WEIGHTS} beside it")
    try:
        config = _lora_config(folder)
        with warnings.catch_warnings():
            # peft asks transformers for a name that transformers has deprecated.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            return PeftModel.from_pretrained(model, str(folder), config=config).merge_and_unload()
    except DenoiserError:
        raise
    except Exception as error:  # peft, safetensors and torch each have their own
        raise DenoiserError(f"the adapter in {folder} cannot be loaded: {error}") from error


def _lora_config(folder: Path) -> LoraConfig:
    lora = validated(Lora, read_object(folder / ADAPTER_CONFIG), str(folder / ADAPTER_CONFIG))
    with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as file:
        shapes = {key: file.get_slice(key).get_shape() for key in file.keys() if ".lora_" in key}
    if not shapes:
        raise DenoiserError(f"{folder / ADAPTER_WEIGHTS} holds no weights of a LoRA")
    largest = max(size for shape in shapes.values() for size in shape)
    if (rank := max([lora.r, *lora.rank_pattern.values()])) > largest:
        raise DenoiserError(f"{folder} has rank {rank}, and no weights of more than {largest} rows")
    names = sorted({key.partition(".lora_")[0] for key in shapes})
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.lora_alpha,  # pyright: ignore[reportArgumentType]
        target_modules=[name.removeprefix("base_model.model.") for name in names],
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
        fan_in_fan_out=lora.fan_in_fan_out,
        bias=lora.bias,
        rank_pattern=dict(lora.rank_pattern),
        alpha_pattern=dict(lora.alpha_pattern),
        modules_to_save=list(lora.modules_to_save) if lora.modules_to_save else None,
        inference_mode=True,
    )
