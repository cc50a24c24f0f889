import json
import re
from pathlib import Path

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_diffusion_infill.evaluation.gsm8k import exact_match, gsm8k_answer

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "gsm8k"

WORKED = [
    # text, strict, flexible
    ("48/2 = <<48/2=24>>24 clips.\n#### 72", "72", "72"),
    ("She pays $1,234.50 in all.\n#### 1,234.50", "1234.50", "1234.50"),
    ("#### -3", "-3", "-3"),
    ("#### 5.", "5", "5"),
    ("#### 12 dollars, then #### 13", "12", "13"),
    ("The answer is 42.", None, "42"),
    ("The total is $18.", None, "18"),
    ("It costs $5 and then 7 more.", None, "7"),
    # What matches last counts, and one dot goes: as EleutherAI's harness has it.
    ("It costs $5 and then 7 more...", None, None),
    ("It is 42..", None, "42."),
    ("So $1,000 or -$5,", None, "-5"),
    ("#### 1,000.", "1000", "1000"),
    ("#### none, but 3 and 4", None, "4"),
    ("####72", None, "72"),
    ("no number here...", None, None),
    ("", None, None),
]


@pytest.mark.parametrize(("text", "strict", "flexible"), WORKED)
def test_both_rules_on_worked_solutions(
    text: str, strict: str | None, flexible: str | None
) -> None:
    assert gsm8k_answer(text) == strict
    assert gsm8k_answer(text, rule="strict") == strict
    assert gsm8k_answer(text, rule="flexible") == flexible


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="rule must be one of"):
        gsm8k_answer("#### 1", rule="lenient")  # pyright: ignore[reportArgumentType]


def test_exact_match_compares_the_extracted_answers() -> None:
    example = dspy.Example(question="?", answer="so 6\n#### 1,006").with_inputs("question")
    assert exact_match(example, dspy.Prediction(answer="It is 1006.")) == 1.0
    assert exact_match(example, dspy.Prediction(answer="It is 1006."), rule="strict") == 0.0
    assert exact_match(example, dspy.Prediction(answer="#### 1006"), rule="strict") == 1.0
    assert exact_match(example, dspy.Prediction(answer=None)) == 0.0


@given(st.text(alphabet="#-$0123456789., ab"))
def test_a_flexible_answer_is_the_last_match_without_commas_dollars_and_one_dot(text: str) -> None:
    matches = [a or b for a, b in re.findall(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", text)]
    found = gsm8k_answer(text, rule="flexible")
    if found is None:
        return
    float(found)
    plain = matches[-1].replace(",", "").replace("$", "")
    assert found == (plain[:-1] if plain.endswith(".") else plain)


@pytest.mark.skipif(not DATA.exists(), reason="the shared GSM8K files are not here")
def test_every_gold_solution_gives_a_number() -> None:
    texts = [(DATA / f"{name}.jsonl").read_text(encoding="utf-8") for name in ("train", "test")]
    lines = [line for text in texts for line in text.splitlines()]
    assert len(lines) == 8792
    for line in lines:
        answer = json.loads(line)["answer"]
        strict = gsm8k_answer(answer)
        assert strict is not None
        float(strict)
        assert gsm8k_answer(answer, rule="flexible") == strict
