"""What the template adapter sends, and the programs that it works in."""

import asyncio
import copy
import pickle
import re
from typing import Literal

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_diffusion_infill.template_adapter import TemplateAdapter, field_lines

PLURAL = "Write the plural form of the word.\n\nInput: {word}\nOutput:"
SCORE = r"(?P<feedback>.*?)\[RESULT\] (?P<score>[1-5])"
JUDGE = "Feedback: {feedback} [RESULT] {score}"


def plural(instructions: str = PLURAL) -> type[dspy.Signature]:
    return dspy.Signature("word -> plural", instructions)


def prompts(adapter, signature, demos, inputs) -> list[str]:
    return [message["content"] for message in adapter.format(signature, demos, inputs)]


def sentiment(labels) -> type[dspy.Signature]:
    return dspy.Signature("text -> label", "Say it.").with_updated_fields("label", type_=labels)


# What is sent


def test_the_instructions_are_the_whole_prompt():
    messages = TemplateAdapter().format(plural(), [], {"word": "dog"})
    assert messages == [
        {"role": "user", "content": "Write the plural form of the word.\n\nInput: dog\nOutput:"}
    ]


def test_plain_instructions_get_capitalised_lines_for_their_fields():
    signature = dspy.Signature("input -> output", "Classify the sentiment.")
    assert prompts(TemplateAdapter(), signature, [], {"input": "Lovely."}) == [
        "Classify the sentiment.\n\nInput: Lovely.\nOutput:"
    ]


def test_only_the_fields_without_placeholder_are_added():
    signature = dspy.Signature("user_name, question -> answer", "Answer {question}.")
    inputs = {"user_name": "Ada", "question": "why"}
    assert prompts(TemplateAdapter(), signature, [], inputs) == [
        "Answer why.\n\nUser Name: Ada\nAnswer:"
    ]


def test_the_form_of_the_reply_is_added_to_plain_instructions_with_several_outputs():
    signature = dspy.Signature("question -> reasoning, answer", "Solve it.")
    assert prompts(TemplateAdapter(), signature, [], {"question": "1+1"}) == [
        "Solve it.\n\nReply in this form:\nReasoning: ...\nAnswer: ...\n\nQuestion: 1+1\nReasoning:"
    ]


def test_braces_that_are_no_placeholder_stay_literal():
    template = 'Return {"plural": "..."} for {word}; {{word}} is the place, {{other}} {} are not.'
    assert prompts(TemplateAdapter(), plural(template), [], {"word": "ox"}) == [
        'Return {"plural": "..."} for ox; {word} is the place, {{other}} {} are not.'
    ]


@pytest.mark.parametrize(
    "poison",
    ["{word.__class__}", "{word!r}", "{word:>999999999}", "{word[0]}", "{0}", "{{ word.upper() }}"],
)
def test_no_expression_of_any_template_language_is_evaluated(poison):
    signature = dspy.Signature("word -> plural", f"Pluralise {{word}}. {poison}\nPlural:")
    (message,) = TemplateAdapter().format(signature, [], {"word": "dog"})
    assert message["content"] == f"Pluralise dog. {poison}\nPlural:"


def test_a_placeholder_in_a_value_is_not_filled_in():
    signature = dspy.Signature("a, b -> c", "{a} and {b}")
    assert prompts(TemplateAdapter(), signature, [], {"a": "{b}", "b": "{a}"}) == ["{b} and {a}"]


@given(st.text("ab{}w:\n \\1", max_size=20), st.text("ab:\n \\1", max_size=20))
def test_a_value_arrives_to_the_character(value, around):
    signature = plural(f"Say.{around}{{word}}{around} Go.")
    expected = signature.instructions.replace("{word}", value)
    assert prompts(TemplateAdapter(), signature, [], {"word": value}) == [expected]


def test_demos_follow_the_instructions_which_are_said_once():
    demos = [{"word": "dog", "plural": "dogs"}, {"word": "ox", "plural": "oxen"}]
    assert prompts(TemplateAdapter(), plural(), demos, {"word": "cat"}) == [
        "Write the plural form of the word.\n\nInput: dog\nOutput: dogs\n\n"
        "Input: ox\nOutput: oxen\n\nInput: cat\nOutput:"
    ]


def test_an_answer_stands_on_its_own_line_where_the_template_has_no_cue():
    signature = plural("Write the plural.\n\n{word}")
    demos = [{"word": "dog", "plural": "dogs"}]
    assert prompts(TemplateAdapter(), signature, demos, {"word": "cat"}) == [
        "Write the plural.\n\ndog\ndogs\n\ncat"
    ]


def test_demos_are_turns_where_the_first_paragraph_has_a_placeholder():
    demos = [{"word": "dog", "plural": "dogs"}]
    messages = TemplateAdapter(system="Be brief.").format(
        plural("Plural of {word}?"), demos, {"word": "cat"}
    )
    assert [(message["role"], message["content"]) for message in messages] == [
        ("system", "Be brief."),
        ("user", "Plural of dog?"),
        ("assistant", "dogs"),
        ("user", "Plural of cat?"),
    ]


def test_demos_with_several_outputs_go_on_after_the_cue():
    signature = dspy.Signature("question -> reasoning, answer", "Solve it.\n\n{question}\nAnswer:")
    demos = [{"question": "1+1", "reasoning": "Add.", "answer": "2"}]
    assert prompts(TemplateAdapter(), signature, demos, {"question": "2+2"})[0].endswith(
        "1+1\nAnswer: Reasoning: Add.\nAnswer: 2\n\n2+2\nAnswer:"
    )
    plain = signature.with_instructions("Solve it.")
    assert prompts(TemplateAdapter(), plain, demos, {"question": "2+2"})[0].endswith(
        "Question: 1+1\nReasoning: Add.\nAnswer: 2\n\nQuestion: 2+2\nReasoning:"
    )


def test_incomplete_demos_say_so_and_useless_ones_are_left_out():
    signature = dspy.Signature("question -> reasoning, answer", "Solve it.")
    demos = [{"question": "1+1", "answer": "2"}, {"answer": "3"}, {"question": "9"}]
    (prompt,) = prompts(TemplateAdapter(), signature, demos, {"question": "2+2"})
    assert prompt.count("Question:") == 2
    assert "Reasoning: Not supplied for this particular example.\nAnswer: 2" in prompt


def test_marks_around_the_cue_do_not_change_the_rendering():
    marked = plural(PLURAL.replace("Output:", "\ue000Output:\ue001"))
    demos = [{"word": "dog", "plural": "dogs"}]
    (with_marks,) = prompts(TemplateAdapter(), marked, demos, {"word": "cat"})
    (without,) = prompts(TemplateAdapter(), plural(), demos, {"word": "cat"})
    assert re.sub("[\ue000\ue001]", "", with_marks) == without


@pytest.mark.parametrize("inputs", [{}, {"word": None}])
def test_a_missing_input_is_an_error_that_names_the_field(inputs):
    with pytest.raises(ValueError, match="field 'word' has no value"):
        TemplateAdapter().format(plural(), [], inputs)


def test_an_empty_input_is_sent_as_it_is():
    assert prompts(TemplateAdapter(), plural("Say {word}."), [], {"word": ""}) == ["Say ."]


@pytest.mark.parametrize(
    "value", [dspy.Image("data:image/png;base64,AAAA"), dspy.History(messages=[])]
)
def test_what_is_no_text_is_refused(value):
    signature = dspy.Signature("thing -> label", "Name it.").with_updated_fields(
        "thing", type_=type(value)
    )
    with pytest.raises(ValueError, match=f"'thing' holds a {type(value).__name__}.*ChatAdapter"):
        TemplateAdapter().format(signature, [], {"thing": value})


# In programs


class Scripted:
    """An engine that answers from the last input line of the prompt."""

    def __init__(self, answer):
        self.answer = answer

    def complete(self, request):
        text = self.answer(request.messages[-1].text)
        return dspy.lm15.Response(
            id=None,
            model=request.model,
            message=dspy.lm15.Message.assistant(text),
            finish_reason="stop",
            usage=dspy.lm15.Usage(),
        )

    def stream(self, request):
        return dspy.lm15.response_to_events(self.complete(request))

    def close(self):
        pass


class AsyncScripted(Scripted):
    async def complete(self, request):
        return super().complete(request)


def scripted(answer) -> dspy.LM:
    return dspy.LM(
        "scripted/test", engine=Scripted(answer), async_engine=AsyncScripted(answer), cache=False
    )


def test_predict_sends_the_template_and_returns_the_field():
    lm = scripted(lambda prompt: " dogs\n")
    with dspy.context(lm=lm, adapter=TemplateAdapter()):
        assert dspy.Predict(plural())(word="dog").plural == "dogs"
    assert [message["content"] for message in lm.history[0]["messages"]] == [
        "Write the plural form of the word.\n\nInput: dog\nOutput:"
    ]


def test_chain_of_thought_gets_reasoning_and_answer():
    lm = scripted(lambda prompt: " One and one.\nAnswer: 2")
    program = dspy.ChainOfThought("question -> answer: int")
    with dspy.context(lm=lm, adapter=TemplateAdapter()):
        prediction = program(question="1+1")
    assert (prediction.reasoning, prediction.answer) == ("One and one.", 2)


def test_react_runs_its_tools():
    def answer(prompt: str) -> str:
        if "Trajectory: Thought 0" not in prompt:
            return "Look.\nNext Tool Name: look_up\nNext Tool Args: {}"
        if "Observation 0: 42" in prompt and "Next Thought:" in prompt:
            return "Done.\nNext Tool Name: finish\nNext Tool Args: {}"
        return "It was looked up.\nAnswer: 42"

    def look_up() -> str:
        """Looks it up."""
        return "42"

    program = dspy.ReAct("question -> answer", tools=[look_up], max_iters=3)
    with dspy.context(lm=scripted(answer), adapter=TemplateAdapter()):
        assert program(question="What?").answer == "42"


def test_evaluate_in_threads_scores_parse_errors_as_failures():
    def answer(prompt: str) -> str:
        return "hmm" if "bad" in prompt else "Surely positive"

    texts = ["good one", "bad one"] * 8
    rows = [dspy.Example(text=f"{text} {k}", label="positive").with_inputs("text")
            for k, text in enumerate(texts)]  # fmt: skip
    program = dspy.Predict(sentiment(Literal["positive", "negative"]))
    evaluate = dspy.Evaluate(
        devset=rows,
        metric=lambda example, prediction, trace=None: example.label == prediction.label,
        num_threads=8,
        max_errors=100,
        display_progress=False,
    )
    with dspy.context(lm=scripted(answer), adapter=TemplateAdapter()):
        assert evaluate(program).score == 50.0


def test_a_program_saves_and_loads(tmp_path):
    program = dspy.Predict(plural())
    program.demos = [dspy.Example(word="dog", plural="dogs")]
    program.save(tmp_path / "program.json")
    loaded = dspy.Predict(plural("Other."))
    loaded.load(tmp_path / "program.json")
    adapter = TemplateAdapter()
    first, second = (
        prompts(adapter, predict.signature, predict.demos, {"word": "ox"})
        for predict in (program, loaded)
    )
    assert first == second


def test_the_adapter_copies_and_pickles():
    adapter = TemplateAdapter(pattern=SCORE, response=JUDGE, system="Be fair.")
    for twin in (copy.deepcopy(adapter), pickle.loads(pickle.dumps(adapter))):
        assert vars(twin) == vars(adapter)


def test_async_calls_work():
    lm = scripted(lambda prompt: "dogs")
    with dspy.context(lm=lm, adapter=TemplateAdapter()):
        prediction = asyncio.run(dspy.Predict(plural()).acall(word="dog"))
    assert prediction.plural == "dogs"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Q: {question}\nA:", "Q: {question}\nA:"),
        (
            "Be exact.\n\n###Asked:\n{question}\n\nScore 1: bad\nRate it:\n\nAnswer:\n",
            "###Asked:\n{question}\n\nAnswer:",
        ),
        ("Say {{question}} or {other}.\n{question}", "{question}"),
        ("Answer.", ""),
    ],
)
def test_the_lines_of_the_fields_say_nothing_of_the_task(text, expected):
    assert field_lines(text, dspy.Signature("question -> answer", text)) == expected
