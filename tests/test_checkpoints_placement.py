import importlib.util

import pytest
import torch
from tiny_denoisers import save_published
from transformers import LlamaForCausalLM

from dspy_diffusion_infill.denoisers import load_denoiser
from dspy_diffusion_infill.denoisers.checkpoints import placement
from dspy_diffusion_infill.denoisers.checkpoints.placement import Options, has_fast_bfloat16
from dspy_diffusion_infill.errors import DenoiserError, MissingDependencyError


def see_gpus(monkeypatch, num: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: num > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num)


def has_bitsandbytes(monkeypatch, is_there: bool) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        placement.importlib.util,
        "find_spec",
        lambda name: (object() if is_there else None) if name == "bitsandbytes" else find(name),
    )


@pytest.mark.parametrize(
    ("num_gpus", "device", "device_map", "dtype"),
    [
        (0, "cpu", {"": "cpu"}, torch.float32),
        (2, "cpu", {"": "cpu"}, torch.float32),
        (1, "auto", "sequential", torch.bfloat16),
        (2, "cuda:1", {"": "cuda:1"}, torch.bfloat16),
        (2, "balanced", "balanced", torch.bfloat16),
    ],
)
def test_device_and_dtype_are_in_transformers_words(
    monkeypatch, num_gpus, device, device_map, dtype
):
    see_gpus(monkeypatch, num_gpus)
    placed = Options(device=device).place()
    assert (placed.device_map, placed.dtype) == (device_map, dtype)
    assert placed.quantization_config is None


def test_a_dtype_that_is_asked_for_goes_before_that_of_the_device():
    assert Options(device="cpu", dtype="float16").place().dtype == torch.float16
    assert Options(device="cpu").place(cpu_dtype=torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("num_gpus", "device", "seen"),
    [(0, "cuda", "no GPU;"), (0, "balanced", "no GPU;"), (1, "cuda:1", "1 GPU;")],
)
def test_a_gpu_that_is_not_there_is_named(monkeypatch, num_gpus, device, seen):
    see_gpus(monkeypatch, num_gpus)
    with pytest.raises(DenoiserError, match=f"device='{device}', but torch sees {seen}"):
        Options(device=device).place()


# Quantization


def test_quantization_is_bitsandbytes_own(monkeypatch):
    see_gpus(monkeypatch, 1)
    has_bitsandbytes(monkeypatch, True)
    eight = Options(quantization="8bit").place().quantization_config
    four = Options(quantization="4bit", dtype="float16").place().quantization_config
    assert eight is not None and eight.load_in_8bit
    assert four is not None and four.load_in_4bit
    assert (four.bnb_4bit_quant_type, four.bnb_4bit_compute_dtype) == ("nf4", torch.float16)


def test_quantization_without_bitsandbytes_names_the_command(monkeypatch):
    see_gpus(monkeypatch, 1)
    has_bitsandbytes(monkeypatch, False)
    with pytest.raises(MissingDependencyError, match="pip install bitsandbytes"):
        Options(quantization="4bit").place()


def test_the_options_reach_from_pretrained(tmp_path, monkeypatch):
    """The GPU is pretended: what arrives is looked at, and loaded on the CPU."""
    folder = save_published(tmp_path, "llada")
    see_gpus(monkeypatch, 1)
    has_bitsandbytes(monkeypatch, True)
    original, seen = LlamaForCausalLM.from_pretrained, {}

    def from_pretrained(*args, **options):
        seen.update(options)
        return original(*args, **options | {"device_map": "cpu", "quantization_config": None})

    monkeypatch.setattr(LlamaForCausalLM, "from_pretrained", from_pretrained)
    denoiser = load_denoiser(str(folder), device="cuda", quantization="8bit")
    assert (seen["device_map"], seen["dtype"]) == ({"": "cuda"}, torch.bfloat16)
    assert seen["quantization_config"].load_in_8bit
    assert denoiser.name.endswith(":8bit")
    assert "trust_remote_code" not in seen


# bfloat16 on CPUs


@pytest.mark.parametrize("is_there", [True, False])
def test_bfloat16_is_looked_up_where_torch_says_it(monkeypatch, is_there):
    capabilities = {"avx512_bf16": is_there, "avx2": True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert has_fast_bfloat16() is is_there


@pytest.mark.parametrize("is_there", [True, False])
def test_older_torch_says_it_elsewhere(monkeypatch, is_there):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: is_there, raising=False)
    assert has_fast_bfloat16() is is_there


def test_a_cpu_of_which_torch_says_nothing_is_taken_for_slow(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported", raising=False)
    assert has_fast_bfloat16() is False
