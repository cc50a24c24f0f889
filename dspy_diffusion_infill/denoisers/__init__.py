"""Masked diffusion LMs behind one seam; the only runtime code that imports torch.

Importing this package is light: torch is loaded by the first ``load_denoiser``.
"""

import os
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

from dspy_diffusion_infill.denoisers.protocol import (
    Denoiser,
    Encoding,
    Infilled,
    InfillRequest,
    Sampling,
    ScoreRequest,
    SharedContext,
)

__all__ = [
    "Denoiser",
    "Encoding",
    "InfillRequest",
    "Infilled",
    "Sampling",
    "ScoreRequest",
    "SharedContext",
    "load_denoiser",
]

MODEL_VARIABLE = "DSPY_INFILL_MODEL"
_HERE = {"device": "auto", "dtype": "auto", "revision": None, "quantization": None, "compile": None}


def load_denoiser(
    name_or_path: str | PathLike[str] | Sequence[str] | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    quantization: str | None = None,
    compile: str | None = None,
    token: str | None = None,
    timeout: float = 600.0,
    replicas: int | None = None,
    num_gpus: float | None = None,
    num_cpus: float | None = None,
) -> Denoiser:
    """Loads a masked diffusion LM, without running the checkpoint's code or asking anything.

    Args:
        name_or_path: ``llada``, ``llada-fs-ro``, ``dream``, ``smollm2-fs`` (embedded), a hub id, or
            a folder. None is the ``DSPY_INFILL_MODEL`` variable, else ``llada-fs-ro`` where a GPU
            has room for it, else ``smollm2-fs``. Or what ``dspy-infill serve`` serves: its address
            (``http://127.0.0.1:8100``), or the addresses of several servers of one denoiser, as a
            list or with commas. Or a denoiser on a Ray cluster: ``ray://head-node:10001/llada``,
            ``ray://auto/llada``, ``ray://local/llada`` (docs/serving).
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, or a transformers ``device_map`` strategy
            such as ``balanced``.
        dtype: ``auto`` (bfloat16 on GPU, float32 on CPU; the embedded one takes bfloat16 on CPUs
            that multiply it), ``float32``, ``bfloat16`` or ``float16``.
        revision: branch, tag or commit of a hub checkpoint.
        quantization: ``8bit`` or ``4bit`` (bitsandbytes, GPU only), or None.
        compile: has torch compile norms and feed-forward networks, at the first pass:
            ``default``, ``reduce-overhead`` (CUDA graphs, GPU only), or None.
        token: of the servers; None is the ``DSPY_INFILL_TOKEN`` variable.
        timeout: seconds that one answer of a server or replica may take, > 0; on a Ray cluster also
            until the first replica has loaded the checkpoint.
        replicas: on a Ray cluster, >= 1; None is 1.
        num_gpus: of a replica there, >= 0. None is 1 where the cluster has GPUs now, else 0.
        num_cpus: of a replica there, >= 0; None is 1.

    Raises:
        UnknownDenoiserError: the name is none of the above.
        NotMaskedDiffusionError: the checkpoint is of another kind of model.
        MissingMaskTokenError: the checkpoint names no mask token.
        DenoiserError: the folder holds no weights, or the weights do not fit the config; a server
            cannot be reached, refuses the token, or is of another version.
        DenoiserMemoryError: the weights do not fit the device.
        MissingDependencyError: an address begins with ``ray://``, and ray is not installed; or
            torch is to compile, and finds no compiler.
        ValueError: an option has none of its values, a folder is asked for a revision, or a server
            for what was decided when it was started.
        TypeError: ``name_or_path`` is neither text nor a path.
    """
    options: dict[str, Any] = {
        "device": device,
        "dtype": dtype,
        "revision": revision,
        "quantization": quantization,
        "compile": compile,
    }
    placed = {"replicas": replicas, "num_gpus": num_gpus, "num_cpus": num_cpus}
    placed = {name: value for name, value in placed.items() if value is not None}
    urls = _addresses(name_or_path)
    if any(isinstance(url, str) and url.startswith("ray://") for url in urls):
        return _on_ray(urls, placed, options, token=token, timeout=timeout)
    if placed:
        raise ValueError(f"{', '.join(placed)} are of a Ray cluster (ray://...), and of none else")
    if urls:
        return _served(urls, options, token=token, timeout=timeout)
    from dspy_diffusion_infill.denoisers.checkpoints.loading import load

    if name_or_path is not None and not isinstance(name_or_path, str | PathLike):
        raise TypeError(
            f"name_or_path must be a name, a hub id, a folder, addresses or None, "
            f"got {name_or_path!r:.60}"
        )
    name = None if name_or_path is None else str(name_or_path)
    return load(name, **options)


def _served(
    urls: Sequence[str], options: Mapping[str, Any], *, token: str | None, timeout: float
) -> Denoiser:
    from dspy_diffusion_infill.denoisers.remote.denoiser import RemoteDenoiser
    from dspy_diffusion_infill.denoisers.remote.replicas import Replicas

    if options != _HERE:
        raise ValueError(f"a server was given {', '.join(options)} when it was started")
    return RemoteDenoiser(Replicas(urls, token=token, timeout=timeout))


def _on_ray(
    urls: Sequence[str],
    placed: Mapping[str, Any],
    options: Mapping[str, Any],
    *,
    token: str | None,
    timeout: float,
) -> Denoiser:
    from dspy_diffusion_infill.denoisers.remote.denoiser import RemoteDenoiser
    from dspy_diffusion_infill.denoisers.remote.ray_cluster import RayAddress
    from dspy_diffusion_infill.denoisers.remote.ray_replicas import RayReplicas

    if len(urls) != 1 or token is not None:
        raise ValueError("a Ray cluster has one address and no token=: give replicas= for several")
    address = RayAddress.parse(urls[0])
    return RemoteDenoiser(RayReplicas(address, **placed, options=options, timeout=timeout))


def _addresses(name: str | PathLike[str] | Sequence[str] | None) -> list[str]:
    """The servers or the cluster; empty where a name, a hub id or a folder is meant."""
    if name is None:
        name = os.environ.get(MODEL_VARIABLE, "")
    if isinstance(name, str):
        name = name.split(",") if name.startswith(("http://", "https://", "ray://")) else []
    return list(name) if isinstance(name, list | tuple) else []
