import json
from pathlib import Path

import pytest
from tiny_models import MASK, byte_tokenizer

from dspy_diffusion_infill.denoisers.checkpoints.tokenizer import find_mask_id, load_tokenizer
from dspy_diffusion_infill.errors import DenoiserError, MissingMaskTokenError


def save_as_dream_does(folder: Path) -> None:
    """Vocabulary and merges apart, special tokens in the config, and a class of its own."""
    tokenizer = byte_tokenizer()
    (folder / "merges.txt").write_text("#version: 0.2\n")
    plain = {t: k for t, k in tokenizer.get_vocab().items() if k < 256}
    (folder / "vocab.json").write_text(json.dumps(plain), encoding="utf-8")
    added = {
        str(k): {"content": token.content, "special": True, "normalized": False}
        for k, token in tokenizer.added_tokens_decoder.items()
    }
    config = {
        "added_tokens_decoder": added,
        "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
        "chat_template": "{{ messages[0]['content'] }}",
        "eos_token": "<|im_end|>",
        "mask_token": MASK,
        "tokenizer_class": "DreamTokenizer",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def test_dreams_vocabulary_and_merges_make_a_tokenizer(tmp_path):
    save_as_dream_does(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    truth = byte_tokenizer()
    for text in ("plain", "a<|im_start|>b", "wörld €", MASK):
        assert tokenizer(text)["input_ids"] == truth(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.mask_token_id == truth.convert_tokens_to_ids(MASK)
    assert tokenizer.chat_template == "{{ messages[0]['content'] }}"


def test_a_published_chat_template_is_kept(tmp_path):
    byte_tokenizer().save_pretrained(tmp_path)
    for path in tmp_path.glob("*.jinja"):
        path.unlink()
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": "{{ 1 }}"}))
    assert load_tokenizer(tmp_path).chat_template == "{{ 1 }}"


def test_a_folder_without_a_tokenizer(tmp_path):
    with pytest.raises(DenoiserError, match=r"holds no tokenizer: put .* tokenizer\.json there"):
        load_tokenizer(tmp_path)


def test_the_config_names_the_mask_before_the_tokenizer_does(tmp_path):
    tokenizer = byte_tokenizer()
    assert find_mask_id(tokenizer, 7, tmp_path) == 7
    with pytest.raises(MissingMaskTokenError, match="names no mask token"):
        find_mask_id(tokenizer, None, tmp_path)
    tokenizer.add_special_tokens({"mask_token": MASK})
    assert find_mask_id(tokenizer, None, tmp_path) == tokenizer.convert_tokens_to_ids(MASK)
