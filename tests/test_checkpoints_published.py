import io
import json
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file, save_file
from tiny_denoisers import save_published
from transformers import LlamaForCausalLM, Qwen2ForCausalLM

from dspy_diffusion_infill.denoisers import InfillRequest, Sampling, load_denoiser
from dspy_diffusion_infill.denoisers.transformer import TransformerDenoiser
from dspy_diffusion_infill.errors import (
    DenoiserError,
    DenoiserMemoryError,
    MissingMaskTokenError,
    NotMaskedDiffusionError,
)

FAMILIES = ["llada", "dream"]
IDS = torch.randint(256, (2, 20), generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=FAMILIES)
def folder(request, tmp_path) -> Path:
    return save_published(tmp_path / request.param, request.param)


def load(folder: Path, **options) -> TransformerDenoiser:
    return load_denoiser(str(folder), device="cpu", **options)


def edit_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    config = {key: value for key, value in config.items() if value is not None}
    path.write_text(json.dumps(config))


def test_no_code_of_the_checkpoint_runs_and_nothing_is_asked(folder, monkeypatch, capfd):
    for name in ("modeling_llada", "configuration_llada", "modeling_dream", "tokenization_dream"):
        (folder / f"{name}.py").write_text("raise SystemExit('the code of the checkpoint ran')")
    path = folder / "tokenizer_config.json"
    auto_map = {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": auto_map}))
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    load(folder).infill([InfillRequest([1, 2, 259, 3])], Sampling())
    assert capfd.readouterr().out == ""


def test_attention_sees_both_ways(folder):
    denoiser = load(folder)
    changed = IDS.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 256
    difference = (denoiser.logits(IDS) - denoiser.logits(changed)).abs().amax(dim=(0, 2))
    assert (difference[:-1] > 1e-4).all()


def test_padding_on_either_side_changes_nothing(folder):
    denoiser = load(folder)
    alone = denoiser.logits(IDS[:1, :12])
    for left, right in ((0, 8), (8, 0), (3, 5)):
        padded = torch.cat([IDS[:1, 12 : 12 + left], IDS[:1, :12], IDS[:1, 20 - right :]], 1)
        mask = torch.tensor([[0] * left + [1] * 12 + [0] * right])
        logits = denoiser.logits(padded, mask)[:, left : left + 12]
        first = 1 if denoiser.checkpoint.shift and left else 0  # scored at a padded position
        torch.testing.assert_close(logits[:, first:], alone[:, first:], atol=1e-4, rtol=1e-4)


def test_a_saved_model_has_the_published_names_and_config(folder, tmp_path):
    load(folder).save_pretrained(tmp_path / "saved")
    before = load_file(folder / "model.safetensors")
    after = load_file(tmp_path / "saved" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    published, saved = (
        json.loads((path / "config.json").read_text()) for path in (folder, tmp_path / "saved")
    )
    assert saved == published


def test_a_saved_model_loads_again_as_it_was(folder, tmp_path):
    denoiser = load(folder)
    denoiser.save_pretrained(tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert torch.equal(again.logits(IDS), denoiser.logits(IDS))
    assert again.mask_id == denoiser.mask_id
    assert again.context_length == denoiser.context_length == 96
    user = [{"role": "user", "content": "hi"}]
    assert again.render(user) == denoiser.render(user)
    assert again.encode("a {b} ü") == denoiser.encode("a {b} ü")


def test_a_model_saved_in_bfloat16_says_so(folder, tmp_path):
    denoiser = load(folder, dtype="bfloat16")
    assert denoiser.model.dtype == torch.bfloat16
    assert denoiser.logits(IDS).dtype == torch.float32
    denoiser.save_pretrained(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_sharded_weights_load(folder):
    truth = load(folder).logits(IDS)
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    save_torch_state_dict(state, folder, max_shard_size=20_000)
    assert len(list(folder.glob("*.safetensors"))) > 2
    assert torch.equal(load(folder).logits(IDS), truth)


def test_loading_is_silent(folder, capfd):
    load(folder)
    assert capfd.readouterr().err == ""


# Errors


def test_a_folder_without_weights(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(DenoiserError, match=r"holds no weights: put .*safetensors files there"):
        load(folder)


def test_a_folder_without_a_config(folder):
    (folder / "config.json").unlink()
    with pytest.raises(DenoiserError, match=r"holds no config\.json"):
        load(folder)


def test_a_config_that_is_not_json(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(DenoiserError, match=r"config\.json is not JSON"):
        load(folder)


def test_weights_of_another_size(folder):
    path = folder / "model.safetensors"
    state = load_file(path)
    name = next(name for name in state if "q_proj.weight" in name)
    state[name] = state[name][:, :-2].contiguous()
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(DenoiserError, match=r"do not fit its config\.json: mismatched .*q_proj"):
        load(folder)


@pytest.mark.parametrize("change", ["missing", "unexpected"])
def test_weights_that_do_not_fit_the_config(folder, change):
    path = folder / "model.safetensors"
    state = load_file(path)
    if change == "missing":
        del state[next(name for name in state if "q_proj.weight" in name)]
    else:
        state["model.extra.weight"] = torch.zeros(3)
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(DenoiserError, match=rf"do not fit its config\.json: .*{change} \['"):
        load(folder)


def test_damaged_weights(folder):
    (folder / "model.safetensors").write_bytes(b"not weights" * 10_000)
    with pytest.raises(DenoiserError, match="cannot be loaded"):
        load(folder)


def test_weights_that_do_not_fit_the_device(folder, monkeypatch):
    def from_pretrained(*_args, **_options):
        raise torch.OutOfMemoryError("no room")

    for model_class in (LlamaForCausalLM, Qwen2ForCausalLM):
        monkeypatch.setattr(model_class, "from_pretrained", from_pretrained)
    with pytest.raises(DenoiserMemoryError, match=r"0\.0 GiB on disk.*quantization='8bit'"):
        load(folder)


def test_a_quantised_model_is_not_saved(folder, tmp_path, monkeypatch):
    denoiser = load(folder)
    monkeypatch.setattr(denoiser.model, "is_quantized", True, raising=False)
    with pytest.raises(DenoiserError, match="load it with quantization=None"):
        denoiser.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_no_mask_token(folder):
    edit_config(folder, mask_token_id=None)
    with pytest.raises(MissingMaskTokenError, match=r"set mask_token_id in its config\.json"):
        load(folder)


def test_a_llada_that_llama_cannot_be(tmp_path):
    folder = save_published(tmp_path, "llada", alibi=True)
    with pytest.raises(NotMaskedDiffusionError, match=r"must have alibi=False .* got alibi=True"):
        load(folder)


def test_a_config_that_lacks_a_size(tmp_path):
    folder = save_published(tmp_path, "llada", d_model=None)
    with pytest.raises(DenoiserError, match=r"config\.json has no 'd_model'"):
        load(folder)


def test_dreams_context_is_what_it_was_trained_on(tmp_path):
    folder = save_published(tmp_path, "dream", max_position_embeddings=131072)
    assert load(folder).context_length == 2048
