from functools import partial

import httpx
import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors.torch import load_file, save_file
from tiny_denoisers import save_published

from dspy_diffusion_infill.denoisers.checkpoints import hub
from dspy_diffusion_infill.errors import DenoiserError, UnknownDenoiserError

RESPONSE = httpx.Response(404, request=httpx.Request("GET", "https://huggingface.co"))


@pytest.mark.parametrize("name", ["no-such-model", "a/b/c", "./nowhere", "/nowhere", "~/nowhere"])
def test_an_unknown_name_lists_the_known_ones(name):
    with pytest.raises(UnknownDenoiserError) as caught:
        hub.find(name)
    assert repr(name) in str(caught.value)
    assert all(known in str(caught.value) for known in [*hub.KNOWN, hub.EMBEDDED])


def test_a_slip_of_the_pen_is_guessed():
    with pytest.raises(UnknownDenoiserError, match=r"did you mean 'llada'\?"):
        hub.find("lada")


@pytest.mark.parametrize(
    ("raised", "error", "message"),
    [
        (GatedRepoError("x", response=RESPONSE), DenoiserError, "accept its terms"),
        (RepositoryNotFoundError("x", response=RESPONSE), UnknownDenoiserError, "no denoiser"),
        (RevisionNotFoundError("x", response=RESPONSE), DenoiserError, "no revision='v9'"),
        (HFValidationError("x"), UnknownDenoiserError, "no denoiser"),
        (LocalEntryNotFoundError("x"), DenoiserError, "hf download GSAI-ML/LLaDA-8B-Instruct"),
        (HfHubHTTPError("x", response=RESPONSE), DenoiserError, "the hub cannot be reached"),
        (OSError("x"), DenoiserError, "use the embedded 'smollm2-fs'"),
    ],
)
def test_what_the_hub_refuses_names_the_fix(monkeypatch, raised, error, message):
    def refuse(*_args, **_options):
        raise raised

    monkeypatch.setattr(hub, "snapshot_download", refuse)
    with pytest.raises(error, match=message):
        hub.find("llada", "v9")


def test_weights_are_fetched_apart_and_code_never(monkeypatch, tmp_path):
    asked = []
    commit = tmp_path / ("c0ffee" * 6)
    commit.mkdir()

    def download(hub_id, *, revision, allow_patterns):
        asked.append((hub_id, revision, allow_patterns))
        return str(commit)

    monkeypatch.setattr(hub, "snapshot_download", download)
    source = hub.find("dream", "main")
    assert source.label == "Dream-org/Dream-v0-Instruct-7B@c0ffeec0ffee"
    assert "*.safetensors" not in asked[0][2]
    hub.fetch_weights(source)
    assert asked[1][:2] == ("Dream-org/Dream-v0-Instruct-7B", commit.name)
    assert "*.safetensors" in asked[1][2]
    assert not any(pattern.endswith(".py") for _, _, patterns in asked for pattern in patterns)


def test_a_folder_goes_before_the_hub(tmp_path, monkeypatch):
    save_published(tmp_path / "org" / "model", "llada")
    monkeypatch.chdir(tmp_path)
    source = hub.find("org/model")
    assert source.hub_id is None
    assert source.label == f"org/model@{hub.fingerprint(source.folder)}"


@pytest.mark.parametrize("name", [hub.EMBEDDED, "."])
def test_a_folder_has_no_revisions(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"use revision=None, got revision='v2'"):
        hub.find(name, "v2")


def test_the_fingerprint_follows_the_weights(tmp_path):
    folder = save_published(tmp_path, "llada")
    before = hub.fingerprint(folder)
    assert hub.fingerprint(folder) == before
    path = folder / "model.safetensors"
    state = load_file(path)
    save_file({name: tensor + 0.5 for name, tensor in state.items()}, path)
    assert hub.fingerprint(folder) != before


@pytest.mark.hub
def test_configs_and_tokenizer_come_from_the_hub_without_code(monkeypatch, tmp_path):
    fresh_cache = partial(hub.snapshot_download, cache_dir=tmp_path)
    monkeypatch.setattr(hub, "snapshot_download", fresh_cache)
    source = hub.find("llada")
    names = {path.name for path in source.folder.iterdir()}
    assert {"config.json", "tokenizer.json"} <= names
    assert not any(name.endswith((".py", ".safetensors")) for name in names)
