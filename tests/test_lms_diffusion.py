import asyncio
import copy
from concurrent.futures import ThreadPoolExecutor

import dspy
import pytest
import torch
from doubles import CharacterDenoiser
from dspy import lm15
from dspy.clients.cache import Cache
from dspy.utils.exceptions import ContextWindowExceededError
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from dspy_diffusion_infill.denoisers.checkpoints.checkpoint import Checkpoint
from dspy_diffusion_infill.denoisers.protocol import Infilled
from dspy_diffusion_infill.denoisers.transformer import TransformerDenoiser
from dspy_diffusion_infill.lms import batching
from dspy_diffusion_infill.lms import diffusion as lm_module
from dspy_diffusion_infill.lms.diffusion import diffusion_lm
from dspy_diffusion_infill.template_adapter import TemplateAdapter

SPECIAL = ("<|mask|>", "<|im_start|>", "<|im_end|>", "<|endoftext|>")
TEMPLATE = (
    "{% for m in messages %}<|im_start|> {{m['role']}} {{m['content']|trim}} <|im_end|> "
    "{% endfor %}{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)


@pytest.fixture(scope="module")
def denoiser() -> TransformerDenoiser:
    """A random model over a word-level vocabulary."""
    words = [*SPECIAL, "user", "assistant", "system", "plural", "of", "dog", "dogs", "?", "\ue000"]
    vocabulary = {word: k for k, word in enumerate([*words, "<unk>"])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        additional_special_tokens=list(SPECIAL),
        chat_template=TEMPLATE,
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    config.is_causal = False
    checkpoint = Checkpoint(
        model=LlamaForCausalLM(config).eval(),
        tokenizer=tokenizer,
        mask_id=0,
        shift=False,
        context_length=64,
        algorithm="low_confidence",
        temperature=1.0,
    )
    return TransformerDenoiser(checkpoint, name="tiny@1:float32")


def ask(lm: dspy.LM, text: str = "plural of dog ?", **config) -> lm15.Response:
    settings = lm15.Config(**{"max_tokens": 8, **config})
    return lm(lm15.Request(lm.model, (lm15.Message.user(text),), config=settings))


class Scripted(CharacterDenoiser):
    """Writes its answer into the masks."""

    name, context_length = "scripted", 200

    def __init__(self, answer: str) -> None:
        self.answer = answer
        self.seen: list[str] = []
        self.sampling = None

    def infill(self, requests, sampling):
        self.sampling = sampling
        (request,) = requests
        self.seen.append(self.decode(k or ord("_") for k in request.input_ids))
        answer = iter(self.answer.ljust(500, "."))
        ids = (k or ord(next(answer)) for k in request.input_ids)
        return [Infilled(tuple(ids), 1.0, 1)]

    def score(self, requests):
        raise NotImplementedError


# The request, the answer


def test_the_masks_follow_the_generation_prompt():
    denoiser = Scripted("dogs$")
    answer = ask(diffusion_lm(denoiser, cache=False), "dog?")
    assert denoiser.seen == ["<user>dog?$\n<assistant>________"]
    assert answer.text == "dogs"
    assert answer.finish_reason == "stop"
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (23, 4)


def test_the_end_of_the_turn_may_be_drawn_and_options_arrive():
    denoiser = Scripted("x$")
    lm = diffusion_lm(
        denoiser, steps=7, block_length=4, algorithm="entropy", temperature=0.5, cache=False
    )
    lm("Hi")
    sampling = denoiser.sampling
    assert sampling.forbid_special is False
    assert (sampling.steps, sampling.block_length, sampling.algorithm) == (7, 4, "entropy")
    assert sampling.temperature == 0.5
    assert denoiser.seen[0].count("_") == 128


def test_an_answer_that_never_ends_is_reported_as_cut():
    answer = ask(diffusion_lm(Scripted("abc"), cache=False), max_tokens=5)
    assert (answer.text, answer.finish_reason) == ("abc..", "length")


def test_stop_texts_end_the_answer():
    answer = ask(diffusion_lm(Scripted("ab\ncd$"), cache=False), stop=("\n",))
    assert (answer.text, answer.finish_reason) == ("ab", "stop")


def test_a_predictor_gets_its_field():
    signature = dspy.Signature("word -> plural", "Plural?\n\nInput: {word}\nOutput:")
    with dspy.context(lm=diffusion_lm(Scripted("dogs$"), cache=False), adapter=TemplateAdapter()):
        assert dspy.Predict(signature)(word="dog").plural == "dogs"


def test_what_does_not_fit_is_dspys_own_error():
    with pytest.raises(ContextWindowExceededError, match="max_tokens=195 do not fit the 200"):
        diffusion_lm(Scripted("x"), max_tokens=195, cache=False)("Hi")


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 0},
        {"block_length": 0},
        {"max_tokens": 0},
        {"temperature": -1.0},
        {"max_batch": 0},
    ],
)
def test_an_option_out_of_range_is_an_error(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        diffusion_lm(Scripted("x"), **options)


NO_NUMBERS = [
    ("max_batch", 1.0),
    ("max_tokens", 2.5),
    ("max_tokens", True),
    ("max_tokens", "5"),
    ("temperature", "1"),
]


@pytest.mark.parametrize(("option", "value"), [*NO_NUMBERS, ("temperature", float("nan"))])
def test_an_option_that_is_no_such_number_is_an_error(option, value):
    with pytest.raises((TypeError, ValueError), match=f"{option} must be .*got"):
        diffusion_lm(Scripted("x"), **{option: value})


def test_the_name_holds_model_and_options():
    name = diffusion_lm(Scripted("x"), steps=4, block_length=2).model
    assert name == "diffusion/scripted/steps=4/block_length=2"


# Samples


def test_greedy_answers_repeat(denoiser):
    lm = diffusion_lm(denoiser, temperature=0.0, cache=False)
    assert len({ask(lm, temperature=0.0).text for _ in range(3)}) == 1


def test_samples_are_fresh_and_programs_repeat(denoiser):
    first, second = (
        [ask(lm, temperature=1.0).text for _ in range(6)]
        for lm in (diffusion_lm(denoiser, cache=False), diffusion_lm(denoiser, cache=False))
    )
    assert first == second
    assert len(set(first)) > 1


def test_a_seed_decides_the_sample(denoiser):
    lm = diffusion_lm(denoiser, cache=False)
    assert len({ask(lm, temperature=1.0, seed=3).text for _ in range(3)}) == 1
    assert len({ask(lm, temperature=1.0, seed=k).text for k in range(6)}) > 1


def test_rollouts_pass_the_cache(denoiser, monkeypatch):
    in_memory = Cache(enable_disk_cache=False, enable_memory_cache=True, disk_cache_dir=None)
    monkeypatch.setattr(dspy, "cache", in_memory)
    lm = diffusion_lm(denoiser, temperature=1.0, max_tokens=8)
    text = "plural of dog ?"
    assert lm(text) == lm(text)
    assert len({lm(text, rollout_id=k)[0] for k in range(6)}) > 1
    assert lm(text, rollout_id=2) == lm(text, rollout_id=2)


def test_threads_get_what_they_would_get_alone(denoiser):
    texts = [f"plural of {'dog ' * k}?" for k in range(6)]

    def answer(text):
        return ask(lm, text, temperature=1.0).text

    lm = diffusion_lm(denoiser, cache=False)
    alone = list(map(answer, texts))
    lm = diffusion_lm(denoiser, cache=False)
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(answer, texts)) == alone


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_eight_rows_take_the_passes_of_one_and_answer_as_alone(
    denoiser, monkeypatch: pytest.MonkeyPatch, temperature
):
    monkeypatch.setattr(batching, "QUIET", 60)  # a batch is full before it starts
    together = TransformerDenoiser(denoiser.checkpoint, name="x", tokens_per_batch=8 * 64)
    rows_of_passes: list[int] = []
    hook = together.model.register_forward_pre_hook(
        lambda model, args, inputs: rows_of_passes.append(len(inputs["input_ids"])),
        with_kwargs=True,
    )

    def answer(lm, k):
        text = f"plural of {'dog ' * k}?"
        return ask(lm, text, temperature=temperature, max_tokens=4 + 4 * (k % 2)).text

    with hook, ThreadPoolExecutor(8) as threads:
        lm = diffusion_lm(together, cache=False)
        found = list(threads.map(lambda k: answer(lm, k), range(8)))
    assert rows_of_passes == [8] * 4 + [4] * 4
    lm = diffusion_lm(denoiser, cache=False, max_batch=1)
    assert found == [answer(lm, k) for k in range(8)]
    assert len(set(found)) > 1


def test_calls_of_other_temperatures_stand_in_one_batch(denoiser, monkeypatch):
    monkeypatch.setattr(batching, "QUIET", 60)
    heats = (0.0, 1.0, 0.0, 2.0)
    lm = diffusion_lm(denoiser, cache=False, max_batch=4)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda t: ask(lm, temperature=t, seed=5).text, heats))
    lm = diffusion_lm(denoiser, cache=False, max_batch=1)
    assert found == [ask(lm, temperature=t, seed=5).text for t in heats]


def test_async_calls_answer():
    lm = diffusion_lm(Scripted("dogs$"), cache=False)
    assert asyncio.run(lm.acall("Hi")) == ["dogs"]


# Copies and files


def test_copies_share_the_model(denoiser):
    program = dspy.Predict("word -> plural")
    program.lm = diffusion_lm(denoiser)
    assert copy.deepcopy(program).lm.engine.denoiser is denoiser


def test_a_program_saves_and_loads_with_a_named_denoiser(tmp_path, monkeypatch):
    loaded: list[str | None] = []

    def load(name):
        loaded.append(name)
        return Scripted(f"{name}$")

    monkeypatch.setattr(lm_module, "load_denoiser", load)
    program = dspy.Predict("word -> plural")
    program.lm = diffusion_lm("a/folder", steps=4, cache=False, max_batch=3)
    program.save(tmp_path / "program.json")
    twin = dspy.Predict("word -> plural")
    twin.load(tmp_path / "program.json", allow_unsafe_lm_state=True)
    assert twin.lm.model == program.lm.model
    assert twin.lm.engine.dump_state() == program.lm.engine.dump_state()
    assert twin.lm.engine.dump_state()["max_batch"] == 3
    assert twin.lm("Hi") == ["a/folder"]
    assert loaded == ["a/folder"]


def test_a_denoiser_object_cannot_be_saved(denoiser, tmp_path):
    program = dspy.Predict("word -> plural")
    program.lm = diffusion_lm(denoiser)
    with pytest.raises(TypeError, match="name or folder"):
        program.save(tmp_path / "program.json")
