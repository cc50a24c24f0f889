"""What a checkpoint's files say, taken for what it is: data from anywhere.

A checkpoint may be damaged, or made to do harm. Nothing here runs its code, opens a file that its
index names outside its folder, or makes room for sizes that its weights do not have.
"""

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from dspy_diffusion_infill.errors import DataError, DenoiserError
from dspy_diffusion_infill.jsonl import parse_json
from dspy_diffusion_infill.value_checks import check_whole

WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin")
MAX_LAYERS, MAX_SIZE = 1000, 2**31
_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
)
_LAYERS = ("n_layers", "num_hidden_layers")


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        DenoiserError: the file holds no JSON object, or a number that is not finite.
        FileNotFoundError: there is no such file.
    """
    try:
        content = parse_json(path.read_bytes(), allow_nan=False)
        json.dumps(content, allow_nan=False)
    except (DataError, ValueError) as error:
        raise DenoiserError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise DenoiserError(f"{path} must be a JSON object, got {type(content).__name__}")
    return content


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's ``config.json``.

    Raises:
        DenoiserError: there is none, it is no JSON object, ``model_type`` is no text, or a number
            of layers is not in 1..1000: a config of more is slow to make, before any check.
    """
    path = folder / "config.json"
    try:
        config = read_object(path)
    except FileNotFoundError:
        raise DenoiserError(
            f"{folder} holds no config.json: a checkpoint's folder has config.json, *.safetensors "
            f"and tokenizer.json"
        ) from None
    if not isinstance(config.get("model_type"), str | None):
        raise DenoiserError(f"{path}: model_type must be a text, got {config['model_type']!r:.60}")
    for name in _LAYERS:
        layers = config.get(name, 1)
        if type(layers) is not int or not 1 <= layers <= MAX_LAYERS:
            raise DenoiserError(f"{path}: {name} must be in 1..{MAX_LAYERS}, got {layers!r:.60}")
    return config


def check_index(folder: Path) -> None:
    """Raises DenoiserError if an index of weights names anything but a file beside it."""
    for path in folder.glob("*.index.json"):
        files = read_object(path).get("weight_map")
        if not isinstance(files, dict):
            raise DenoiserError(f"{path} must map the names of weights to files in weight_map")
        for name in files.values():
            if not isinstance(name, str) or not _is_plain(name):
                raise DenoiserError(f"{path} must name files beside it, got {name!r:.60}")


def check_sizes(config: PreTrainedConfig, folder: Path) -> None:
    """Raises DenoiserError if the weights are too few for the config, by the size of their files.

    Half a byte for each parameter is the least that any format takes.
    """
    where = folder / "config.json"
    sizes = {name: getattr(config, name) for name in _SIZES}
    try:
        for name, size in sizes.items():
            check_whole(name, size, least=1)
            if size > MAX_SIZE:
                raise ValueError(f"{name} must be at most {MAX_SIZE}, got {size!r:.60}")
    except (TypeError, ValueError) as error:
        raise DenoiserError(f"{where}: {error}") from error
    vocabulary, width, inner, heads, key_heads, _ = sizes.values()
    head = getattr(config, "head_dim", None) or width // heads
    layer = 3 * width * inner + 2 * width * head * (heads + key_heads)
    asked = vocabulary * width + config.num_hidden_layers * layer
    stored = sum(path.stat().st_size for kind in WEIGHT_FILES for path in folder.glob(kind))
    if asked > 2 * stored:
        raise DenoiserError(
            f"the weights in {folder} do not fit its config.json: it asks for {asked:.2g} "
            f"parameters, and the files have {stored:.2g} bytes"
        )


def _is_plain(name: str) -> bool:
    return bool(name) and not {"/", "\\", "\0", ":"} & set(name) and name not in (".", "..")
