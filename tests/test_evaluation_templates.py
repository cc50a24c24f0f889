import json
import re
from collections.abc import Sequence
from pathlib import Path

import dspy
import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from dspy_diffusion_infill.evaluation.examples import DIMENSIONS, as_feedback, summary_example
from dspy_diffusion_infill.evaluation.judges import Judge, prometheus
from dspy_diffusion_infill.evaluation.templates import judge_template, read_prompt
from dspy_diffusion_infill.protection import Protection
from dspy_diffusion_infill.training.sources import read_pairs
from dspy_diffusion_infill.windows import SlidingWindow, Window, take_marks

GOLDEN = Path(__file__).parent / "golden"
ROOT = Path(__file__).resolve().parents[1]
PAPER = ROOT.parent / "shared" / "paper.txt"

# Where the PDF breaks a line of the prompt; every other line break is the prompt's own.
J1_WRAPS = (
    "evaluate, a\nreference",
    "representing a\nevaluation",
    "strictly\nbased",
    "1 and 5. You\nshould",
    "feedback for\ncriteria",
)
J4_WRAPS = (
    "and reference\nsummary",
    "all aspects\nincluding",
    "very poor\nand",
    "numerical score\n(1-5)",
)

# A row of our own in Feedback Collection's fields, with braces and odd characters in its texts.
ROW = {
    "orig_instruction": "Sort these numbers: {3, 1, 2}.\nAnswer as JSON.",
    "orig_response": '{"sorted": [1, 2, 3]}',
    "orig_reference_answer": '{"sorted": [1, 2, 3]} in rising ordér',
    "orig_criteria": "Is the answer {correct}?",
    "orig_score1_description": "The order is wrong.",
    "orig_score2_description": "Most of the order is wrong.",
    "orig_score3_description": "Half of the order is right.",
    "orig_score4_description": "The order is right, the form is not.",
    "orig_score5_description": "Order and form are right.",
}


def messages(judge: Judge) -> list[dict[str, str]]:
    fields = {name: ROW[name] for name in judge.template.fields}
    return judge.adapter.format(judge.judge.signature, [], fields)


@pytest.mark.parametrize("version", [1, 2])
def test_a_feedback_collection_row_is_sent_character_for_character(version: int) -> None:
    system, user = messages(prometheus(version))  # pyright: ignore[reportArgumentType]
    golden = (GOLDEN / f"judge_v{version}.txt").read_text(encoding="utf-8")
    assert f"{system['content']}\n----\n{user['content']}\n" == golden
    assert [system["role"], user["role"]] == ["system", "user"]


def test_the_two_versions_differ_only_in_the_form_that_they_ask_for() -> None:
    first, second = judge_template("judge_v1").text, judge_template("judge_v2").text
    assert first.replace('"Feedback: (write', '"(write') == second


def printed(name: str) -> str:
    """A template in the paper's print: its quotes, and field names without underscores."""
    text = judge_template(name).text
    for field in judge_template(name).fields:
        text = text.replace(f"{{{field}}}", f"{{{field.replace('_', ' ')}}}")
    return re.sub(r'"(.*?)"', "\u2018\u2018\\1\u2019\u2019", text)


def from_paper(start: str, end: str, wraps: Sequence[str], *, after: str) -> str:
    """What the paper prints between two places, with the PDF's own line breaks undone."""
    paper = PAPER.read_text(encoding="utf-8")
    first = paper.index(start, paper.index(after))
    text = paper[first : paper.index(end, first)].strip()
    for wrap in wraps:
        assert text.count(wrap) == 1, wrap
        text = text.replace(wrap, wrap.replace("\n", " "))
    return text


def test_judge_v1_is_appendix_j1_to_the_character() -> None:
    assert printed("judge_v1") + "\n" == (GOLDEN / "paper_j1.txt").read_text(encoding="utf-8")


@pytest.mark.skipif(not PAPER.exists(), reason="the paper's text is not here")
def test_the_golden_text_of_j1_is_the_papers_without_the_line_wraps_of_the_pdf() -> None:
    found = from_paper("###Task", "J.2 Partially", J1_WRAPS, after="J.1 Original Feedback")
    assert found + "\n" == (GOLDEN / "paper_j1.txt").read_text(encoding="utf-8")


@pytest.mark.skipif(not PAPER.exists(), reason="the paper's text is not here")
def test_the_masked_judge_and_c_gen_are_the_papers_to_the_character() -> None:
    masked = from_paper("[Mask]", " J.3 Example", (), after="J.2 Partially")
    assert masked == re.sub(
        r"\[\[infill:(\d+)\]\]",
        lambda mark: "[Mask] " * (8 if mark[1] == "160" else 2),
        printed("judge_masked"),
    ).replace("[Mask] \n", "[Mask]...\n")
    c_gen = from_paper("Please", "K Potential", J4_WRAPS, after="C-Gen Prompt Template for")
    assert c_gen == printed("c_gen")


def test_what_is_evaluated_is_what_denoisers_are_trained_on(tmp_path: Path) -> None:
    trained_on = ROOT / "dspy_diffusion_infill/training/data/feedback_collection.txt"
    evaluated = ROOT / "dspy_diffusion_infill/evaluation/prompts/judge_v1.txt"
    assert evaluated.read_bytes() == trained_on.read_bytes()
    record = {**ROW, "orig_feedback": "Fine.", "orig_score": "4"}
    (tmp_path / "row.jsonl").write_text(json.dumps(record), encoding="utf-8")
    (row,) = read_pairs(tmp_path / "row.jsonl")
    (sent,) = messages(Judge("judge_v1"))
    assert row.prompt == sent["content"]
    assert row.response == judge_template("judge_v1").gold_verdict(4, "Fine.")


def test_the_masked_judge_keeps_everything_but_task_and_score_lines() -> None:
    full, masked = judge_template("judge_v1").text, judge_template("judge_masked").text
    assert masked.startswith("[[infill:160]]\n###The instruction to evaluate:\n")
    assert masked.count("\nScore [[infill:16]]") == 5
    kept = masked.partition("\n")[2].partition("Score [[")[0]
    assert kept in full
    assert masked.endswith("\n\n###Feedback:")


@pytest.mark.parametrize("version", [1, 2])
def test_summevals_rubric_is_text_of_the_same_prompt(version: int) -> None:
    """What a judge is sent is the same to the character; the rubric is no field any more."""
    example = summary_example(
        "d", "M", "Text.", "Reference.", "Output.", dict.fromkeys(DIMENSIONS, 3)
    )
    plain, fixed = Judge(f"judge_v{version}"), Judge(f"judge_v{version}_summeval")
    sent = [
        judge.adapter.format(
            judge.judge.signature, [], {f: as_feedback(example)[f] for f in judge.template.fields}
        )
        for judge in (plain, fixed)
    ]
    assert sent[0] == sent[1]
    assert fixed.template.fields == ("orig_instruction", "orig_response", "orig_reference_answer")
    assert fixed.template.gold == plain.template.gold


def windows_of(name: str) -> tuple[str, list[Window]]:
    """A template, and its windows over words."""
    template = judge_template(name)
    words = [found.span() for found in re.finditer(r"\s*\S+", template.text)]
    spans = Protection(signature=template.signature()).spans(template.text)
    return template.text, SlidingWindow().windows(template.text, words, spans)


@pytest.mark.parametrize("version", [1, 2])
def test_windows_reach_every_line_of_summevals_rubric_and_no_placeholder(version: int) -> None:
    text, windows = windows_of(f"judge_v{version}_summeval")
    counts = [
        sum(window.start < found.end() and window.end > found.start() for window in windows)
        for found in re.finditer(r"^(?:###Score Rubrics|Score \d).*$", text, re.MULTILINE)
    ]
    assert counts == [5, 7, 6, 6, 6, 6]
    assert (len(windows_of(f"judge_v{version}")[1]), len(windows)) == (28, 55)
    assert not any("{" in window.text_of(text) for window in windows)


def test_the_task_description_fits_the_masks_of_the_masked_judge() -> None:
    """J.1's is 137 tokens of LLaDA's, and 144 words and punctuation marks."""
    head = judge_template("judge_v1").text.partition("\n\n")[0]
    num_masks = int(re.findall(r"infill:(\d+)", judge_template("judge_masked").text)[0])
    assert len(re.findall(r"\w+|[^\w\s]", head)) == 144 < num_masks == 160


@pytest.mark.parametrize("name", ["judge_masked", "c_gen_masked", "g_eval_masked"])
def test_masked_templates_ask_for_the_same_fields_as_the_plain_ones(name: str) -> None:
    masked = judge_template(name)
    plain = judge_template(name.replace("judge_masked", "judge_v1").replace("_masked", ""))
    assert masked.is_masked and not plain.is_masked
    assert set(masked.fields) <= set(plain.fields)
    assert set(plain.fields) - set(masked.fields) <= {
        f"orig_score{k}_description" for k in range(6)
    }
    assert take_marks(masked.text)[0].count("[[") == 0


@pytest.mark.parametrize("name", ["judge_v1", "c_gen", "g_eval"])
def test_a_signature_keeps_the_text_of_its_template(name: str) -> None:
    template = judge_template(name)
    assert template.signature().instructions == template.text
    assert tuple(template.signature().input_fields) == template.fields


def test_gold_verdicts_are_read_back() -> None:
    assert judge_template("judge_v1").gold_verdict(4) == "[RESULT] 4"
    assert judge_template("judge_v1").gold_verdict(4, "Fine.") == "Fine. [RESULT] 4"
    assert judge_template("judge_v2").gold_verdict(4, "Fine.") == "Fine. [RESULT] 4"
    assert judge_template("judge_masked").gold_verdict(1.75) == "[RESULT] 1.75"
    assert judge_template("g_eval").gold_verdict(10 / 3) == "3.33"
    for name in ("judge_v1", "judge_v2", "c_gen", "g_eval"):
        judge = Judge(name)
        assert judge.read(judge.template.gold_verdict(2.5)).score == 2.5


def test_an_unknown_template_is_refused() -> None:
    with pytest.raises(ValueError, match="template must be one of judge_v1"):
        judge_template("prometheus")


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        (1, "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nU [/INST]"),
        (2, "<s>[INST] S\nU [/INST]"),
    ],
)
def test_chat_templates_for_serving_prometheus(version: int, expected: str) -> None:
    folder = Path(dspy_folder()) / "prompts"
    template = (folder / f"chat_v{version}.jinja").read_text(encoding="utf-8")
    turns = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    assert environment.from_string(template).render(messages=turns) == expected
    alone = environment.from_string(template).render(messages=turns[1:])
    assert alone == "<s>[INST] U [/INST]"


def dspy_folder() -> Path:
    from dspy_diffusion_infill import evaluation

    return Path(evaluation.__file__).parent


def test_prompts_have_no_final_line_break() -> None:
    assert read_prompt("gsm8k") == "Q: {question}\nA:"
    example = dspy.Example(question="2+2?")
    assert read_prompt("gsm8k").format(**example) == "Q: 2+2?\nA:"
