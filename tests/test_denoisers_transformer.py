"""The denoiser in a transformer: parity with the published code, its texts, what it refuses."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import sampler_truth
from safetensors.torch import load_file
from tiny_denoisers import MASK_ID, tiny_denoiser

from dspy_diffusion_infill.denoisers import (
    Denoiser,
    InfillRequest,
    Sampling,
    ScoreRequest,
    load_denoiser,
)
from dspy_diffusion_infill.denoisers.transformer import TransformerDenoiser
from dspy_diffusion_infill.errors import ContextTooLongError

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden"
FAMILIES = ["llada", "dream"]
few = settings(deadline=None, max_examples=15)
TEXT_TOKENS = 256  # the byte tokens come first; special and unused ones after them
tokens = st.integers(0, TEXT_TOKENS - 1)


@pytest.fixture(scope="module", params=FAMILIES)
def denoiser(request, tmp_path_factory) -> TransformerDenoiser:
    return tiny_denoiser(tmp_path_factory.mktemp("model"), request.param)


# Parity with the published code


@pytest.fixture(params=FAMILIES)
def golden(request) -> tuple[TransformerDenoiser, dict[str, torch.Tensor]]:
    folder = GOLDEN / f"{request.param}_tiny"
    if not folder.is_dir():
        pytest.skip(f"needs the golden checkpoint {folder.name}")
    return load_denoiser(str(folder)), load_file(folder / "reference.safetensors")


def test_logits_are_those_of_the_published_code(golden):
    denoiser, reference = golden
    logits = denoiser.logits(reference["input_ids"])
    assert logits.dtype == torch.float32
    assert (logits - reference["logits"]).abs().max() <= 1e-4


def test_logits_of_a_padded_batch_are_those_of_the_published_code(golden):
    denoiser, reference = golden
    if "logits_padded" not in reference:
        pytest.skip("no padded reference of this family")
    mask = reference["attention_mask"]
    logits = denoiser.logits(reference["input_ids"], mask)
    assert (logits - reference["logits_padded"]).abs()[mask.bool()].max() <= 1e-4


@pytest.mark.parametrize("forbid_special", [True, False])
def test_decodings_are_those_of_the_published_samplers(golden, forbid_special):
    denoiser, reference = golden
    decodings = {key.split(".", 1)[1]: ids for key, ids in reference.items() if "generate" in key}
    assert decodings
    masks = torch.full((16,), denoiser.mask_id)
    for name, expected in decodings.items():
        algorithm, *numbers = name.split(".")
        options = {part.rstrip("0123456789"): int(part.lstrip("stepblock")) for part in numbers}
        sampling = Sampling(
            steps=options["steps"],
            block_length=options.get("block"),
            algorithm=algorithm,  # type: ignore[arg-type]
            temperature=0.0,
            forbid_special=forbid_special,
        )
        prompts = [InfillRequest(torch.cat([row, masks])) for row in reference["prompt"]]
        filled = [result.input_ids for result in denoiser.infill(prompts, sampling)]
        assert filled == [tuple(row) for row in expected.tolist()], name


@few
@given(
    text=st.lists(tokens, min_size=2, max_size=20),
    places=st.sets(st.integers(1, 20), min_size=4, max_size=4),
    steps=st.sampled_from([2, 4, 6]),
    algorithm=st.sampled_from(["low_confidence", "entropy", "maskgit_plus", "topk_margin"]),
    block_length=st.sampled_from([2, 4]),
)
def test_masks_anywhere_are_filled_as_the_samplers_say(
    denoiser, text, places, steps, algorithm, block_length
):
    ids = list(text)
    for place in sorted(places):
        ids.insert(min(place, len(ids)), MASK_ID)
    forbidden = set(range(TEXT_TOKENS, denoiser.model.config.vocab_size))

    def logits(ids: list[int]) -> list[list[float]]:
        return denoiser.logits(torch.tensor([ids]))[0].tolist()

    if algorithm == "low_confidence":
        truth = sampler_truth.llada(
            ids, MASK_ID, forbidden, logits, steps=steps, block_length=block_length
        )
    else:
        block_length = None
        truth = sampler_truth.dream(
            ids, MASK_ID, forbidden, logits, steps=steps, algorithm=algorithm
        )
    sampling = Sampling(
        steps=steps, temperature=0.0, algorithm=algorithm, block_length=block_length
    )
    [result] = denoiser.infill([InfillRequest(ids)], sampling)
    assert list(result.input_ids) == truth


# Text


@few
@given(text=st.text(max_size=40))
def test_offsets_span_the_text_and_tokens_decode_to_it(denoiser, text: str):
    encoding = denoiser.encode(text)
    assert denoiser.decode(encoding.input_ids) == text
    ends = [end for _, end in encoding.offsets]
    assert ends == sorted(ends)
    assert not text or (encoding.offsets[0][0] == 0 and ends[-1] == len(text))


def test_special_tokens_in_a_text_are_known_and_none_is_added(denoiser):
    encoding = denoiser.encode("a<|im_start|>b")
    assert denoiser.decode(encoding.input_ids[1:2]) == "<|im_start|>"
    assert encoding.offsets == ((0, 1), (1, 13), (13, 14))


def test_messages_are_rendered_by_the_chat_template(denoiser):
    user = {"role": "user", "content": "hi"}
    assert denoiser.render([user]) == ("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
    assert denoiser.render([user, {"role": "assistant", "content": "yes"}]) == (
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"
    )


def test_messages_without_a_chat_template_have_the_role_in_front(denoiser, monkeypatch):
    monkeypatch.setattr(denoiser.tokenizer, "chat_template", None)
    user = {"role": "user", "content": "hi"}
    assert denoiser.render([user]) == "User: hi\n\nAssistant:"
    assert denoiser.render([user, {"role": "assistant", "content": "yes"}]) == (
        "User: hi\n\nAssistant: yes"
    )


# Wrong input


def test_what_does_not_fit_the_context_is_refused(denoiser):
    ids = [1] * 96 + [MASK_ID]
    for call in (
        lambda: denoiser.infill([InfillRequest(ids)], Sampling()),
        lambda: denoiser.score([ScoreRequest(ids, [1])]),
        lambda: denoiser.logits(torch.tensor([ids])),
    ):
        with pytest.raises(ContextTooLongError, match="97 tokens do not fit the 96 of"):
            call()


def test_ids_outside_the_vocabulary_are_refused(denoiser):
    with pytest.raises(ValueError, match=r"token ids must be in 0\.\."):
        denoiser.infill([InfillRequest([1, 10_000])], Sampling())


def test_a_request_is_one_text(denoiser):
    with pytest.raises(ValueError, match=r"must be one text, got a tensor of shape \(2, 3\)"):
        denoiser.infill([InfillRequest(torch.zeros(2, 3, dtype=torch.long))], Sampling())


def test_it_is_a_denoiser(denoiser):
    assert isinstance(denoiser, Denoiser)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("steps", 0),
        ("temperature", -0.1),
        ("block_length", 0),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("top_k", 0),
    ],
)
def test_sampling_names_the_option_that_is_out_of_range(option, value):
    with pytest.raises(ValueError, match=f"got {option}={value}"):
        Sampling(**{option: value})


# Text that spells out the mask token


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_no_text_is_ever_read_as_a_mask(denoiser, data):
    mask = denoiser.decode([denoiser.mask_id])
    pieces = st.sampled_from([mask, mask[:3], mask[3:], "a", " b", "€", "<|im_start|>", "\n"])
    text = "".join(data.draw(st.lists(pieces, max_size=8)))
    encoding = denoiser.encode(text)
    assert denoiser.mask_id not in encoding.input_ids
    assert denoiser.decode(encoding.input_ids) == text
    ends = [end for _, end in encoding.offsets]
    assert ends == sorted(ends) and (not text or ends[-1] == len(text))
    im_start = denoiser.tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert encoding.input_ids.count(im_start) == text.count("<|im_start|>")


def test_half_of_a_surrogate_pair_is_named(denoiser):
    with pytest.raises(ValueError, match=r"the text holds \\ud83d, half of a surrogate pair"):
        denoiser.encode("cut off \ud83d")
