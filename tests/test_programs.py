"""``DiffusionInfill`` on DSPy's modules, and after and inside DSPy's other optimizers."""

import re

import dspy
import pytest
from doubles import WordDenoiser, rule_lm
from dspy.primitives.local_interpreter import LocalInterpreter

from dspy_diffusion_infill.optimizer.diffusion_infill import DiffusionInfill

ROWS = [
    dspy.Example(question=f"What is {k} plus one?", answer=str(k + 1)).with_inputs("question")
    for k in range(4)
]


def fields_asked_for(prompt: str) -> list[str]:
    names = re.findall(r"`\[\[ ## (\w+) ## \]\]`", prompt.split("Respond with")[-1])
    return [name for name in names if name != "completed"]


def reply(**values: str) -> str:
    parts = [f"[[ ## {name} ## ]]\n{value}\n\n" for name, value in values.items()]
    return "".join(parts) + "[[ ## completed ## ]]"


def polite_solver(prompt: str) -> str:
    """Solves when the prompt says "care" or "please"; proposes instructions when asked."""
    number = int(re.findall(r"What is (\d+) plus one", prompt)[-1]) if "plus one" in prompt else 0
    answer = str(number + 1) if re.search(r"\b(?:care|please)\b", prompt) else "unknown"
    values = {
        "reasoning": "Add one.",
        "answer": answer,
        "next_thought": "I know it.",
        "next_tool_name": "finish",
        "next_tool_args": "{}",
        "generated_code": "answer = 1 + 1\nprint(answer)",
        "code_output": "2",
        "finished": "True",
        "code": f"```python\nSUBMIT(answer={answer!r})\n```",
        "discussion": "No step gives a number.",
        "advice": '{"module.say": "Say a number."}',
        "proposed_instruction": "Solve the sum that the user gives you",
        "proposed_prefix_for_output_field": "Answer:",
    }
    return reply(**{name: values[name] for name in fields_asked_for(prompt) or ["answer"]})


def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


def signature(text: str = "Read the sum and say what it gives") -> type[dspy.Signature]:
    return dspy.Signature("question -> answer", text)


def infill(student: dspy.Module, **options) -> dspy.Module:
    optimizer = DiffusionInfill(
        denoiser=WordDenoiser(),
        guidance=None,
        display_progress=False,
        num_threads=1,
        sweeps=1,
        num_proposals=4,
        **options,
    )
    return optimizer.compile(student, ROWS)


@pytest.fixture(autouse=True)
def lm():
    with dspy.context(lm=rule_lm(polite_solver)[0], adapter=dspy.ChatAdapter()):
        yield


def test_predict():
    better = infill(dspy.Predict(signature()))
    assert better.detailed_results.score_after == 1.0


def test_chain_of_thought_has_its_traced_reasoning_in_contexts():
    denoiser = WordDenoiser()
    better = DiffusionInfill(
        denoiser=denoiser, guidance=None, display_progress=False, num_threads=1
    ).compile(dspy.ChainOfThought(signature()), ROWS)
    assert better.detailed_results.score_after == 1.0
    assert all("Add one." in text for text in denoiser.seen)


def test_react_is_improved_and_keeps_its_tools():
    student = dspy.ReAct(signature(), tools=[add])
    before = student.react.signature.instructions
    better = infill(student)
    after = better.react.signature.instructions
    tools = before[before.index("You are an Agent.") :]
    assert after.endswith(tools)
    assert better.detailed_results.score_after == 1.0
    assert student.react.signature.instructions == before


@pytest.mark.filterwarnings("ignore:ProgramOfThought is deprecated")
def test_program_of_thought():
    student = dspy.ProgramOfThought(signature(), interpreter_factory=LocalInterpreter)
    [last] = [name for name, _ in student.named_predictors() if "output" in name]
    results = infill(student, predictors=[last], max_metric_calls=24).detailed_results
    assert results.num_failures == 0
    assert {trial.predictor for trial in results.trials} == {last}
    assert results.score_after == 1.0 > results.score_before
    code = results.instructions_after["code_generate.predict"]
    assert code == results.instructions_before["code_generate.predict"]


def test_after_copro():
    student = dspy.Predict(signature())
    copro = dspy.COPRO(metric=dspy.evaluate.answer_exact_match, breadth=2, depth=1)
    optimised = copro.compile(
        student, trainset=ROWS, eval_kwargs={"num_threads": 1, "display_progress": False}
    )
    assert optimised.candidate_programs
    better = infill(optimised)
    assert better.detailed_results.score_after == 1.0
    assert "Solve the sum" in better.detailed_results.instructions_before["self"]
    assert all("program" in candidate for candidate in better.candidate_programs)


def gepa_metric(example, prediction, trace=None, pred_name=None, pred_trace=None):
    return dspy.Prediction(score=float(example.answer == prediction.answer), feedback="Be right.")


def test_after_gepa_with_its_own_metric():
    reflection, _ = rule_lm(lambda prompt: "```\nWork the sum out and say what it gives\n```")
    gepa = dspy.GEPA(
        metric=gepa_metric, max_metric_calls=20, reflection_lm=reflection, num_threads=1
    )
    optimised = gepa.compile(dspy.Predict(signature()), trainset=ROWS, valset=ROWS)
    better = DiffusionInfill(
        gepa_metric,
        WordDenoiser(),
        guidance=None,
        display_progress=False,
        num_threads=1,
    ).compile(optimised, trainset=ROWS)
    assert better.detailed_results.score_after == 1.0


def test_inside_better_together():
    student = dspy.Predict(signature())
    student.set_lm(dspy.settings.lm)
    optimizer = DiffusionInfill(
        denoiser=WordDenoiser(), guidance=None, display_progress=False, num_threads=1
    )
    together = dspy.BetterTogether(metric=dspy.evaluate.answer_exact_match, i=optimizer)
    better = together.compile(student, trainset=ROWS, valset=ROWS, strategy="i")
    assert better.candidate_programs[0]["score"] == 100.0
    assert "i" in {candidate["strategy"] for candidate in better.candidate_programs}
