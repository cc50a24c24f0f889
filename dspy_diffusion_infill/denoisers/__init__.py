"""Masked diffusion LMs behind one seam; the only runtime code that imports torch.

Importing this package is light: torch is loaded by the first ``load_denoiser``.
"""

from os import PathLike
from typing import TYPE_CHECKING

from dspy_diffusion_infill.denoisers.protocol import (
    Denoiser,
    Encoding,
    Infilled,
    InfillRequest,
    Sampling,
    ScoreRequest,
    SharedContext,
)

if TYPE_CHECKING:
    from dspy_diffusion_infill.denoisers.transformer import TransformerDenoiser

__all__ = [
    "Denoiser",
    "Encoding",
    "InfillRequest",
    "Infilled",
    "Sampling",
    "ScoreRequest",
    "SharedContext",
    "load_denoiser",
]


def load_denoiser(
    name_or_path: str | PathLike[str] | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    quantization: str | None = None,
) -> "TransformerDenoiser":
    """Loads a masked diffusion LM, without running the checkpoint's code or asking anything.

    Args:
        name_or_path: ``llada``, ``llada-fs-ro``, ``dream``, ``smollm2-fs`` (embedded), a hub id, or
            a folder. None is the ``DSPY_INFILL_MODEL`` variable, else ``llada-fs-ro`` where a GPU
            has room for it, else ``smollm2-fs``.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, or a transformers ``device_map`` strategy
            such as ``balanced``.
        dtype: ``auto`` (bfloat16 on GPU, float32 on CPU; the embedded one takes bfloat16 on CPUs
            that multiply it), ``float32``, ``bfloat16`` or ``float16``.
        revision: branch, tag or commit of a hub checkpoint.
        quantization: ``8bit`` or ``4bit`` (bitsandbytes, GPU only), or None.

    Raises:
        UnknownDenoiserError: the name is none of the above.
        NotMaskedDiffusionError: the checkpoint is of another kind of model.
        MissingMaskTokenError: the checkpoint names no mask token.
        DenoiserError: the folder holds no weights, or the weights do not fit the config.
        DenoiserMemoryError: the weights do not fit the device.
        ValueError: an option has none of its values, or a folder is asked for a revision.
        TypeError: ``name_or_path`` is neither text nor a path.
    """
    from dspy_diffusion_infill.denoisers.checkpoints.loading import load

    if name_or_path is not None and not isinstance(name_or_path, str | PathLike):
        raise TypeError(
            f"name_or_path must be a name, a hub id, a folder or None, got {name_or_path!r:.60}"
        )
    name = None if name_or_path is None else str(name_or_path)
    return load(name, device=device, dtype=dtype, revision=revision, quantization=quantization)
