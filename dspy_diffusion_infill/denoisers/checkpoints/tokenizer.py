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
        DenoiserError: the folder holds neither.
    """
    if (folder / "tokenizer.json").is_file():
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return Qwen2Tokenizer.from_pretrained(folder, local_files_only=True)
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
