"""A checkpoint made to do harm is refused with the project's own error, or does none."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_denoisers import save_published
from tiny_models import MASK, save_causal
from transformers import PreTrainedModel

from dspy_diffusion_infill.denoisers import load_denoiser
from dspy_diffusion_infill.denoisers.checkpoints.causal import load_causal
from dspy_diffusion_infill.denoisers.checkpoints.masked_diffusion import Settings
from dspy_diffusion_infill.errors import DenoiserError


def brief(value: Any) -> str:
    return str(value)[:60]


LORA = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
HUGE = 10**9


class Bomb:
    """Leaves a file behind where its pickle is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def published(tmp_path) -> Path:
    return save_published(tmp_path / "published", "llada")


@pytest.fixture
def adapter(tmp_path) -> Path:
    """A LoRA on the folder ``base`` beside it."""
    save_causal(tmp_path / "base")
    folder = tmp_path / "adapter"
    folder.mkdir()
    Settings(base="../base", mask_token=MASK).write(folder)
    edit(folder / "adapter_config.json", LORA)
    state = {}
    for layer in range(2):
        place = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        state[f"{place}.lora_A.weight"] = torch.full((2, 32), 0.5)
        state[f"{place}.lora_B.weight"] = torch.full((32, 2), 0.5)
    save_file(state, folder / "adapter_model.safetensors")
    return folder


def edit(path: Path, changes: dict[str, Any]) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | changes))


def refused(folder: Path, match: str) -> None:
    with pytest.raises(DenoiserError, match=match):
        load_denoiser(str(folder), device="cpu")


# Configs of published checkpoints


@pytest.mark.parametrize(
    ("family", "change", "match"),
    [
        ("llada", {"n_layers": 10**9}, r"n_layers must be in 1\.\.1000, got 1000000000"),
        ("dream", {"num_hidden_layers": 10**9}, r"num_hidden_layers must be in 1\.\.1000"),
        ("llada", {"n_layers": True}, r"n_layers must be in 1\.\.1000, got True"),
        ("llada", {"embedding_size": HUGE}, r"asks for 3\.2e\+10 parameters, and the files have"),
        ("dream", {"vocab_size": HUGE}, "parameters, and the files have"),
        ("llada", {"mlp_hidden_size": HUGE}, "parameters, and the files have"),
        ("llada", {"vocab_size": 10**12, "embedding_size": None}, "vocab_size must be at most"),
        ("llada", {"d_model": "abc"}, "is no llada: .*hidden_size"),
        ("llada", {"n_heads": 0}, "is no llada"),
        ("llada", {"d_model": 10**400}, "hidden_size must be at most 2147483648, got 1000"),
        ("llada", {"max_sequence_length": 1e300}, "is no llada: .*max_position_embeddings"),
        ("llada", {"max_sequence_length": 0}, "max_position_embeddings must be at least 1, got"),
        ("llada", {"rope_theta": float("nan")}, "is not JSON: .*NaN"),
        ("llada", {"mask_token_id": HUGE}, r"mask token's id .* must be in 0\.\.263, got 10000"),
        ("llada", {"mask_token_id": "x"}, "mask token's id .* got 'x'"),
        ("llada", {"pad_token_id": 10**9}, "cannot be loaded"),
        ("dream", {"hidden_act": "os.system"}, "cannot be loaded"),
        ("llada", {"model_type": ["llada"]}, "model_type must be a text"),
    ],
    ids=brief,
)
def test_a_config_with_impossible_values_is_refused(tmp_path, family, change, match):
    refused(save_published(tmp_path / family, family, **change), match)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"[" * 100_000, "at most 100 inside one another"),
        (b'{"a":' * 200 + b"1" + b"}" * 200, "at most 100 inside one another"),
        (b"[1]", "must be a JSON object, got list"),
        (b"\xff\xfe", "invalid UTF-8"),
        (b'{"n_layers": ' + b"9" * 5000 + b"}", "is not JSON"),
        (b'{"rope_theta": 1e999}', "is not JSON: .*not JSON compliant|is not JSON: .*range"),
    ],
    ids=["endless", "deep", "list", "bytes", "digits", "infinite"],
)
def test_a_config_that_is_no_plain_object_is_refused(published, content, match):
    (published / "config.json").write_bytes(content)
    refused(published, match)


# Weights


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-1.bin"])
@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_a_pickle_among_the_weights_is_not_run(published, tmp_path, name, kind):
    bomb = {"weight": Bomb(tmp_path / "ran"), "filler": b"0" * 100_000}
    (published / "model.safetensors").unlink()
    if kind == "torch":
        torch.save(bomb, published / name)
    else:
        (published / name).write_bytes(pickle.dumps(bomb))
    index = {"weight_map": {"lm_head.weight": name}}
    edit(published / "pytorch_model.bin.index.json", index)
    refused(published, "cannot be loaded")
    assert not (tmp_path / "ran").exists()


def test_a_pickle_under_another_name_is_not_opened(published, tmp_path):
    (published / "model.safetensors").unlink()
    torch.save(Bomb(tmp_path / "ran"), published / "model.pt")
    refused(published, "holds no weights")
    assert not (tmp_path / "ran").exists()


def as_sharded(folder: Path, file: Any) -> None:
    """The weights in another folder, and an index that names ``file`` for all of them."""
    outside = folder.parent / "outside.safetensors"
    (folder / "model.safetensors").rename(outside)
    with safe_open(outside, "pt") as weights:
        names = list(weights.keys())
    edit(folder / "model.safetensors.index.json", {"weight_map": dict.fromkeys(names, file)})
    (folder / "model-1.safetensors").write_bytes(bytes(100_000))


@pytest.mark.parametrize(
    "file",
    ["../outside.safetensors", "/etc/passwd", r"..\outside.safetensors", "C:x", "..", "", "\0", 5],
)
def test_an_index_names_only_files_beside_it(published, file):
    as_sharded(published, file)
    refused(published, r"index\.json must name files beside it, got")


def test_an_index_with_an_absolute_path_is_refused(published):
    as_sharded(published, str(published.parent / "outside.safetensors"))
    refused(published, "must name files beside it")


@pytest.mark.parametrize(
    ("content", "match"),
    [(b"{}", "weight_map"), (b"[]", "got list"), (b"{", "not JSON"), (b"[" * 9999, "at most 100")],
)
def test_an_index_that_is_none_is_refused(published, content, match):
    as_sharded(published, "model-1.safetensors")
    (published / "model.safetensors.index.json").write_bytes(content)
    refused(published, match)


def test_a_link_is_followed_as_in_the_hubs_own_cache(published):
    """The hub's cache consists of links. One to another file shows nothing of it."""
    weights = published / "model.safetensors"
    outside = weights.rename(published.parent / "outside.safetensors")
    weights.symlink_to(outside)
    load_denoiser(str(published), device="cpu")
    secret = published.parent / "secret"
    secret.write_text("the password " * 10_000)
    weights.unlink()
    weights.symlink_to(secret)
    with pytest.raises(DenoiserError, match="cannot be loaded") as caught:
        load_denoiser(str(published), device="cpu")
    assert "password" not in str(caught.value)


# Tokenizers and chat templates


@pytest.mark.parametrize("content", [b"{}", b"[" * 10_000, b"\xff", b'{"model": {"type": "X"}}'])
def test_a_tokenizer_that_is_none_is_refused(published, content):
    (published / "tokenizer.json").write_bytes(content)
    refused(published, "the tokenizer in .* cannot be loaded")


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append({}) }}",
        "{{ cycler.__init__.__globals__.os.mkdir('ran') }}",
        "{% include '/etc/passwd' %}",
        "{% for _ in range(10 ** 9) %}{% endfor %}",
        "{{ 1 // 0 }}",
        "{% if %}",
    ],
)
def test_a_chat_template_stays_in_its_sandbox(published, template, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for path in published.glob("*.jinja"):
        path.unlink()
    edit(published / "tokenizer_config.json", {"chat_template": template})
    denoiser = load_denoiser(str(published), device="cpu")
    with pytest.raises(DenoiserError, match=r"the chat template of .* fails"):
        denoiser.render([{"role": "user", "content": "Hi"}])
    assert not (tmp_path / "ran").exists()


# Settings and bases


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"context_length": "x"}, "context_length must be of type int, got 'x'"),
        ({"context_length": -5}, "context_length must be greater than or equal to 1"),
        ({"temperature": float("nan")}, "is not JSON: .*NaN"),
        ({"algorithm": "evil"}, "algorithm must be one of low_confidence"),
        ({"shift": "yes"}, "shift must be of type bool"),
        ({"base": 5}, "base must be of type str"),
        ({"mask_token": ["a"]}, "mask_token must be of type str"),
        ({"chat_template": 5}, "chat_template must be of type str"),
        ({"block_length": 0}, "block_length must be greater than or equal to 1"),
        ({"trust_remote_code": True}, "keys among"),
        ({"base": "../../nowhere"}, "no denoiser"),
    ],
    ids=brief,
)
def test_settings_with_impossible_values_are_refused(adapter, change, match):
    edit(adapter / "masked_diffusion.json", change)
    refused(adapter, match)


@pytest.mark.parametrize(
    "change",
    [
        {"attn_implementation": "evil/kernel"},
        {"_attn_implementation": "evil/kernel"},
        {"experts_implementation": "evil/kernel"},
        {"auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}},
        {"trust_remote_code": True},
        {"dtype": "os.system"},
        {"architectures": ["os.system"]},
    ],
    ids=brief,
)
def test_what_a_base_asks_to_be_run_is_left_out(adapter, change, monkeypatch):
    asked = []
    from_pretrained = PreTrainedModel.from_pretrained.__func__

    def seen(cls, *args, config, **options):
        asked.append(config)
        return from_pretrained(cls, *args, config=config, **options)

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", classmethod(seen))
    edit(adapter.parent / "base/config.json", change)
    load_denoiser(str(adapter), device="cpu")
    load_causal(adapter.parent / "base")
    assert len(asked) == 2
    assert all("evil" not in str(config.to_dict()) for config in asked)
    assert {config._attn_implementation for config in asked} <= {None, "sdpa", "eager"}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "are quantised already"),
        ({"num_hidden_layers": 10**8}, r"num_hidden_layers must be in 1\.\.1000"),
        ({"vocab_size": HUGE}, "parameters, and the files have"),
        ({"head_dim": 10**9}, "parameters, and the files have"),
        ({"rope_parameters": {"rope_type": "evil"}}, "cannot be loaded|is no llama"),
        ({"hidden_size": "32"}, "is no llama"),
    ],
    ids=brief,
)
def test_a_base_with_impossible_values_is_refused(adapter, change, match):
    edit(adapter.parent / "base/config.json", change)
    refused(adapter, match)


# Adapters


@pytest.mark.parametrize(
    "change",
    [
        {"megatron_core": "evil", "megatron_config": {"a": 1}},
        {"auto_mapping": {"parent_library": "evil", "base_model_class": "X"}},
        {"target_modules": r"(a+)+$"},
        {"layers_pattern": r"(a+)+$", "layers_to_transform": [0]},
        {"init_lora_weights": "pissa"},
        {"base_model_name_or_path": "evil/base", "revision": "x"},
    ],
    ids=brief,
)
def test_what_an_adapter_asks_to_be_run_is_left_out(adapter, change):
    truth = load_denoiser(str(adapter), device="cpu").model.state_dict()
    edit(adapter / "adapter_config.json", change)
    weights = load_denoiser(str(adapter), device="cpu").model.state_dict()
    assert all(torch.equal(weights[name], truth[name]) for name in truth)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"peft_type": "PROMPT_TUNING", "tokenizer_kwargs": {}}, "peft_type must be one of LORA"),
        ({"r": 10**9}, "has rank 1000000000, and no weights of more than 32 rows"),
        ({"r": "x"}, "r must be of type int, got 'x'"),
        ({"lora_alpha": "x"}, "lora_alpha must be a number, got 'x'"),
        ({"rank_pattern": {"(a+)+$": 3}}, "rank_pattern"),
        ({"modules_to_save": ["(a+)+$"]}, "modules_to_save"),
        ({"layer_replication": [[0, 2], [0, 2]]}, "layer_replication"),
        ({"use_dora": "yes"}, "use_dora must be of type bool"),
    ],
    ids=brief,
)
def test_an_adapter_with_impossible_values_is_refused(adapter, change, match):
    edit(adapter / "adapter_config.json", change)
    refused(adapter, match)


def test_an_adapter_of_another_model_is_refused(adapter):
    state = {"base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight": torch.zeros(2, 32)}
    save_file(state, adapter / "adapter_model.safetensors")
    refused(adapter, r"the adapter in .* cannot be loaded")
    save_file({"x": torch.zeros(1)}, adapter / "adapter_model.safetensors")
    refused(adapter, "holds no weights of a LoRA")
    (adapter / "adapter_model.safetensors").write_bytes(b"none")
    refused(adapter, r"the adapter in .* cannot be loaded")
