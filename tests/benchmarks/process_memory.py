"""The most memory that something takes beside a model's weights."""

import ctypes
import gc
import re
from pathlib import Path

import torch
from transformers import PreTrainedModel


class Memory:
    """Of the GPU that the model is on, else of this process (Linux)."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._weights = model.get_memory_footprint()
        self._is_on_gpu = model.device.type == "cuda"
        self._before = 0

    def reset(self) -> None:
        """Measures from now on."""
        gc.collect()
        if self._is_on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            return
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        self._before = _resident("VmRSS")

    def peak(self) -> int:
        """Bytes: the weights, and the most that was taken since ``reset`` on top of what was."""
        if self._is_on_gpu:
            return torch.cuda.max_memory_allocated()
        return self._weights + _resident("VmHWM") - self._before


def _resident(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024
