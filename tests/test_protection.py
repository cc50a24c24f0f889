import re

import dspy
import pytest

from dspy_diffusion_infill.protection import generated_text, merge_spans, protected_spans
from dspy_diffusion_infill.windows import free_runs


class Judge(dspy.Signature):
    """Judge."""

    essay: str = dspy.InputField()
    score: str = dspy.OutputField()


def free_text(instructions: str, **options) -> str:
    spans = protected_spans(instructions, Judge, **options)
    kept = [c for k, c in enumerate(instructions) if not any(a <= k < b for a, b in spans)]
    return "".join(kept)


def lookup(city: str) -> str:
    """Looks a city up."""
    return city


def test_placeholders_field_names_and_field_markers_are_protected():
    text = "Read the essay and give a score. [[ ## score ## ]] is the field {anything}."
    assert free_text(text) == "Read the  and give a .  is the field ."
    assert "essay" not in free_text("Read the essay with care")
    assert "essays" in free_text("Read the essays with care")
    assert "[[ ##" not in free_text("Begin with [[ ## score ## ]] and stop")


def test_the_frame_of_a_template_is_protected_and_its_prose_is_not():
    text = "Judge it well.\nBe brief.\n\n###Essay:\n{essay}\n\n###Feedback:"
    free = free_text(text)
    assert "Judge it well.\nBe brief." in free
    assert "###Feedback:" not in free
    assert "{essay}" not in free


def test_what_the_user_names_is_protected():
    text = "Follow policy 12-B and never mention ACME."
    free = free_text(text, protect=["ACME", re.compile(r"policy \d+-\w")])
    assert "ACME" not in free
    assert "12-B" not in free
    assert "never mention" in free


def test_react_keeps_its_tool_text():
    program = dspy.ReAct("question -> answer", tools=[lookup])
    texts = generated_text(program)
    assert set(texts) == {"react"}
    (text,) = texts["react"]
    assert "lookup" in text
    assert text.startswith("You are an Agent.")


@pytest.mark.filterwarnings("ignore:CodeAct is deprecated")
def test_code_act_keeps_its_tool_text():
    program = dspy.CodeAct("question -> answer", tools=[lookup])
    (text,) = generated_text(program)["codeact"]
    assert "lookup" in text
    assert "finished=True" in text


def test_tool_text_is_kept_also_where_an_optimizer_rewrote_the_rest():
    program = dspy.ReAct("question -> answer", tools=[lookup])
    tool = str(program.tools["lookup"])
    program.react.signature = program.react.signature.with_instructions(f"New text.\n(1) {tool}")
    assert generated_text(program) == {"react": [tool]}


def test_rlm_keeps_its_rules():
    program = dspy.RLM("question -> answer")
    names = generated_text(program)
    assert any("SUBMIT(" in text for texts in names.values() for text in texts)


def test_agents_inside_a_program_are_found():
    class Outer(dspy.Module):
        def __init__(self):
            super().__init__()
            self.agent = dspy.ReAct("question -> answer", tools=[lookup])
            self.polish = dspy.Predict("answer -> answer_polished")

    assert set(generated_text(Outer())) == {"agent.react"}


def test_agent_text_leaves_only_the_users_part_free():
    task = "Answer with a city name and nothing else."
    program = dspy.ReAct(dspy.Signature("question -> answer", task), tools=[lookup])
    signature = program.react.signature
    text = signature.instructions
    spans = protected_spans(text, signature, agent_text=generated_text(program)["react"])
    offsets = [m.span() for m in re.finditer(r"\s*\S+", text)]
    runs = free_runs(text, offsets, spans)
    assert "".join(text[a:b] for run in runs for a, b in run).strip() == task


@pytest.mark.parametrize(
    ("spans", "merged"),
    [([(3, 5), (0, 3)], [(0, 5)]), ([(1, 1)], []), ([(0, 2), (4, 6)], [(0, 2), (4, 6)])],
)
def test_spans_that_touch_are_joined(spans, merged):
    assert merge_spans(spans) == merged


@pytest.mark.parametrize(
    ("text", "free"),
    [
        (r"Put the final answer in \boxed{}, please.", r"Put the final answer in \boxed, please."),
        ('Reply as {"kind": "..."} and say it.', "Reply as  and say it."),
        ('Reply as {"a": {"b": [1]}} now.', "Reply as  now."),
        ("Use {unknown} and {x:.2f} here.", "Use  and  here."),
        ("Write p { color: red } once.", "Write p  once."),
        ("Say { here\nand } there.", "Say  here\nand  there."),
    ],
)
def test_braces_protect_themselves_and_not_their_line(text, free):
    assert free_text(text) == free


def test_the_line_of_a_real_placeholder_is_a_templates_frame():
    text = 'Rate it as {"a": 1}.\n\nText: {essay} and {"b": 2}\nScore:\nBe kind.'
    assert free_text(text) == "Rate it as .\n\n" + "Be kind."
