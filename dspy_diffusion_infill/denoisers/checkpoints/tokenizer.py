"""Tokenizers, read from their files alone.

``AutoTokenizer`` would look into ``config.json``, and where that has an ``auto_map`` ask at the
terminal whether to run the checkpoint's code; the classes used here do neither.
"""

from pathlib import Path
from typing import cast

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, Qwen2Tokenizer

from dspy_diffusion_infill.errors import DenoiserError, MissingMaskTokenError


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of ``tokenizer.json``, else (as Dream) of ``vocab.json`` and ``merges.txt``.

    Raises:
        DenoiserError: the folder holds neither, or their content is no tokenizer.
    """
    try:
        if (folder / "tokenizer.json").is_file():
            return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            return Qwen2Tokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # tokenizers raises bare exceptions
        raise DenoiserError(f"the tokenizer in {folder} cannot be loaded: {error}") from error
    raise DenoiserError(
        f"{folder} holds no tokenizer: put the checkpoint's tokenizer.json there, "
        f"or its vocab.json and merges.txt"
    )


def find_mask_id(tokenizer: PreTrainedTokenizerBase, configured: int | None, folder: Path) -> int:
    """The mask token's id: as the config says, else as the tokenizer does.

    Raises:
        MissingMaskTokenError: neither names one.
    """
    mask_id = cast(int | None, tokenizer.mask_token_id) if configured is None else configured
    if mask_id is None:
        raise MissingMaskTokenError(
            f"{folder} names no mask token: set mask_token_id in its config.json, "
            f"or mask_token in its tokenizer_config.json"
        )
    return mask_id


def check_mask_id(mask_id: int, vocab_size: int, folder: Path) -> None:
    """Raises DenoiserError unless the model has the mask token."""
    if type(mask_id) is not int or not 0 <= mask_id < vocab_size:
        raise DenoiserError(
            f"the mask token's id in {folder} must be in 0..{vocab_size - 1}, got {mask_id!r:.60}"
        )
