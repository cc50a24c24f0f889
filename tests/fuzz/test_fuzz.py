"""Bytes from anywhere: whatever reads them takes them, or refuses them with a clear error.

``make test`` tries 500 inputs, always the same ones; ``make fuzz`` tries 20,000 new ones and allows
each a second. An input is a valid one that was cut, repeated, mixed and strewn with what parsers
stumble over, or bytes at random. What was found is listed below, so that it stays mended.
"""

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

import dspy
import httpx
import openai
import pytest
from doubles import WordDenoiser
from dspy.utils.exceptions import AdapterParseError
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from synthetic_results import synthetic

from dspy_diffusion_infill.denoisers.protocol import InfillRequest, Sampling, ScoreRequest
from dspy_diffusion_infill.denoisers.remote.denoiser import RemoteDenoiser
from dspy_diffusion_infill.denoisers.remote.wire import Facts
from dspy_diffusion_infill.errors import DataError, DenoiserError, DiffusionInfillError
from dspy_diffusion_infill.evaluation.rows import read_rows
from dspy_diffusion_infill.evaluation.verdicts import read_verdict
from dspy_diffusion_infill.journal import Journal
from dspy_diffusion_infill.optimizer.run_files import read_run
from dspy_diffusion_infill.optimizer.run_journal import JournaledRuns
from dspy_diffusion_infill.optimizer.trace_json import TraceJson
from dspy_diffusion_infill.report.page import page
from dspy_diffusion_infill.scorers.protocol import ScoredPair
from dspy_diffusion_infill.scorers.server import ServerScorer
from dspy_diffusion_infill.template_adapter import TemplateAdapter
from dspy_diffusion_infill.training import recipe
from dspy_diffusion_infill.training.options import SourceOptions
from dspy_diffusion_infill.training.probe import read_probe_rows
from dspy_diffusion_infill.training.sources import read_source

NIGHTLY = "FUZZ_INPUTS" in os.environ
NUM_INPUTS = int(os.environ.get("FUZZ_INPUTS", "500"))
NUM_TARGETS = 10

STUMBLES = [
    *(
        b"",
        b"\0",
        b"\xff",
        b"\xed\xa0\x80",
        b"\xef\xbb\xbf",
        b"\n",
        b"\r",
        b" ",
        b"\t",
        b'"',
        b"\\",
    ),
    *(b"NaN", b"-Infinity", b"1e999", b"9" * 5000, b"-0", b"null", b"true", b"\\ud800", b"\\u0000"),
    *(b"[", b"]", b"{", b"}", b":", b",", b"[[]]", b"{}", b'{"a":', b"- ", b"? ", b"&a ", b"*a"),
    *(
        b"!!python/object/apply:os.system ['x']",
        b"!!int ''",
        b"!!timestamp x",
        b"!!bool x",
        b"<<: ",
    ),
    *(b"{text.__class__}", b"{0.__init__}", b"{{text}}", b"{text!r:>9999999}", b"%s", b"${x}"),
    *(
        b"{% for x in y %}",
        b"{{ x.__class__ }}",
        b"../",
        b"/etc/passwd",
        b"[RESULT]",
        b"Score: ",
        b"/5",
    ),
    *("\u2028".encode(), "٣".encode(), "²".encode(), "ﬁ".encode(), "İ".encode(), "👩‍👩‍👧".encode()),
]


@st.composite
def mutated(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """One of the seeds after a few changes, each at a place of its own."""
    data = draw(st.sampled_from(seeds))
    place = st.floats(0, 1, width=32)
    for _ in range(draw(st.integers(0, 6))):
        start = int(draw(place) * len(data))
        end = min(len(data), start + draw(st.sampled_from([0, 0, 1, 2, 8, 64])))
        part = draw(st.sampled_from(STUMBLES) | st.binary(max_size=8))
        change = draw(st.sampled_from(["replace", "repeat", "copy", "cut", "flip"]))
        if change == "repeat":
            part *= draw(st.sampled_from([2, 50, 3000]))
        elif change == "copy":
            part = data[start:] * 2
        elif change == "cut":
            part, end = b"", len(data) if draw(st.booleans()) else end
        elif change == "flip":
            part = bytes(byte ^ draw(st.integers(1, 255)) for byte in data[start : start + 1])
            end = start + len(part)
        data = data[:start] + part + data[end:]
        data = data[:200_000]
    return data


FUZZ = settings(
    max_examples=max(NUM_INPUTS // NUM_TARGETS, 1),
    deadline=1000 if NIGHTLY else None,
    derandomize=not NIGHTLY,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def inputs(*seeds: bytes) -> st.SearchStrategy[bytes]:
    return mutated(list(seeds)) | st.binary(max_size=200)


def check(
    action: Callable[[], Any], *kinds: type[Exception], naming: str = "", longest: int = 3000
) -> None:
    """Runs it. An error must be of one of the kinds, name where it is, and be short."""
    try:
        action()
    except kinds as error:
        text = str(error)
        assert text.strip()
        assert naming in text
        assert len(text) < longest


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


# Files

IDENTITY = {"seed": 0, "version": "1"}
RUN = {"usage": [["m", 1, 2]], "score": 1.0}
TRACE = {"self": [{"text": {"row": 0}}, {"label": {"value": "a"}}]}
STEP = dspy.Predict("text -> label")
JOURNAL = "".join(
    json.dumps(line) + "\n"
    for line in (
        {"identity": IDENTITY},
        {"key": "a 0", "about": "trial", "value": RUN},
        {"key": "a 1", "about": "trial", "value": {"usage": [], "failure": ["why", "raised"]}},
        {"key": "b 0", "about": "baseline", "value": {**RUN, "trace": TRACE}},
    )
).encode()


@FUZZ
@given(data=inputs(JOURNAL))
def test_a_journal(folder, data):
    path = folder / "journal.jsonl"
    path.write_bytes(data)

    def resume() -> None:
        journal = Journal(path, identity=IDENTITY)
        JournaledRuns(journal, "a", 2, about="trial")
        traces = TraceJson(STEP, STEP, ["self"], [dspy.Example(text="row 0")])
        JournaledRuns(journal, "b", 1, about="baseline", traces=traces)
        journal.put("c", 1, about="c")
        assert Journal(path, identity=IDENTITY).get("c") == 1

    check(resume, DataError, ValueError, naming=str(folder))


RESULTS = synthetic(2, num_rows=4)
RUN_JSON = json.dumps(asdict(RESULTS) | {"trials": [], "refused": []}, default=str).encode()
EVENTS = "".join(
    json.dumps({"event": kind, **asdict(one)}) + "\n"
    for kind, events in (("trial", RESULTS.trials), ("refused", RESULTS.refused[:2]))
    for one in events
).encode()


@FUZZ
@given(run=inputs(RUN_JSON), events=inputs(EVENTS), which=st.sampled_from(["run", "events"]))
def test_the_records_of_a_search(folder, run, events, which):
    """One of the two files is damaged; what can be read has a page and a summary."""
    (folder / "run.json").write_bytes(run if which == "run" else RUN_JSON)
    (folder / "events.jsonl").write_bytes(events if which == "events" else EVENTS)

    def show() -> None:
        results = read_run(folder)
        assert page(results) and str(results)

    check(show, DataError, naming=str(folder))


ROWS = [
    b'{"prompt": "Plural of dog?", "response": "dogs"}\n' * 3,
    b'{"text": "The cat sat.", "start": 4, "end": 7}\n',
    b'{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}\n',
    b'{"examples": [{"prompt": "a", "response": "b"}, {"prompt": "c", "response": "d"}]}\n',
    b'{"instruction": "i", "orig_criteria": "c", "orig_score": "3", "orig_feedback": "f"}\n',
]


@FUZZ
@given(data=inputs(*ROWS))
@example(data=b'{"prompt": "p", "' + b"NaN" * 3000 + b'": 1}')
def test_rows(folder, data):
    path = folder / "rows.jsonl"
    path.write_bytes(data)
    for reader in (
        lambda: [record.text("prompt") for record in read_rows(path)],
        lambda: [record.number_of("start", low=0, high=9) for record in read_rows(path)],
        lambda: read_probe_rows(path),
        lambda: read_source(SourceOptions(path=str(path))),
    ):
        check(reader, DataError, naming="rows.jsonl")


SMALL = b"""\
name: small
model: {base: smollm2-fs, form: lora, lora: {rank: 8, alpha: 16, target_modules: [q_proj]}}
data: {sources: [{path: rows.jsonl, weight: 1.0}], max_length: 256}
optimizer: {learning_rate: 1.0e-4, batch_size: 4}
stages: [{name: fs, steps: 10, masking: {full_sequence: 1.0}}]
"""
RECIPES = [SMALL, (Path(str(recipe._FOLDER)) / "dream-fs-lora.yaml").read_bytes()]


@FUZZ
@given(data=inputs(*RECIPES))
@example(data=b"[" * 3000)
@example(data=b"- " * 3000)
@example(data=b"a: {" * 3000)
def test_a_recipe(folder, data):
    path = folder / "recipe.yaml"
    path.write_bytes(data)
    check(lambda: recipe.load_recipe(path), ValueError, naming="recipe")


@FUZZ
@given(data=inputs(b"stages.0.steps=10", b"model.lora={rank: 2}", b"data.sources=[]", b"seed=1"))
def test_an_override_of_a_recipe(folder, data):
    path = folder / "small.yaml"
    path.write_bytes(SMALL)
    check(lambda: recipe.load_recipe(path, [data.decode("utf-8", "replace")]), ValueError)


# Answers of LMs

VERDICTS = [b"Feedback: good. [RESULT] 4.2", b"Score: 3 out of 5.", b"So the result is (4/5)", b"5"]


@FUZZ
@given(data=inputs(*VERDICTS))
@example(data=b"[result] 1" + b" " * 100_000 + b"x")
@example(data=b"score" + b" " * 100_000 + b"x")
def test_a_verdict(data):
    text = data.decode("utf-8", "replace")
    verdict = read_verdict(text)
    assert (verdict.score is None) != (verdict.problem is None)
    assert verdict.score is None or 1 <= verdict.score <= 5


class Answer(dspy.Signature):
    """Classify {text}."""

    text: str = dspy.InputField()
    label: Literal["yes", "no", "not sure"] = dspy.OutputField()
    number: int = dspy.OutputField()
    items: list[dict[str, float]] = dspy.OutputField()
    note: str | None = dspy.OutputField()


ANSWERS = [
    b'Label: yes\nNumber: 3\nItems: [{"a": 1.5}]\nNote: none',
    b"Say {text}, or {{text}} as in {text.real}.\n\nInput: {text}\nLabel:",
    b'no; 3; [{"a": 1.5}]; none',
]
ADAPTERS = [
    TemplateAdapter(),
    TemplateAdapter(
        pattern=r"\A(?P<label>[^;]*);(?P<number>[^;]*);(?P<items>[^;]*);(?P<note>[^;]*)",
        response="{label};{number};{items};{note}",
    ),
]


@FUZZ
@given(data=inputs(*ANSWERS))
def test_a_template_and_what_comes_back(data):
    text = data.decode("utf-8", "surrogateescape")
    signature = Answer.with_instructions(data.decode("utf-8", "replace"))
    for adapter in ADAPTERS:
        # DSPy's error holds the whole answer.
        check(partial(adapter.parse, Answer, text), AdapterParseError, longest=10**6)
        demos = [{"text": text, "label": "yes", "number": 1, "items": [], "note": text}]
        check(partial(adapter.format, signature, demos, {"text": text}), ValueError)


def completion(**extra: Any) -> bytes:
    message = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": ""}}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    body = {"id": "1", "object": "chat.completion", "created": 0, "model": "m"}
    return json.dumps(body | {"choices": [message], "usage": usage} | extra).encode()


@pytest.fixture(scope="module")
def scorer() -> ServerScorer:
    """It gets ``answer`` to every request."""

    def respond(_request: httpx.Request) -> httpx.Response:
        kind = {"content-type": "application/json"}
        return httpx.Response(200, content=scorer.answer, headers=kind)

    scorer: Any = ServerScorer(
        dspy.LM("hosted_vllm/m", api_base="http://127.0.0.1:1/v1", api_key="x")
    )
    client = httpx.Client(transport=httpx.MockTransport(respond))
    scorer._client = scorer._client.copy(http_client=client, max_retries=0)
    return scorer


LOGPROBS = [{"7": {"logprob": -0.5, "rank": 1}}] * 3


@FUZZ
@given(data=inputs(completion(), completion(prompt_logprobs=[None, *LOGPROBS])))
@example(data=b"[" * 100_000)
def test_an_http_body(scorer, data):
    scorer.answer = data
    pair = ScoredPair(messages=({"role": "user", "content": "Hi"},), response="Ho")
    check(lambda: scorer.log_likelihoods([pair]), DiffusionInfillError, openai.OpenAIError)


# A served denoiser


@pytest.fixture(scope="module")
def client():
    pytest.importorskip("fastapi", reason="needs the extra serve")
    pytest.importorskip("prometheus_client", reason="needs the extra serve")
    from served import TOKEN, served

    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    with (
        served(WordDenoiser(), body_bytes=250_000) as running,
        httpx.Client(base_url=running.url, headers=headers) as client,
    ):
        yield client


NAMED = b'{"denoiser": "word-denoiser", "items": ['
BODIES = {
    "infill": NAMED + b'{"input_ids": [0, -1, 0], "seed": 1}], "sampling": {"steps": 4}}',
    "score": NAMED + b'{"input_ids": [0, -1], "targets": [0]}]}',
    "encode": NAMED + b'"one", "two words"]}',
    "decode": NAMED + b"[0, 1, -1], [5]]}",
    "render": NAMED + b'[{"role": "user", "content": "Hi"}]]}',
}


@FUZZ
@given(work=st.sampled_from(list(BODIES)), data=st.data())
def test_a_request_to_a_server(client, work, data):
    body = data.draw(inputs(BODIES[work]))
    answer = client.post(f"/v1/{work}", content=body)
    assert answer.status_code in (200, 400, 409, 413, 422), answer.text
    said = answer.json()
    assert set(said) == {"results", "num_passes"} or (said["message"] and len(answer.text) < 3000)
    assert client.post(f"/v1/{work}", content=BODIES[work]).status_code == 200


class Said:
    """The servers of a client: all say ``answer``, and before it what is served."""

    facts_said = Facts(version=1, package="1", name="m", context_length=99, mask_id=0)
    answer = b""

    def __len__(self) -> int:
        return 1

    def facts(self) -> list[tuple[str, bytes]]:
        return [("http://server", self.facts_said.model_dump_json().encode())]

    def ask(self, work: str, body: bytes) -> bytes:
        return self.answer

    def close(self) -> None: ...


FILLED = (
    b'{"results": [{"input_ids": [1, 2], "confidence": 0.5, "num_passes": 1}], "num_passes": 1}'
)
SCORED = b'{"results": [[-0.5]], "num_passes": 1}'


@FUZZ
@given(data=inputs(FILLED, SCORED, b'{"results": ["text"], "num_passes": 0}'))
def test_an_answer_of_a_server(data):
    servers = Said()
    denoiser = RemoteDenoiser(servers)
    servers.answer = data
    request, asked = InfillRequest((1, 0), seed=1), ScoreRequest((1, 0), (2,))
    for action in (
        lambda: denoiser.infill([request], Sampling()),
        lambda: denoiser.score([asked]),
        lambda: denoiser.decode((1, 2)),
        lambda: denoiser.encode("text"),
    ):
        check(action, DenoiserError)
