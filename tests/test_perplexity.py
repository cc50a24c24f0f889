import itertools
import math
import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference.perplexity_truth import nelbo_by_enumeration
from tiny_models import MASK, save_causal

from dspy_diffusion_infill.denoisers import (
    Denoiser,
    Encoding,
    Infilled,
    ScoreRequest,
    load_denoiser,
)
from dspy_diffusion_infill.denoisers.checkpoints.masked_diffusion import Settings
from dspy_diffusion_infill.errors import ContextTooLongError
from dspy_diffusion_infill.training import perplexity
from dspy_diffusion_infill.training.diffusion_perplexity import row_perplexity
from dspy_diffusion_infill.training.rows import Row

LETTERS = "abc"
LENGTH = 4


class JointDenoiser:
    """A denoiser over the letters a, b, c that knows a joint distribution of 4-letter responses.

    Its conditionals are exact, so the diffusion NELBO of a response is its true negative
    log-likelihood: the chain rule holds in every order of the tokens. ``noise`` makes them
    inconsistent, as a real model's are.
    """

    name = "joint"
    context_length = 40
    mask_id = 255
    num_passes = 0

    def __init__(self, seed: int, noise: float = 0.0) -> None:
        rng = random.Random(seed)
        weights = {w: rng.random() ** 3 for w in itertools.product(LETTERS, repeat=LENGTH)}
        self.joint = {w: x / sum(weights.values()) for w, x in weights.items()}
        self.noise = noise
        self.num_scored = 0

    def encode(self, text: str) -> Encoding:
        return Encoding(tuple(text.encode()), tuple((k, k + 1) for k in range(len(text))))

    def decode(self, input_ids: Sequence[int]) -> str:
        return bytes(input_ids).decode()

    def render(self, messages: Sequence[dict[str, str]]) -> str:
        return "".join(f"<{m['role'][0]}>{m['content']}</{m['role'][0]}>" for m in messages)

    def infill(self, requests: Sequence[object], sampling: object) -> list[Infilled]:
        raise NotImplementedError

    def score(self, requests: Sequence[ScoreRequest]) -> list[tuple[float, ...]]:
        self.num_scored += len(requests)
        return [self._score(request) for request in requests]

    def _score(self, request: ScoreRequest) -> tuple[float, ...]:
        tail = len("</a>")
        response = request.input_ids[-tail - LENGTH : -tail]
        assert self.mask_id not in request.input_ids[: -tail - LENGTH], "the prompt is masked"
        seen = {k: chr(i) for k, i in enumerate(response) if i != self.mask_id}
        masked = [k for k in range(LENGTH) if k not in seen]
        fitting = {w: p for w, p in self.joint.items() if all(w[k] == c for k, c in seen.items())}
        scores = []
        for place, target in zip(masked, request.targets, strict=True):
            right = sum(p for w, p in fitting.items() if w[place] == chr(target))
            jitter = self.noise * random.Random(f"{response}/{place}").random()
            scores.append(math.log(right / sum(fitting.values())) - jitter)
        return tuple(scores)


def truth(denoiser: JointDenoiser, response: str, sigma_max: float) -> float:
    ids = denoiser.encode(f"<a>{response}</a>").input_ids

    def nll_of(masked: tuple[int, ...]) -> float:
        noised = tuple(denoiser.mask_id if k - 3 in masked else i for k, i in enumerate(ids))
        targets = tuple(ids[3 + k] for k in masked)
        return -sum(denoiser._score(ScoreRequest(noised, targets)))

    return nelbo_by_enumeration(nll_of, LENGTH, sigma_max)


class JointSequences(JointDenoiser):
    """The same letters, of which two are the prompt and two the response."""

    def _score(self, request: ScoreRequest) -> tuple[float, ...]:
        joined = [*request.input_ids[3:5], *request.input_ids[12:14]]
        as_response = (*b"<a>", *joined, *b"</a>")
        return super()._score(ScoreRequest(as_response, request.targets))


def test_a_sequence_is_masked_in_prompt_and_response_alike():
    denoiser = JointSequences(1, noise=2.0)
    options = {"sigma_max": 3.0, "num_samples": 4000}
    found = perplexity(denoiser, ["ab"], ["ca"], over="sequence", **options)
    expected = truth(JointDenoiser(1, noise=2.0), "abca", 3.0) / LENGTH
    assert found.num_tokens == LENGTH
    assert abs(found.nelbo - expected) < 4 * found.nelbo_standard_error < 0.1
    assert perplexity(denoiser, ["ab"], ["ca"], **options).num_tokens == 2


def test_what_it_is_over_is_one_of_two():
    with pytest.raises(ValueError, match="over must be one of sequence, response, got 'prompt'"):
        perplexity(JointDenoiser(0), ["q"], ["abca"], over="prompt")  # type: ignore[arg-type]


def test_the_fake_is_a_denoiser():
    assert isinstance(JointDenoiser(0), Denoiser)


@pytest.mark.parametrize("sigma_max", [1.0, 3.0, 10.0])
@pytest.mark.parametrize("noise", [0.0, 2.0])
def test_estimate_equals_full_enumeration_within_its_standard_error(sigma_max, noise):
    denoiser = JointDenoiser(1, noise)
    expected = truth(denoiser, "abca", sigma_max) / LENGTH
    estimate = perplexity(denoiser, ["q"], ["abca"], sigma_max=sigma_max, num_samples=4000)
    assert abs(estimate.nelbo - expected) < 4 * estimate.nelbo_standard_error
    assert estimate.nelbo_standard_error < 0.02
    assert estimate.perplexity == pytest.approx(math.exp(estimate.nelbo))


def test_enumeration_of_consistent_conditionals_is_the_true_likelihood():
    # exp(-10) of the mask is never drawn at sigma_max = 10: 5e-5 of some nats.
    denoiser = JointDenoiser(2)
    nll = -math.log(denoiser.joint["b", "a", "a", "c"])
    assert truth(denoiser, "baac", 10.0) == pytest.approx(nll, abs=1e-3)


def test_several_responses_are_pooled_by_token():
    denoiser = JointDenoiser(3)
    both = perplexity(denoiser, ["q", "r"], ["abca", "cccc"], num_samples=64)
    assert both.num_tokens == 2 * LENGTH
    assert both.nelbo == pytest.approx(sum(both.nelbo_of) / 2)


def test_standard_error_is_honest():
    """The spread of 200 estimates is what each of them says, within the error of a spread."""
    denoiser = JointDenoiser(4, noise=2.0)
    runs = [perplexity(denoiser, ["q"], ["abcb"], num_samples=16, seed=k) for k in range(200)]
    mean = sum(run.nelbo for run in runs) / len(runs)
    spread = math.sqrt(sum((run.nelbo - mean) ** 2 for run in runs) / (len(runs) - 1))
    said = math.sqrt(sum(run.nelbo_standard_error**2 for run in runs) / len(runs))
    assert spread == pytest.approx(said, rel=0.2)


@given(seed=st.integers(0, 50), sigma_max=st.floats(0.1, 60))
def test_equal_seeds_give_equal_figures(seed, sigma_max):
    denoiser = JointDenoiser(5)
    runs = [
        perplexity(denoiser, ["q"], ["caba"], sigma_max=sigma_max, num_samples=4, seed=seed)
        for _ in range(2)
    ]
    assert runs[0] == runs[1]


def test_equal_masks_are_scored_once():
    denoiser = JointDenoiser(6)
    perplexity(denoiser, ["q"], ["aaaa"], num_samples=400)
    assert denoiser.num_scored <= 2**LENGTH - 1


@pytest.mark.parametrize(
    ("prompts", "responses", "options", "message"),
    [
        (["q"], [], {}, "one length"),
        ([], [], {}, "one length"),
        (["q"], ["  "], {}, "blank"),
        (["q"], ["abca"], {"num_samples": 3}, "even number"),
        (["q"], ["abca"], {"sigma_max": 0}, "sigma_max"),
    ],
)
def test_wrong_arguments_are_named(prompts, responses, options, message):
    with pytest.raises(ValueError, match=message):
        perplexity(JointDenoiser(0), prompts, responses, **options)


def test_a_text_over_the_context_length_is_an_error():
    with pytest.raises(ContextTooLongError, match="context_length=40"):
        perplexity(JointDenoiser(0), ["q" * 50], ["abca"])


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    """A tiny model behind a chat template that ends a turn with ``<|im_end|>``."""
    folder = save_causal(tmp_path_factory.mktemp("chat"))
    Settings(mask_token=MASK, context_length=256).write(folder)
    return load_denoiser(str(folder), device="cpu", dtype="float32")


def nll_of_a_letter(denoiser: Denoiser, before: str, letter: str, after: str) -> float:
    """Of the letter alone, all else in its place."""
    ids = list(denoiser.encode(before + letter + after).input_ids)
    place = len(denoiser.encode(before).input_ids)
    target, ids[place] = ids[place], denoiser.mask_id
    [[score]] = denoiser.score([ScoreRequest(tuple(ids), (target,))])
    return -score


@pytest.mark.parametrize("response", ["m", "i", "|", "end", "im_end", "assistant", "user", ">"])
def test_a_response_that_a_turn_marker_holds_is_found_in_its_turn(chat, response):
    found = perplexity(chat, [f"Say {response}."], [response], num_samples=2)
    assert found.num_tokens == len(response)
    if len(response) == 1:
        before = f"<|im_start|>user\nSay {response}.<|im_end|>\n<|im_start|>assistant\n"
        nll = nll_of_a_letter(chat, before, response, "<|im_end|>\n")
        assert found.nelbo == pytest.approx(-math.expm1(-10) * nll, rel=1e-6)


def test_the_chat_templates_own_tokens_are_no_part_of_a_sequence(chat):
    found = perplexity(chat, ["Say m."], ["m"], over="sequence", num_samples=2)
    assert found.num_tokens == len("Say m.") + len("m")


def test_all_turns_before_the_response_are_seen(chat):
    turns = (("system", "Be kind."), ("user", "a"), ("assistant", "b"), ("user", "c"))
    rendered = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns)
    row = Row((*turns, ("assistant", "d")))
    nll = nll_of_a_letter(chat, f"{rendered}<|im_start|>assistant\n", "d", "<|im_end|>\n")
    seen = pytest.approx(-math.expm1(-10) * nll, rel=1e-6)  # all but exp(-10) of t masks it
    assert row_perplexity(chat, [row], num_samples=2).nelbo == seen
    alone = perplexity(chat, ["c"], ["d"], num_samples=2)
    assert alone == row_perplexity(chat, [Row((*turns[3:], ("assistant", "d")))], num_samples=2)
    assert alone.nelbo != seen


def test_no_row_is_an_error():
    with pytest.raises(ValueError, match="at least one"):
        row_perplexity(JointDenoiser(0), [])
