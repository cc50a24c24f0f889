"""``DiffusionInfill`` on DSPy's other modules and on its types: each compiles, and works after."""

import asyncio
import re

import dspy
import pytest
from doubles import WordDenoiser, rule_lm
from dspy.primitives.local_interpreter import LocalInterpreter
from test_programs import ROWS, add, infill, polite_solver, reply, signature

from dspy_diffusion_infill.optimizer.diffusion_infill import DiffusionInfill

PIXEL = "data:image/png;base64,iVBORw0KGgo="


@pytest.fixture(autouse=True)
def lm():
    with dspy.context(lm=rule_lm(polite_solver)[0], adapter=dspy.ChatAdapter()):
        yield


def is_number(inputs, prediction) -> float:
    return float(prediction.answer.isdigit())


class Steps(dspy.Module):
    """Two steps; no row labels what goes from one to the other."""

    def __init__(self) -> None:
        super().__init__()
        self.think = dspy.Predict(dspy.Signature("question -> reasoning", "Think about the sum"))
        self.say = dspy.Predict(
            dspy.Signature("question, reasoning -> answer", "Say what the sum gives")
        )

    def forward(self, question: str) -> dspy.Prediction:
        return self.say(question=question, reasoning=self.think(question=question).reasoning)


@pytest.mark.parametrize("attempts", [1, 3])
@pytest.mark.parametrize("kind", [dspy.BestOfN, dspy.Refine])
def test_steps_inside_best_of_n_and_refine_are_searched(kind, attempts):
    student = kind(module=Steps(), N=attempts, reward_fn=is_number, threshold=1.0)
    better = infill(student)
    results = better.detailed_results
    assert results.skipped == {}
    assert {trial.predictor for trial in results.trials} == {"module.think", "module.say"}
    assert results.num_failures == 0
    assert results.score_after == 1.0
    assert better(question="What is 8 plus one?").answer == "9"


@pytest.mark.parametrize(("kind", "calls"), [(dspy.BestOfN, 3 * 2), (dspy.Refine, 3 * 2 + 2)])
def test_every_attempt_of_best_of_n_and_refine_and_its_advice_is_counted(kind, calls):
    student = kind(module=Steps(), N=3, reward_fn=is_number, threshold=1.0)
    first = infill(student, max_metric_calls=len(ROWS)).detailed_results
    one = infill(Steps(), max_metric_calls=len(ROWS)).detailed_results
    assert one.score_before == first.score_before == 0.0  # no attempt has the reward
    assert first.lm_tokens == calls / 2 * one.lm_tokens


class Votes(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.say = dspy.Predict(signature())

    def forward(self, question: str) -> dspy.Prediction:
        pairs = [(self.say, {"question": question})] * 3
        return dspy.Parallel(num_threads=2, disable_progress_bar=True)(pairs)[-1]


def test_parallel_calls_count_with_their_tokens():
    results = infill(Votes()).detailed_results
    assert results.score_after == 1.0
    assert results.lm_tokens == 2 * 3 * results.metric_calls


@pytest.mark.filterwarnings("ignore:CodeAct is deprecated")
def test_code_act_keeps_its_tools():
    student = dspy.CodeAct(signature(), tools=[add], interpreter_factory=LocalInterpreter)
    text = student.codeact.signature.instructions
    better = infill(student, max_metric_calls=20)
    assert better.detailed_results.score_after == 1.0
    after = better.codeact.signature.instructions
    assert after.endswith(text[text.index("You are an intelligent agent.") :])


def test_rlm_keeps_its_rules():
    student = dspy.RLM(signature(), interpreter_factory=LocalInterpreter, max_iters=2)
    text = student.generate_action.signature.instructions
    better = infill(student, predictors=["generate_action"], max_metric_calls=20)
    assert better.detailed_results.score_after == 1.0
    after = better.generate_action.signature.instructions
    assert after.endswith(text[text.index("You are tasked with") :])


def compiled(fields: dict, rows: list[dspy.Example], metric=None, **options) -> dspy.Module:
    """A predictor with these fields, compiled."""
    student = dspy.Predict(dspy.Signature(fields, "Read the sum and say what it gives"))
    options = {"denoiser": WordDenoiser(), "max_metric_calls": 4 * len(rows), **options}
    return DiffusionInfill(
        metric, guidance=None, num_threads=1, display_progress=False, **options
    ).compile(student, rows)


def with_field(name: str, value, kind: type) -> tuple[dict, list[dspy.Example]]:
    """The sums with one more input, whose value each row has."""
    fields = {
        "question": (str, dspy.InputField()),
        name: (kind, dspy.InputField()),
        "answer": (str, dspy.OutputField()),
    }
    rows = [dspy.Example(**row, **{name: value}).with_inputs("question", name) for row in ROWS]
    return fields, rows


INPUTS = {
    "a history": ("history", dspy.History(messages=[{"question": "before", "answer": "teal"}])),
    "an image": ("image", dspy.Image(PIXEL)),
    "audio": ("audio", dspy.Audio(data="UklGRg==", audio_format="wav")),
    "tools": ("tools", [dspy.Tool(add)]),
}
SHOWN = {"a history": "teal", "an image": "[image", "audio": "[input_audio", "tools": "Adds two"}


@pytest.mark.parametrize("name", INPUTS)
def test_an_input_of_dspys_types_is_shown_to_lm_and_denoiser(name):
    field, value = INPUTS[name]
    kind = list[dspy.Tool] if name == "tools" else type(value)
    denoiser = WordDenoiser()
    better = compiled(*with_field(field, value, kind), denoiser=denoiser)
    assert better.detailed_results.num_failures == 0
    assert better.detailed_results.score_after == 1.0
    assert denoiser.seen and all(SHOWN[name] in text for text in denoiser.seen)


def test_tool_calls_are_an_output_like_any_other():
    def calls(prompt: str) -> str:
        is_polite = re.search(r"\b(?:care|please)\b", prompt)
        tool = '{"name": "add", "args": {"a": 1, "b": 1}}' if is_polite else ""
        return reply(tool_calls=f'{{"tool_calls": [{tool}]}}')

    def is_called(example, prediction, trace=None) -> bool:
        return [call.name for call in prediction.tool_calls.tool_calls] == ["add"]

    fields, rows = with_field("tools", [dspy.Tool(add)], list[dspy.Tool])
    fields["tool_calls"] = (dspy.ToolCalls, dspy.OutputField())
    del fields["answer"]
    wanted = dspy.ToolCalls.from_dict_list([{"name": "add", "args": {"a": 1, "b": 1}}])
    rows = [
        dspy.Example(question=row.question, tools=row.tools, tool_calls=wanted).with_inputs(
            "question", "tools"
        )
        for row in rows
    ]
    with dspy.context(lm=rule_lm(calls)[0]):
        results = compiled(fields, rows, is_called).detailed_results
    assert results.num_failures == 0
    assert results.score_after == 1.0 > results.score_before


def test_the_result_streams_and_is_awaited():
    better = infill(dspy.Predict(signature()))

    async def both() -> tuple[str, str]:
        question = "What is 8 plus one?"
        chunks = [chunk async for chunk in dspy.streamify(better)(question=question)]
        return chunks[-1].answer, (await better.acall(question=question)).answer

    assert asyncio.run(both()) == ("9", "9")


def test_it_compiles_a_program_that_is_streamed_inside():
    class Streamed(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.say = dspy.Predict(signature())

        def forward(self, question: str) -> dspy.Prediction:
            *_, last = dspy.streamify(self.say, async_streaming=False)(question=question)
            return last

    assert infill(Streamed()).detailed_results.score_after == 1.0
