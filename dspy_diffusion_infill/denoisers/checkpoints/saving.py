"""Writes a checkpoint so that ``load_denoiser`` opens it again."""

from pathlib import Path

from dspy_diffusion_infill.denoisers.checkpoints.checkpoint import Checkpoint
from dspy_diffusion_infill.denoisers.checkpoints.masked_diffusion import Settings
from dspy_diffusion_infill.denoisers.checkpoints.published import save_published
from dspy_diffusion_infill.errors import DenoiserError


def save_checkpoint(checkpoint: Checkpoint, folder: Path) -> None:
    """In the published layout if it came so, else in transformers' with our settings.

    Raises:
        DenoiserError: the model was quantised when it was loaded.
    """
    model, tokenizer = checkpoint.model, checkpoint.tokenizer
    if getattr(model, "is_quantized", False):
        raise DenoiserError(
            f"a quantised model cannot be saved in {folder}: load it with quantization=None"
        )
    if hasattr(model.config, "published"):
        save_published(model, tokenizer, folder)
        return
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = Settings(
        mask_token=str(tokenizer.convert_ids_to_tokens(checkpoint.mask_id)),
        shift=checkpoint.shift,
        context_length=checkpoint.context_length,
        algorithm=checkpoint.algorithm,
        temperature=checkpoint.temperature,
        block_length=checkpoint.block_length,
    )
    settings.write(folder)
