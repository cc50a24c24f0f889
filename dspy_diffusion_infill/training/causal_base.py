"""The causal LM that an adapted denoiser was made from, for comparison in the infill probe."""

import torch
from transformers import PreTrainedModel

from dspy_diffusion_infill.denoisers.checkpoints import hub, smollm2
from dspy_diffusion_infill.denoisers.checkpoints.causal import CAUSAL_CLASSES, load_causal
from dspy_diffusion_infill.denoisers.checkpoints.masked_diffusion import SETTINGS_FILE, Settings
from dspy_diffusion_infill.denoisers.checkpoints.reading import read_config


def load_causal_base(denoiser: str) -> PreTrainedModel:
    """The base of a denoiser's folder or name, causal mask on, in float32 on the CPU.

    Raises:
        ValueError: the denoiser was not made from a causal LM, or does not name its base.
    """
    folder = hub.find(denoiser).folder
    if not (folder / SETTINGS_FILE).is_file():
        raise ValueError(f"{denoiser} was not made from a causal LM: leave --causal out")
    settings = Settings.read(folder)
    if settings.base == smollm2.BASE:
        return smollm2.load_base(torch.float32)[0].eval()
    if settings.base is None:
        raise ValueError(f"{denoiser} does not name the causal LM it was made from")
    beside = folder / settings.base
    source = hub.find(str(beside) if beside.is_dir() else settings.base, settings.revision)
    model_type = read_config(source.folder).get("model_type")
    if model_type not in CAUSAL_CLASSES:
        raise ValueError(f"the base of {denoiser} has model_type={model_type!r}: no causal LM")
    hub.fetch_weights(source)
    return load_causal(source.folder).eval()
