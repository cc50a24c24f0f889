"""Causal LMs that become denoisers: their native classes, and their configs without what is code.

A ``config.json`` can ask transformers for an attention kernel from the hub, which is code, or for a
quantiser of any installed package. So only the native config's own keys are taken: the sizes.
"""

from pathlib import Path
from typing import Any

from transformers import (
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)

from dspy_diffusion_infill.denoisers.checkpoints.reading import (
    check_index,
    check_sizes,
    read_config,
)
from dspy_diffusion_infill.errors import DenoiserError

CAUSAL_CLASSES: dict[str, type[PreTrainedModel]] = {
    "llama": LlamaForCausalLM,
    "qwen2": Qwen2ForCausalLM,
    "qwen3": Qwen3ForCausalLM,
}
"""Causal LMs whose native class drops its causal mask when ``config.is_causal`` is False."""

_OLDER_KEYS = {"rope_theta", "rope_scaling"}  # now in rope_parameters


def causal_config(folder: Path) -> PreTrainedConfig:
    """The config of a folder whose ``model_type`` is one of ``CAUSAL_CLASSES``.

    Raises:
        DenoiserError: the weights are quantised, or a value is of the wrong type.
    """
    published: dict[str, Any] = read_config(folder)
    if published.get("quantization_config"):
        raise DenoiserError(
            f"the weights in {folder} are quantised already: name the checkpoint they were made "
            "from, and quantise it with quantization='8bit' or '4bit'"
        )
    config_class = CAUSAL_CLASSES[published["model_type"]].config_class
    assert config_class is not None
    known = config_class.__annotations__.keys() | _OLDER_KEYS
    try:
        return config_class(**{key: published[key] for key in published.keys() & known})
    except Exception as error:  # its validators raise classes of their own
        raise DenoiserError(
            f"{folder / 'config.json'} is no {published['model_type']}: {error}"
        ) from error


def load_causal(folder: Path) -> PreTrainedModel:
    """The causal LM in a folder, on the CPU, in the precision of its weights.

    Raises:
        DenoiserError: as ``causal_config``, or the weights do not fit the config.
    """
    config = causal_config(folder)
    check_index(folder)
    check_sizes(config, folder)
    model_class = CAUSAL_CLASSES[config.model_type]
    return model_class.from_pretrained(folder, config=config, local_files_only=True)
