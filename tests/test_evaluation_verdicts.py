import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_diffusion_infill.evaluation.verdicts import Verdict, parse_verdict, read_verdict

# The golden table: what a judge wrote, the score that it is, and why it has none.
GOLDEN: list[tuple[str, float | None, str | None]] = [
    # Prometheus's published forms
    ("Good job. [RESULT] 3", 3, None),
    ("Good job. [RESULT] (3)", 3, None),
    ("Good job. [RESULT] [3]", 3, None),
    ("Good job. [RESULT]3", 3, None),
    ("Good job. [RESULT]: 3", 3, None),
    ("Good job. [Result] 3", 3, None),
    ("Good job. [SCORE] 3", 3, None),
    ("Needs improvement. [RESULT] Score: 2", 2, None),
    ("Well done. [Result] Result: 4", 4, None),
    ("Average. [RESULT] 4/5", 4, None),
    ("Excellent. [RESULT] 5 out of 5", 5, None),
    ("Poor performance. [RESULT] score of 1", 1, None),
    ("Good job. Score: 3", 3, None),
    ("Good job. score: 3", 3, None),
    ("Good job. score of 1", 1, None),
    ("Good job. (Score 5)", 5, None),
    ("Good job. [Score 4]", 4, None),
    ("Good job. 3/5", 3, None),
    ("Good job. 3 out of 5", 3, None),
    ("Feedback: It fits. [RESULT] 1\n", 1, None),
    ("[RESULT] 4.", 4, None),
    ("**Score:** 4", 4, None),
    ("[RESULT] **4**", 4, None),
    ("Score: 4 (out of 5)", 4, None),
    # the paper's decimals
    ("[RESULT] 4.2", 4.2, None),
    ("It is good. [RESULT] (1.8)", 1.8, None),
    ("Score: 2.5", 2.5, None),
    ("4.8/5", 4.8, None),
    ("[RESULT] 5.0", 5, None),
    # the score is the one at the end
    ("Score 1 would be too low. [RESULT] 4", 4, None),
    ("[RESULT] 2, no: [RESULT] 4", 4, None),
    ("[RESULT] 3 because the summary is short", None, "no score"),
    ("[RESULT] 3 or 4", None, "no score"),
    ("Score 5: The response is excellent.", None, "no score"),
    # prose that happens to end with a number
    ("It does not deserve a score of 5.", None, "no score"),
    ("A 5 out of 5.", None, "no score"),
    ("I would not give this 4/5!", None, "no score"),
    ("As a result, 4.", None, "no score"),
    ("Result: 4.", None, "no score"),
    ("He said 'score 4'", None, "no score"),
    ("[RESULT] score of 1.", 1, None),
    ("[SCORE] 3!", 3, None),
    ("Score: 2 out of 5.", 2, None),
    ("**Score**: 4.", 4, None),
    ("[RESULT] 4.2.", 4.2, None),
    ("Score: 4.2.", 4.2, None),
    # outside the scale
    ("[RESULT] 7", None, "out of range"),
    ("[RESULT] 0", None, "out of range"),
    ("[RESULT] -1", None, "out of range"),
    ("[RESULT] 5.5", None, "out of range"),
    ("[RESULT] 4/10", None, "out of range"),
    ("Score: 40", None, "out of range"),
    ("8/5", None, "out of range"),
    # no score at all
    ("", None, "empty"),
    ("  \n", None, "empty"),
    ("The summary is fluent and complete.", None, "no score"),
    ("The score is definitely not 3.", None, "no score"),
    ("I rate this a perfect 10!", None, "no score"),
    ("Result: A", None, "no score"),
    ("[RESULT]", None, "no score"),
    ("[RESULT] four", None, "no score"),
    ("[RESULT] 3-4", None, "no score"),
    ("The ratio was 1.3/5", 1.3, None),
    ("Version 2.3/5", 2.3, None),
    ("13/4/5", None, "no score"),
]


@pytest.mark.parametrize(("text", "score", "problem"), GOLDEN, ids=[repr(t) for t, *_ in GOLDEN])
def test_golden_table(text: str, score: float | None, problem: str | None) -> None:
    assert read_verdict(text) == Verdict(score, problem)
    assert parse_verdict(text) == score


def test_a_missing_completion_is_empty() -> None:
    assert read_verdict(None) == Verdict(None, "empty")


def test_another_scale_moves_the_range_and_the_out_of() -> None:
    assert parse_verdict("[RESULT] 7", low=1, high=10) == 7
    assert parse_verdict("8/10", high=10) == 8
    assert parse_verdict("3/5", high=10) is None
    assert parse_verdict("[RESULT] 0", low=0) == 0


def test_a_scale_without_width_is_refused() -> None:
    with pytest.raises(ValueError, match="low must be below high, got low=5 and high=1"):
        parse_verdict("[RESULT] 3", low=5, high=1)


@given(st.text(), st.integers(-3, 12), st.sampled_from(["[RESULT] {}", "Score: {}", "{}/5"]))
def test_a_score_is_never_outside_the_scale(prose: str, number: int, form: str) -> None:
    score = parse_verdict(f"{prose} {form.format(number)}")
    assert score is None or 1 <= score <= 5


@given(st.text())
def test_any_text_is_read_without_an_error(text: str) -> None:
    verdict = read_verdict(text)
    assert (verdict.score is None) == (verdict.problem is not None)
