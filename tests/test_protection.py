import re

import dspy
import pytest
from edit_cases import cases, lost_after_edits
from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_diffusion_infill.protection import Protection, generated_text, merge_spans
from dspy_diffusion_infill.windows import free_runs


class Judge(dspy.Signature):
    """Judge."""

    essay: str = dspy.InputField()
    score: str = dspy.OutputField()


def free_text(instructions: str, **options) -> str:
    spans = Protection(signature=Judge, **options).spans(instructions)
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
    agent_text = generated_text(program)["react"]
    spans = Protection(signature=signature, agent_text=agent_text).spans(text)
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


# Structure, kept passages, and what edits may do beside them


def test_structure_is_protected_with_the_space_around_blocks_unless_switched_off():
    text = "Walk 5 km.\n\n```\nx\n```\n\nThen <b>rest</b>."
    assert free_text(text) == "Walk .Then rest."
    assert free_text(text, structure=False) == text


def test_every_occurrence_of_a_kept_passage_is_protected_overlapping_ones_too():
    assert free_text("x aaa y ab", kept=["aa", "b"]) == "x  y a"


def test_each_protected_passage_has_its_kind():
    protection = Protection(signature=Judge, protect=["ACME"], agent_text=["TOOL"], kept=["now"])
    found = protection.found('TOOL ACME now 5 km {x} score <b> {"a": 1}')
    assert [one.kind for one in found] == [
        *("agent", "named", "kept", "number", "placeholder", "field", "tag"),
        *("json", "placeholder"),
    ]


@pytest.mark.parametrize(
    ("old", "span", "fill", "is_allowed"),
    [
        ("run 5 km now", (0, 4), "walk ", True),
        ("run 5 km now", (0, 4), "walk 1", False),  # 15 km
        ("run 5 km now", (0, 4), "walk 1.", False),
        ("run 5 km now", (8, 12), "h", False),  # 5 kmh
        ("run 5 km now", (6, 12), "m", False),
        ("a\n```\nx\n```\nb", (0, 1), "```\nc", False),  # x is no code any more
        ("a\n```\nx\n```\nb", (0, 1), "c", True),
        ("a\n\n|b|\n|-|\n|c|\n\nd", (16, 17), "e", True),
        ("a\n\n|b|\n|-|\n|c|\n\nd", (15, 17), "e", False),  # a row of the table
        ("see www.a.org now", (13, 17), "/b", False),
        ("an essay on", (3, 8), "text", False),
        ("an essay on", (0, 2), "the", True),
        ("an essay on", (8, 11), "s", False),  # essays
        ("an {x} on", (6, 9), "}", True),
        ("Text: {essay}\nScore:", (0, 0), "Read it. ", True),  # a prefix in the template's line
        ("Text: {essay}\nScore:", (20, 20), " 5", False),
    ],
)
def test_an_edit_leaves_protected_text_what_it_is(old, span, fill, is_allowed):
    assert Protection(signature=Judge).allows(old, [(span, fill)]) == is_allowed


@settings(max_examples=200, deadline=None)
@given(cases(), st.integers(0, 2**31))
def test_no_edit_ever_touches_protected_text(case, seed):
    lost, _ = lost_after_edits(case, seed)
    assert lost == []
