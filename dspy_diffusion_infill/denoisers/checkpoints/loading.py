"""From a name to a denoiser."""

import gc
import logging
import os

import torch

from dspy_diffusion_infill.denoisers import MODEL_VARIABLE
from dspy_diffusion_infill.denoisers.checkpoints import hub
from dspy_diffusion_infill.denoisers.checkpoints.checkpoint import Checkpoint
from dspy_diffusion_infill.denoisers.checkpoints.compiling import check_compile, compile_layers
from dspy_diffusion_infill.denoisers.checkpoints.hub import CheckpointFiles
from dspy_diffusion_infill.denoisers.checkpoints.masked_diffusion import SETTINGS_FILE, open_adapted
from dspy_diffusion_infill.denoisers.checkpoints.placement import Options
from dspy_diffusion_infill.denoisers.checkpoints.published import FAMILIES, open_published
from dspy_diffusion_infill.denoisers.checkpoints.reading import read_config
from dspy_diffusion_infill.denoisers.transformer import TransformerDenoiser
from dspy_diffusion_infill.errors import NotMaskedDiffusionError

logger = logging.getLogger(__name__)

GPU_DEFAULT = "llada-fs-ro"
_GPU_ROOM_GIB = {None: 20, "8bit": 12, "4bit": 9}
"""Free GPU memory with which an 8B model and its activations fit, by quantization."""


def load(
    name_or_path: str | None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    quantization: str | None = None,
    compile: str | None = None,
) -> TransformerDenoiser:
    """As ``denoisers.load_denoiser``, but always a denoiser in this process."""
    options = Options(device=device, dtype=dtype, quantization=quantization)
    # What cannot be is refused before anything is downloaded.
    compiled = check_compile(compile, device_type=options.place().device_type)
    name, reason = (name_or_path, "as asked") if name_or_path else _default(options)
    source = hub.find(name, revision)
    _give_back()
    checkpoint = _open(source, options)
    if compiled is not None:
        compile_layers(checkpoint.model, compiled)
    precision = quantization or str(checkpoint.model.dtype).removeprefix("torch.")
    denoiser = TransformerDenoiser(checkpoint, name=f"{source.label}:{precision}")
    logger.info("denoiser %s on %s (%s)", denoiser.name, checkpoint.model.device, reason)
    return denoiser


def _give_back() -> None:
    """Frees what torch keeps on GPUs of models that are gone: else the next one is spread out.

    Placement counts the memory that is free for any process.
    """
    gc.collect()
    torch.cuda.empty_cache()


def _open(source: CheckpointFiles, options: Options) -> Checkpoint:
    """Looks what the checkpoint is before its weights are fetched."""
    if (source.folder / SETTINGS_FILE).is_file():
        hub.fetch_weights(source)
        return open_adapted(source.folder, options)
    model_type = read_config(source.folder).get("model_type")
    if model_type not in FAMILIES:
        raise NotMaskedDiffusionError(
            f"{source.label} has model_type={model_type!r}, which is no masked diffusion LM; known "
            f"are {', '.join(FAMILIES)}. A causal LM becomes one by an adapter that was trained to "
            f"fill masks, with a {SETTINGS_FILE} beside it"
        )
    hub.fetch_weights(source)
    return open_published(source.folder, FAMILIES[model_type], options.place())


def _default(options: Options) -> tuple[str, str]:
    """(name, reason) where none is given."""
    if name := os.environ.get(MODEL_VARIABLE):
        return name, f"{MODEL_VARIABLE} is set"
    needed = _GPU_ROOM_GIB.get(options.quantization, 20)
    free = _usable_gpu_gib() if options.device != "cpu" else 0.0
    if free >= needed:
        return GPU_DEFAULT, f"a GPU has {free:.0f} GiB free"
    return hub.EMBEDDED, f"no GPU with {needed} GiB free"


def _usable_gpu_gib() -> float:
    """Of the GPU that has the most: what is free, and what torch keeps of tensors that are gone."""
    usable = [
        torch.cuda.mem_get_info(k)[0]
        + torch.cuda.memory_reserved(k)
        - torch.cuda.memory_allocated(k)
        for k in range(torch.cuda.device_count())
    ]
    return max(usable, default=0) / 2**30
