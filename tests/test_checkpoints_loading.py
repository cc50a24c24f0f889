import json
import logging
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch
from tiny_denoisers import save_published
from tiny_models import save_causal

from dspy_diffusion_infill.denoisers import load_denoiser
from dspy_diffusion_infill.denoisers.checkpoints import hub
from dspy_diffusion_infill.errors import (
    DenoiserError,
    NotMaskedDiffusionError,
    UnknownDenoiserError,
)


@pytest.fixture
def llada(tmp_path):
    return save_published(tmp_path / "llada", "llada")


@pytest.fixture
def asked(monkeypatch) -> list[str]:
    """The names that are looked for; none is found."""
    names: list[str] = []

    def find(name, revision=None):
        names.append(name)
        raise UnknownDenoiserError(name)

    monkeypatch.setattr(hub, "find", find)
    monkeypatch.delenv("DSPY_INFILL_MODEL", raising=False)
    return names


def see_gpus(monkeypatch, *free_gib: int, reserved_gib: int = 0, allocated_gib: int = 0) -> None:
    """GPUs with so much free memory, and what torch has of each; bitsandbytes is there too."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(free_gib))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(free_gib))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda k: (free_gib[k] * 2**30, 80 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _k: reserved_gib * 2**30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _k: allocated_gib * 2**30)
    monkeypatch.setitem(sys.modules, "bitsandbytes", bitsandbytes := ModuleType("bitsandbytes"))
    bitsandbytes.__spec__ = ModuleSpec("bitsandbytes", None)


def test_the_name_has_path_fingerprint_and_precision(llada):
    fingerprint = hub.fingerprint(llada)
    assert load_denoiser(str(llada)).name == f"{llada}@{fingerprint}:float32"
    assert load_denoiser(str(llada), dtype="float16").name.endswith(":float16")


def test_one_log_line_says_which_and_why(llada, monkeypatch, caplog):
    monkeypatch.setenv("DSPY_INFILL_MODEL", str(llada))
    with caplog.at_level(logging.INFO, logger="dspy_diffusion_infill"):
        denoiser = load_denoiser()
    [message] = [record.getMessage() for record in caplog.records]
    assert denoiser.name in message
    assert "DSPY_INFILL_MODEL is set" in message


@pytest.mark.parametrize(
    ("free", "options", "name"),
    [
        ((), {}, "smollm2-fs"),
        ((6,), {}, "smollm2-fs"),
        ((6, 40), {}, "llada-fs-ro"),
        ((10,), {"quantization": "4bit"}, "llada-fs-ro"),
        ((40,), {"device": "cpu"}, "smollm2-fs"),
    ],
)
def test_without_a_name_the_gpu_decides(monkeypatch, asked, free, options, name):
    see_gpus(monkeypatch, *free)
    with pytest.raises(UnknownDenoiserError):
        load_denoiser(**options)
    assert asked == [name]


@pytest.mark.parametrize(
    ("allocated", "name"),
    [(0, "llada-fs-ro"), (16, "smollm2-fs")],
    ids=["of a model that is gone", "of a model in use"],
)
def test_memory_that_torch_keeps_counts_as_free(monkeypatch, asked, allocated, name):
    see_gpus(monkeypatch, 7, reserved_gib=16, allocated_gib=allocated)
    with pytest.raises(UnknownDenoiserError):
        load_denoiser()
    assert asked == [name]


def test_a_name_goes_before_the_variable(monkeypatch, asked):
    monkeypatch.setenv("DSPY_INFILL_MODEL", "dream")
    for name in ("llada", None):
        with pytest.raises(UnknownDenoiserError):
            load_denoiser(name)
    assert asked == ["llada", "dream"]


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "llada_moe", None])
def test_another_kind_of_model_is_named_with_the_known_ones(tmp_path, model_type):
    folder = save_causal(tmp_path)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": model_type}))
    with pytest.raises(
        NotMaskedDiffusionError, match=rf"model_type={model_type!r}.*known are llada, Dream"
    ):
        load_denoiser(str(folder))


def test_the_weights_of_another_kind_of_model_are_not_downloaded(tmp_path, monkeypatch):
    asked = []

    def download(hub_id, *, revision, allow_patterns):
        asked.append(allow_patterns)
        return str(save_causal(tmp_path / "snapshot"))

    monkeypatch.setattr(hub, "snapshot_download", download)
    with pytest.raises(NotMaskedDiffusionError, match=r"some/llama@snapshot has model_type='llama"):
        load_denoiser("some/llama")
    assert len(asked) == 1
    assert not any("safetensors" in pattern for pattern in asked[0])


@pytest.mark.parametrize(
    ("option", "value"),
    [("device", "gpu-one"), ("dtype", "int8"), ("quantization", "2bit"), ("compile", "fast")],
)
def test_an_option_without_that_value(llada, option, value):
    with pytest.raises(ValueError, match=f"got {option}='{value}'"):
        load_denoiser(str(llada), **{option: value})


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "int8"},
        {"device": "gpu-one"},
        {"quantization": "2bit"},
        {"quantization": "4bit", "device": "cpu"},
        {"compile": "fast"},
        {"compile": "reduce-overhead", "device": "cpu"},
    ],
    ids=str,
)
def test_options_are_checked_before_anything_is_downloaded(monkeypatch, options):
    def download(*_args, **_options):
        pytest.fail("something was downloaded")

    monkeypatch.setattr(hub, "snapshot_download", download)
    with pytest.raises((ValueError, DenoiserError), match=r"got|needs a GPU"):
        load_denoiser("llada", **options)


def test_quantization_needs_a_gpu(llada):
    with pytest.raises(DenoiserError, match="quantization='8bit' needs a GPU"):
        load_denoiser(str(llada), device="cpu", quantization="8bit")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_a_gpu_that_is_not_there(llada):
    with pytest.raises(DenoiserError, match="device='cuda', but torch sees no GPU"):
        load_denoiser(str(llada), device="cuda")
