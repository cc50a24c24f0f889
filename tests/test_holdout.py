"""Rows that take no part in a search, and what the result is worth on them."""

import logging

import dspy
import numpy
import pytest
from doubles import LEFT_TO_RIGHT, WordDenoiser, rule_lm
from test_diffusion_infill import ROWS, answer_if_told_briefly, compile_with, program

from dspy_diffusion_infill.optimizer.diffusion_infill import DiffusionInfill
from dspy_diffusion_infill.optimizer.holdout import split_holdout
from dspy_diffusion_infill.report import print_report
from dspy_diffusion_infill.template_adapter import TemplateAdapter

MORE = [*ROWS, *(dspy.Example(row, text=row.text + "!").with_inputs("text") for row in ROWS)]


UNLABELLED = dspy.Example(text="number 1 is red").with_inputs("text")


def rows_asked(prompts: list[str]) -> list[str]:
    """The text of the row that each prompt asks about."""
    return [prompt.rsplit("number", 1)[1] for prompt in prompts]


@pytest.mark.parametrize(("fraction", "num_held"), [(0.0, 0), (0.25, 3), (0.3, 3), (0.5, 6)])
def test_the_rows_are_split_by_the_seed(fraction, num_held):
    kept, held = split_holdout(MORE, fraction, seed=3)
    assert len(held) == num_held and len(kept) == 12 - num_held
    assert sorted(map(str, [*kept, *held])) == sorted(map(str, MORE))
    assert kept == [row for row in MORE if row in kept]  # in order
    assert split_holdout(MORE, fraction, seed=3) == (kept, held)


def test_too_few_rows_are_not_split(caplog):
    with caplog.at_level(logging.WARNING):
        assert split_holdout(ROWS[:3], 0.25, seed=0) == (ROWS[:3], [])
    assert "holdout=0.25 of 3 rows holds none out" in caplog.text


@pytest.mark.parametrize("order", ["left_to_right", "adaptive"])
def test_no_row_that_is_held_out_is_seen_before_the_end(order):
    lm, engine = rule_lm(answer_if_told_briefly)
    denoiser = WordDenoiser()
    better = compile_with(
        lm=lm, rows=MORE, denoiser=denoiser, holdout=0.25, order=order, max_metric_calls=120
    )
    results = better.detailed_results
    held = [f"{row.text}\n" for row in split_holdout(MORE, 0.25, seed=0)[1]]
    assert len(held) == results.num_holdout == 3
    assert not any(text in context for context in denoiser.seen for text in held)
    asked = rows_asked(engine.prompts)
    last = asked[-6:]
    assert not any(one in asked[:-6] for one in last)
    assert last[:3] == last[3:]  # the student on the three rows, then the result
    assert results.metric_calls == len(asked) <= 120


def test_the_scores_on_held_out_rows_are_those_of_student_and_result():
    lm, _ = rule_lm(answer_if_told_briefly)
    better = compile_with(lm=lm, rows=MORE, holdout=0.25, max_metric_calls=300)
    results, held = better.detailed_results, split_holdout(MORE, 0.25, seed=0)[1]
    with dspy.context(lm=lm, adapter=TemplateAdapter()):
        for one, expected in (
            (program(), results.holdout_before),
            (better, results.holdout_after),
        ):
            right = [one(text=row.text).colour == row.colour for row in held]
            assert sum(right) / len(right) == expected
    assert len(results.scores_after) == len(MORE) - 3


def test_a_search_that_keeps_nothing_scores_them_once():
    lm, engine = rule_lm(lambda prompt: "no idea")
    results = compile_with(lm=lm, rows=MORE, holdout=0.25, max_metric_calls=60).detailed_results
    assert results.holdout_before == results.holdout_after == 0.0
    assert results.metric_calls == len(engine.prompts) <= 60 - 3


def frugal_lm() -> dspy.LM:
    """Each answer takes two tokens by its usage, and may take one by its ``max_tokens``."""
    lm, _ = rule_lm(lambda prompt: "no idea")
    lm.kwargs["max_tokens"] = 1
    return lm


def test_what_they_may_take_is_kept_back_from_a_cap_on_tokens():
    results = compile_with(
        lm=frugal_lm(), rows=MORE, holdout=0.25, max_lm_tokens=1500, sweeps=50
    ).detailed_results
    assert results.end_reason == "max_lm_tokens"
    assert results.holdout_before == results.holdout_after == 0.0
    assert results.lm_tokens <= 1500


def test_where_the_time_is_over_they_are_not_scored():
    results = compile_with(
        lm=frugal_lm(), rows=MORE, holdout=0.25, max_seconds=0.5, sweeps=10_000
    ).detailed_results
    assert results.end_reason == "max_seconds"
    assert results.holdout_before is results.holdout_after is None


def test_a_resumed_search_pays_for_them_once(tmp_path):
    options = {"rows": MORE, "holdout": 0.25, "max_metric_calls": 80, "log_dir": tmp_path}
    first = compile_with(**options).detailed_results
    lm, engine = rule_lm(answer_if_told_briefly)
    again = compile_with(lm=lm, **options).detailed_results
    assert engine.prompts == []
    assert again.holdout_after == first.holdout_after is not None


def test_a_budget_must_cover_them_and_the_estimate_counts_them():
    with pytest.raises(ValueError, match=r"max_metric_calls=14 does not cover .* 15 program runs"):
        compile_with(rows=MORE, holdout=0.25, max_metric_calls=14)
    lm, _ = rule_lm(answer_if_told_briefly)
    with dspy.context(lm=lm, adapter=TemplateAdapter()):
        plain, held = (
            DiffusionInfill(
                None, WordDenoiser(), guidance=None, holdout=share, **LEFT_TO_RIGHT
            ).estimate(program(), MORE)
            for share in (None, 0.25)
        )
    windows = plain.num_windows * 2 * 8
    assert plain.metric_calls == 12 + windows * 12
    assert held.metric_calls == 9 + windows * 9 + 2 * 3


@pytest.mark.parametrize(("num_rows", "num_held"), [(39, 0), (40, 10), (101, 25)])
def test_without_a_share_a_quarter_of_forty_rows_or_more_is_held_out(num_rows, num_held, caplog):
    kept, held = split_holdout(MORE[:1] * num_rows, None, seed=0)
    assert (len(kept), len(held)) == (num_rows - num_held, num_held)
    assert caplog.messages == []


def test_the_report_shows_them(capsys):
    better = compile_with(rows=MORE, holdout=0.25, max_metric_calls=60)
    print_report(better.detailed_results)
    assert "held-out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("holdout", "error"),
    [(0.6, ValueError), (-0.1, ValueError), (True, TypeError), ("a", TypeError)],
)
def test_a_wrong_share_is_refused(holdout, error):
    with pytest.raises(error, match=r"holdout must be .*0 to 0\.5, got holdout="):
        DiffusionInfill(holdout=holdout)


def test_rows_of_their_own_are_held_out_and_the_search_has_all_others():
    lm, engine = rule_lm(answer_if_told_briefly)
    results = compile_with(
        lm=lm, rows=MORE[:9], holdout=MORE[9:], max_metric_calls=120
    ).detailed_results
    assert len(results.scores_after) == 9 and results.num_holdout == 3
    asked = rows_asked(engine.prompts)
    assert asked[-6:-3] == asked[-3:] and not set(asked[-3:]) & set(asked[:-6])
    assert sum(results.holdout_scores_after) / 3 == results.holdout_after
    assert results.settings["options"]["holdout"] == "3 examples"
    assert "# holdout: 3 examples" in results.settings["code"]
    assert "# trainset: 9 examples" in results.settings["code"]


@pytest.mark.parametrize(
    ("holdout", "error", "words"),
    [
        ([], ValueError, "holdout is an empty list: give rows, or leave it out"),
        ([*MORE[9:], MORE[2]], ValueError, r"holdout\[3\] is trainset\[2\] too"),
        (["red"], TypeError, r"holdout\[0\] must be a dspy.Example, got"),
        ([dspy.Example(text="it")], ValueError, r"holdout\[0\] does not say which"),
        ([MORE[9], UNLABELLED], ValueError, r"holdout\[1\]: the example .* labels none of"),
    ],
)
def test_rows_that_cannot_be_held_out_are_refused_before_any_call(holdout, error, words):
    lm, engine = rule_lm(answer_if_told_briefly)
    with pytest.raises(error, match=words):
        compile_with(lm=lm, rows=MORE[:9], holdout=holdout, max_metric_calls=120)
    assert engine.prompts == []


@pytest.mark.parametrize(("num_held", "is_told"), [(0, True), (3, False)])
def test_who_has_rows_held_out_is_not_told_to_hold_some_out(num_held, is_told, caplog):
    compile_with(rows=MORE[:3], holdout=MORE[9 : 9 + num_held] or None, max_metric_calls=60)
    assert "may be chance" in caplog.text
    assert ("give holdout=0.25" in caplog.text) == is_told


def test_rows_whose_values_cannot_be_compared_are_different_ones():
    rows = [
        dspy.Example(pixels=numpy.arange(number, number + 3), **row.toDict()).with_inputs("text")
        for number, row in enumerate(MORE[:9])
    ]
    results = compile_with(rows=rows[:6], holdout=rows[6:], max_metric_calls=60).detailed_results
    assert len(results.scores_after) == 6 and results.num_holdout == 3
    with pytest.raises(ValueError, match=r"holdout\[0\] is trainset\[1\] too"):
        compile_with(rows=rows[:6], holdout=[rows[1]], max_metric_calls=60)
