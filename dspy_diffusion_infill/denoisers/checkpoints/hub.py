"""Where a checkpoint's files are: the known names, hub ids, and folders."""

import difflib
import hashlib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from dspy_diffusion_infill.errors import DenoiserError, UnknownDenoiserError

EMBEDDED = "smollm2-fs"
KNOWN = {
    "llada": "GSAI-ML/LLaDA-8B-Instruct",
    "llada-fs-ro": "akkikiki/LLaDA-8B-Instruct-judge-fs-ro",
    "dream": "Dream-org/Dream-v0-Instruct-7B",
}
_SMALL_FILES = ["*.json", "*.jinja", "merges.txt"]
_WEIGHT_FILES = ["*.safetensors", "pytorch_model*.bin"]
_SAMPLES, _SAMPLE_BYTES = 16, 4096


@dataclass(frozen=True, slots=True)
class CheckpointFiles:
    """A checkpoint's files.

    Attributes:
        folder: where they are.
        label: the name, with the revision or a fingerprint of the weights.
        hub_id: None for a folder.
    """

    folder: Path
    label: str
    hub_id: str | None = None


def find(name: str, revision: str | None = None) -> CheckpointFiles:
    """Finds a checkpoint; from the hub, only configs and tokenizer are fetched yet.

    Raises:
        UnknownDenoiserError: the name is no known one, no folder and no hub id.
        ValueError: a revision is asked of what is not on the hub.
        DenoiserError: the hub cannot be reached, or does not give the checkpoint out.
    """
    if name == EMBEDDED:
        with resources.as_file(
            resources.files("dspy_diffusion_infill") / "data" / EMBEDDED
        ) as folder:
            return _local(folder, name, revision)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _local(folder, name, revision)
    hub_id = KNOWN.get(name, name)
    if not is_on_hub(name):
        raise UnknownDenoiserError(_unknown(name))
    snapshot = _snapshot(hub_id, revision, _SMALL_FILES)
    return CheckpointFiles(snapshot, f"{hub_id}@{snapshot.name[:12]}", hub_id)


def fetch_weights(source: CheckpointFiles) -> None:
    """Downloads the weights of a hub checkpoint, never its code; a folder has them."""
    if source.hub_id is not None:
        _snapshot(source.hub_id, source.folder.name, [*_SMALL_FILES, *_WEIGHT_FILES])


def is_on_hub(name: str) -> bool:
    """Whether a name that is no folder is a known one or has the form of a hub id."""
    hub_id = KNOWN.get(name, name)
    return hub_id.count("/") == 1 and not hub_id.startswith((".", "~", "/"))


def has_weights(folder: Path) -> bool:
    """Whether a folder holds a file of weights."""
    return any(path for pattern in _WEIGHT_FILES for path in folder.glob(pattern))


def is_cached(name: str) -> bool:
    """Whether this machine has a hub checkpoint with its weights; nothing is downloaded."""
    try:
        return has_weights(Path(snapshot_download(KNOWN.get(name, name), local_files_only=True)))
    except (LocalEntryNotFoundError, HFValidationError):
        return False


def _snapshot(hub_id: str, revision: str | None, files: list[str]) -> Path:
    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=files))
    except GatedRepoError as error:
        raise DenoiserError(
            f"{hub_id} is gated: accept its terms at https://huggingface.co/{hub_id}, "
            f"then run `hf auth login`"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UnknownDenoiserError(_unknown(hub_id)) from error
    except RevisionNotFoundError as error:
        raise DenoiserError(f"{hub_id} has no revision={revision!r} on the hub") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise DenoiserError(
            f"{hub_id} is not in this machine's cache, and the hub cannot be reached; "
            f"run `hf download {hub_id}` where there is a network and name the folder, "
            f"or use the embedded {EMBEDDED!r}"
        ) from error


def _local(folder: Path, name: str, revision: str | None) -> CheckpointFiles:
    if revision is not None:
        raise ValueError(
            f"revision is for checkpoints of the hub and {name!r} is a folder: use revision=None, "
            f"got revision={revision!r}"
        )
    return CheckpointFiles(folder, f"{name}@{fingerprint(folder)}")


def fingerprint(folder: Path) -> str:
    """Eight hex digits that change with the configs and weights; files are read in samples."""
    digest = hashlib.sha256()
    paths = {path for pattern in (*_WEIGHT_FILES, "*.json") for path in folder.glob(pattern)}
    for path in sorted(paths):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for k in range(_SAMPLES):
                file.seek(k * max(size - _SAMPLE_BYTES, 0) // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:8]


def _unknown(name: str) -> str:
    names = [*KNOWN, EMBEDDED]
    close = difflib.get_close_matches(name, names, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return (
        f"no denoiser {name!r}{hint}: it must be one of {', '.join(names)}, a hub id such as "
        f"{KNOWN['llada']!r}, or a folder that exists"
    )
