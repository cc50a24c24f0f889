import asyncio
import copy
import pickle
import re
from typing import Literal

import dspy
import pytest
from dspy.utils.exceptions import AdapterParseError
from hypothesis import given
from hypothesis import strategies as st

from dspy_diffusion_infill.template_adapter import TemplateAdapter, first_label

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


# What comes back


def test_one_output_field_takes_the_whole_completion():
    assert TemplateAdapter().parse(plural(), " dogs\nand cats\n") == {"plural": "dogs\nand cats"}


@pytest.mark.parametrize("completion", ["", " \n"])
def test_an_empty_completion_is_a_parse_error(completion):
    with pytest.raises(AdapterParseError, match="plural"):
        TemplateAdapter().parse(plural(), completion)


@pytest.mark.parametrize(
    ("completion", "label"),
    [
        ("The sentiment is negative.", "negative"),
        ("POSITIVE", "positive"),
        ("**positive**, not negative", "positive"),
        ('"Negative"', "negative"),
    ],
)
def test_a_literal_takes_the_first_label_that_is_named(completion, label):
    signature = sentiment(Literal["positive", "negative"])
    assert TemplateAdapter().parse(signature, completion) == {"label": label}


def test_a_completion_without_label_is_a_parse_error_that_names_it():
    with pytest.raises(AdapterParseError, match=r"'A positively odd text\.' names none of \['pos"):
        TemplateAdapter().parse(
            sentiment(Literal["positive", "negative"]), "A positively odd text."
        )


@pytest.mark.parametrize(
    ("text", "labels", "expected"),
    [
        ("not the same", ("same", "not the same"), "not the same"),
        ("It is not the same", ("not", "not the same"), "not the same"),
        ("the same, not not the same", ("same", "not the same"), "same"),
        ("not\nthe  same", ("same", "not the same"), "not the same"),
        ("us or US", ("US", "us"), "us"),
        ("score 3.5, so 4", (3, 4), 4),
        ("C++ wins", ("C", "C++"), "C++"),
    ],
)
def test_first_label(text, labels, expected):
    assert first_label(text, labels) == expected


@given(st.sampled_from(["alpha", "beta gamma", "7", "c++"]), st.text("xyz \n.", max_size=20))
def test_a_label_alone_is_always_found(label, around):
    labels = ("alpha", "beta gamma", "7", "c++")
    assert first_label(f"{around} {label} {around}", labels) == label


@pytest.mark.parametrize(
    ("kind", "completion", "value"),
    [
        (int, " 42 ", 42),
        (float, "4.2", 4.2),
        (bool, "True", True),
        (list[str], '["a", "b"]', ["a", "b"]),
        (Literal[1, 2], "It is 2.", 2),
    ],
)
def test_typed_fields_are_read(kind, completion, value):
    assert TemplateAdapter().parse(sentiment(kind), completion) == {"label": value}


def test_a_value_of_the_wrong_type_is_a_parse_error():
    with pytest.raises(AdapterParseError, match="Field 'label'"):
        TemplateAdapter().parse(sentiment(int), "many")


def test_several_fields_are_read_from_their_lines():
    signature = dspy.Signature("question -> reasoning, answer: int", "Solve it.")
    expected = {"reasoning": "One and one.\nSo two.", "answer": 2}
    for completion in (
        " One and one.\nSo two.\nAnswer: 2",
        "Reasoning: One and one.\nSo two.\n\n**Answer:** 2\nAnswer: 3",
        "ANSWER: 2\nreasoning: One and one.\nSo two.",
    ):
        assert TemplateAdapter().parse(signature, completion) == expected
    with pytest.raises(AdapterParseError, match=r"\['answer'\]"):
        TemplateAdapter().parse(signature, "No idea.")


def test_an_optional_field_may_be_absent():
    signature = dspy.Signature("question -> answer, source: str | None", "Solve it.")
    assert TemplateAdapter().parse(signature, "2") == {"answer": "2", "source": None}


# Patterns


def judge() -> type[dspy.Signature]:
    return dspy.Signature("text -> feedback, score: int", "Judge {text}.")


def test_a_pattern_gives_the_fields():
    adapter = TemplateAdapter(pattern=re.compile(SCORE, re.DOTALL), response=JUDGE)
    parsed = adapter.parse(judge(), "Fine.\nGood. [RESULT] 4")
    assert parsed == {"feedback": "Fine.\nGood.", "score": 4}
    with pytest.raises(AdapterParseError, match="was not found"):
        adapter.parse(judge(), "Fine.")


def test_a_pattern_needs_named_groups():
    with pytest.raises(ValueError, match="named groups"):
        TemplateAdapter(pattern=r"(\d)")


def test_a_pattern_without_group_for_a_field_is_an_error_before_the_call():
    with pytest.raises(ValueError, match=r"\(\?P<feedback>"):
        TemplateAdapter(pattern=r"(?P<score>\d)").format(judge(), [], {"text": "x"})


def test_gold_outputs_that_the_pattern_cannot_find_need_a_response_template():
    outputs = {"feedback": "Good.", "score": 4}
    with pytest.raises(ValueError, match=r"response=\.\.\."):
        TemplateAdapter(pattern=SCORE).format_assistant_message_content(judge(), outputs)
    adapter = TemplateAdapter(pattern=SCORE, response=JUDGE)
    text = adapter.format_assistant_message_content(judge(), outputs)
    assert text == "Feedback: Good. [RESULT] 4"


# Gold responses

words = st.text("abc de.\n", min_size=1).map(str.strip).filter(bool)


@given(reasoning=words, answer=words)
def test_a_gold_response_is_parsed_back(reasoning, answer):
    adapter = TemplateAdapter()
    outputs = {"reasoning": reasoning, "answer": answer}
    for instructions in ("Solve it.", "Solve {question}"):
        signature = dspy.Signature("question -> reasoning, answer", instructions)
        text = adapter.format_assistant_message_content(signature, outputs)
        assert adapter.parse(signature, text) == outputs
    text = adapter.format_assistant_message_content(plural(), {"plural": answer})
    assert (text, adapter.parse(plural(), text)) == (answer, {"plural": answer})


def test_a_missing_gold_output_is_left_out_and_the_others_keep_their_names():
    signature = dspy.Signature("question -> reasoning, answer: int", "Solve it.")
    adapter = TemplateAdapter()
    assert prompts(adapter, signature, [], {"question": "1+1"})[0].endswith("\nReasoning:")
    assert adapter.format_assistant_message_content(signature, {"answer": 2}) == "Answer: 2"
    assert adapter.format_assistant_message_content(signature, {"reasoning": "Add."}) == "Add."
    asks_for_the_answer = signature.with_instructions("Solve it.\n\n{question}\nAnswer:")
    text = adapter.format_assistant_message_content(asks_for_the_answer, {"answer": 2})
    assert text == "2"


def test_a_missing_gold_output_leaves_its_place_in_the_response_template_empty():
    adapter = TemplateAdapter(pattern=SCORE, response=JUDGE)
    text = adapter.format_assistant_message_content(judge(), {"score": 4})
    assert text == "Feedback:  [RESULT] 4"


def test_no_gold_output_at_all_is_an_error():
    with pytest.raises(ValueError, match="field 'plural' has no value"):
        TemplateAdapter().format_assistant_message_content(plural(), {})
    with pytest.raises(ValueError, match="field 'feedback' has no value"):
        TemplateAdapter(pattern=SCORE, response=JUDGE).format_assistant_message_content(judge(), {})


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
