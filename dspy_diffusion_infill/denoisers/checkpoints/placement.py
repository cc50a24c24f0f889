"""Where a model's weights go and in what precision, in transformers' words."""

import functools
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from transformers import BitsAndBytesConfig
from transformers.utils import logging

from dspy_diffusion_infill.errors import DenoiserError, MissingDependencyError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_STRATEGIES = ("balanced", "balanced_low_0", "sequential")


@dataclass(frozen=True, slots=True)
class Placement:
    """Arguments of ``from_pretrained``."""

    device_map: str | dict[str, str]
    dtype: torch.dtype
    quantization_config: BitsAndBytesConfig | None = None

    @property
    def device_type(self) -> str:
        """``cpu``, ``cuda`` or ``mps``; the strategies are for GPUs of CUDA's kind."""
        if isinstance(self.device_map, str):
            return "cuda"
        return torch.device(self.device_map[""]).type


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of ``load_denoiser``.

    Attributes:
        device: ``auto``, a device, or a strategy for several GPUs.
        dtype: ``auto`` or a name.
        quantization: None, ``8bit`` or ``4bit``.
    """

    device: str = "auto"
    dtype: str = "auto"
    quantization: str | None = None

    def place(self, *, cpu_dtype: torch.dtype = torch.float32) -> Placement:
        """Settles what is open; dtype ``auto`` is ``cpu_dtype`` on a CPU, else bfloat16.

        Raises:
            ValueError: an option has none of its values.
            DenoiserError: the device is not there, or quantization is asked for without a GPU.
            MissingDependencyError: quantization is asked for without bitsandbytes.
        """
        device_map = _device_map(self.device)
        on_cpu = device_map == {"": "cpu"}
        if self.dtype != "auto" and self.dtype not in _DTYPES:
            raise ValueError(
                f"dtype must be 'auto' or one of {', '.join(_DTYPES)}, got dtype={self.dtype!r}"
            )
        dtype = _DTYPES.get(self.dtype, cpu_dtype if on_cpu else torch.bfloat16)
        return Placement(
            device_map, dtype, _quantization_config(self.quantization, dtype, on_cpu=on_cpu)
        )


def has_fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 natively: 1.5 times float32's speed there."""
    if capabilities := getattr(torch.cpu, "get_capabilities", None):
        return bool(capabilities().get("avx512_bf16", False))
    # torch of before that function says it in a private one; without either, float32 is right too.
    is_supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(is_supported and is_supported())


@functools.cache
def settle_kernels() -> None:
    """Calls once, in one thread, the functions whose CPU kernels are chosen at their first call.

    Where two threads make that first call, one may still get other kernels, and the first pass of a
    process differs from all later ones by rounding (seen: MKL's cosine in rotary embeddings, one
    process in two). Then equal seeds would not give equal proposals.
    """
    for dtype in (torch.float32, torch.float64):
        value = torch.ones(64, dtype=dtype)
        for function in (torch.cos, torch.sin, torch.exp, torch.log, torch.sqrt, torch.tanh):
            function(value)


@contextmanager
def silent_progress() -> Iterator[None]:
    """Keeps transformers' progress bars off the terminal."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def silent_warnings() -> Iterator[None]:
    """Keeps transformers' warnings off the terminal where an error is going to say the same."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _device_map(device: str) -> str | dict[str, str]:
    if device == "auto":
        if torch.cuda.is_available():
            return "sequential"  # fills the first GPU first: a model that fits one GPU is not split
        return {"": "mps" if torch.backends.mps.is_available() else "cpu"}
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    try:
        wanted = torch.device("cuda" if device in _STRATEGIES else device)
    except RuntimeError:
        raise ValueError(
            f"device must be 'auto', a torch device such as 'cuda:1', or one of "
            f"{', '.join(_STRATEGIES)}, got device={device!r}"
        ) from None
    if wanted.type == "cuda" and (wanted.index or 0) >= num_gpus:
        raise DenoiserError(
            f"device={device!r}, but torch sees {num_gpus or 'no'} GPU{'s' * (num_gpus > 1)}; use "
            f"device='cpu' or device='auto'"
        )
    return device if device in _STRATEGIES else {"": device}


def _quantization_config(
    quantization: str | None, dtype: torch.dtype, *, on_cpu: bool
) -> BitsAndBytesConfig | None:
    if quantization is None:
        return None
    if quantization not in ("8bit", "4bit"):
        raise ValueError(
            f"quantization must be None, '8bit' or '4bit', got quantization={quantization!r}"
        )
    if on_cpu:
        raise DenoiserError(
            f"quantization={quantization!r} needs a GPU; use quantization=None on a CPU"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingDependencyError(
            f"quantization={quantization!r} needs bitsandbytes: pip install bitsandbytes"
        )
    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
    )
