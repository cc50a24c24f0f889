"""``load_denoiser(compile=…)``: the same tokens, one compilation for all lengths, refusals."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_denoisers_context_cache import SHARED, masked, requests_for
from tiny_denoisers import MASK_ID, save_published

from dspy_diffusion_infill.denoisers import InfillRequest, load_denoiser
from dspy_diffusion_infill.errors import DenoiserError, MissingDependencyError

pytestmark = pytest.mark.filterwarnings("default")  # the compiler warns of torch's own code
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++"))), reason="no C++ compiler"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_published(tmp_path / "llada", "llada")


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@needs_compiler
def test_tokens_are_those_of_the_plain_model_and_one_compilation_serves_all_lengths(folder):
    plain = load_denoiser(folder, device="cpu", dtype="float32")
    compiled = load_denoiser(folder, device="cpu", dtype="float32", compile="default")
    texts = [requests_for(masked(put_in=put_in)) for put_in in (4, 7, 2)]
    caches = [replace(SHARED, cache=cache) for cache in ("off", "window", "context")]
    found = [compiled.infill(texts[0], sampling) for sampling in caches]
    found += [compiled.infill([InfillRequest([5, MASK_ID])], caches[0])]
    torch.compiler.set_stance("fail_on_recompile")
    try:
        found += [compiled.infill(text, sampling) for text in texts[1:] for sampling in caches]
    finally:
        torch.compiler.set_stance("default")
    truth = [plain.infill(texts[0], sampling) for sampling in caches]
    truth += [plain.infill([InfillRequest([5, MASK_ID])], caches[0])]
    truth += [plain.infill(text, sampling) for text in texts[1:] for sampling in caches]
    for ours, others in zip(found, truth, strict=True):
        assert [one.input_ids for one in ours] == [one.input_ids for one in others]


@needs_compiler
def test_the_first_pass_compiles(folder):
    compiled = load_denoiser(folder, device="cpu", compile="default")
    torch.compiler.set_stance("fail_on_recompile")
    try:
        with pytest.raises(RuntimeError, match="fail_on_recompile"):
            compiled.infill([InfillRequest([5, MASK_ID])], SHARED)
    finally:
        torch.compiler.set_stance("default")


def test_cuda_graphs_need_a_gpu(folder):
    with pytest.raises(DenoiserError, match=r"'reduce-overhead' needs a GPU.*'default' on device"):
        load_denoiser(folder, device="cpu", compile="reduce-overhead")


def test_a_missing_compiler_is_an_error_and_not_a_fallback(folder):
    from torch._inductor import config  # it reads CXX when it is first imported

    with (
        config.patch({"cpp.cxx": ("/nonexistent/g++",)}),
        pytest.raises(MissingDependencyError, match=r"needs a C\+\+ compiler on a CPU"),
    ):
        load_denoiser(folder, device="cpu", compile="default")
