"""``torch.compile`` for the layers of a model, on request.

Compiled is what a layer does with each token by itself: its norms and its feed-forward network.
Attention is not: its keys grow with each pass, and so each would record a CUDA graph of it.
Each part is one graph for texts of any length; torch must not fall back to plain code in it.
"""

from typing import Any, get_args

import torch
from transformers import PreTrainedModel

from dspy_diffusion_infill.denoisers.protocol import Compile
from dspy_diffusion_infill.errors import DenoiserError, MissingDependencyError

PARTS = ("input_layernorm", "post_attention_layernorm", "mlp")


def check_compile(compile: str | None, *, device_type: str) -> Compile | None:
    """Returns the option; on request torch compiles something small first, to see if it can.

    Raises:
        ValueError: ``compile`` has none of its values.
        DenoiserError: CUDA graphs are asked for without a GPU.
        MissingDependencyError: torch cannot compile here.
    """
    if compile is None:
        return None
    mode = next((one for one in get_args(Compile) if one == compile), None)
    if mode is None:
        known = ", ".join(map(repr, get_args(Compile)))
        raise ValueError(f"compile must be None or one of {known}, got compile={compile!r}")
    if mode == "reduce-overhead" and device_type != "cuda":
        raise DenoiserError(
            f"compile='reduce-overhead' needs a GPU, for CUDA graphs; use compile='default' on "
            f"device={device_type!r}"
        )
    try:
        with torch.inference_mode():
            torch.compile(_trial, fullgraph=True)(torch.ones(8, device=device_type))
    except Exception as error:  # torch's own, and what compilers raise
        reason = " ".join(str(error).partition("\n\n")[0].split())
        raise MissingDependencyError(
            f"compile={compile!r} needs a C++ compiler on a CPU (apt install g++) and triton on a "
            f"GPU (pip install triton); torch says: {reason}"
        ) from error
    return mode


def compile_layers(model: PreTrainedModel, mode: Compile) -> None:
    """Has the parts of each layer compiled, at the first pass through them."""
    options: dict[str, Any] = {} if mode == "default" else {"mode": mode}
    for layer in model.get_decoder().get_submodule("layers").children():
        for name in PARTS:
            layer.get_submodule(name).compile(dynamic=True, fullgraph=True, **options)
    if mode == "reduce-overhead":
        # The results of a pass are not needed in the next one: their memory is used again.
        model.register_forward_pre_hook(
            lambda *_: torch.compiler.cudagraph_mark_step_begin(), prepend=True
        )


def _trial(x: torch.Tensor) -> torch.Tensor:
    return x.exp() + x
