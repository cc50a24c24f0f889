"""Whether a trial is kept: ties need evidence, failures never reach the tie rule as scores."""

from dataclasses import replace
from math import comb

import pytest

from dspy_diffusion_infill.optimizer.acceptance import (
    MetricFirst,
    acceptance_of,
    is_better,
    loses_a_label,
    paired_p,
)
from dspy_diffusion_infill.optimizer.guidance import Gain
from dspy_diffusion_infill.outcomes import Evaluation

CLEAR, UNCLEAR = Gain(1.0, 0.1), Gain(0.1, 1.0)


def scored(*scores, failed=()):
    failures = tuple("RuntimeError: x" for _ in failed)
    return Evaluation(tuple(scores), (None,) * len(scores), failures, tuple(failed))


@pytest.mark.parametrize(
    ("new", "best", "gain", "is_kept"),
    [
        (scored(1, 1), scored(1, 0), None, True),
        (scored(1, 0), scored(1, 1), CLEAR, False),
        (scored(1, 0), scored(0, 1), None, False),
        (scored(1, 0), scored(0, 1), CLEAR, True),
        (scored(1, 0), scored(0, 1), UNCLEAR, False),
        # Not one row was answered: the tie says nothing.
        (scored(0, 0, failed=(0, 1)), scored(0, 0, failed=(0, 1)), CLEAR, False),
        # A row fails that the best program answered, if wrongly.
        (scored(1, 0, failed=(1,)), scored(1, 0), CLEAR, False),
        # The same row failed before, and another is answered.
        (scored(1, 0, failed=(1,)), scored(1, 0, failed=(1,)), CLEAR, True),
        (scored(1, 0), scored(1, 0, failed=(1,)), CLEAR, True),
        # Scores that are never above 0.
        (scored(-1, 0), scored(-1, -1), None, True),
        (scored(-1, -2), scored(-1, -1), CLEAR, False),
    ],
)
def test_the_metric_decides_and_a_tie_needs_evidence(new, best, gain, is_kept):
    assert is_better(new, best, gain) is is_kept
    assert MetricFirst().accepts(new, best, gain) is is_kept


def test_with_labels_a_better_score_is_not_kept_where_one_label_is_lost():
    new, best = scored(1, 1, 1, 0, 0, 0), scored(1, 0, 0, 1, 0, 0)
    assert MetricFirst().accepts(new, best, None)
    assert not MetricFirst(tuple("aaabbb")).accepts(new, best, None)


@pytest.mark.parametrize(
    ("new", "best", "is_lost"),
    [
        ([0, 0, 0, -5, -5, -5], [0, -5, -5, 0, -5, -5], True),
        ([0, 0, 0, -5, -1, -5], [0, -5, -5, 0, -5, -5], False),
        ([0, 0, 0, -5, -5, -5], [0, -5, -5, -5, -5, -5], False),
    ],
)
def test_a_label_is_lost_under_a_metric_whose_best_score_is_0(new, best, is_lost):
    assert loses_a_label(new, best, "aaabbb") is is_lost


# Asking for more than a higher score


def test_a_gain_below_the_least_one_is_not_kept():
    new, best = scored(1, 1, 0, 0), scored(1, 0, 0, 0)
    assert MetricFirst(min_gain=0.25).accepts(new, best, None)
    assert not MetricFirst(min_gain=0.26).accepts(new, best, None)
    assert not MetricFirst(min_gain=0.01).accepts(scored(1, 0), scored(0, 1), CLEAR)  # a tie


def test_a_longer_text_must_bring_its_penalty_and_a_shorter_one_wins_a_tie():
    rule = MetricFirst(length_penalty=0.01)
    best = replace(scored(1, 0, 0, 0), length=100)
    better = scored(1, 1, 0, 0)
    assert rule.accepts(replace(better, length=124), best, None)
    assert not rule.accepts(replace(better, length=126), best, None)
    assert rule.accepts(replace(best, length=99), best, None)
    assert not MetricFirst().accepts(replace(best, length=99), best, None)


@pytest.mark.parametrize(
    ("new", "best", "p"),
    [
        ([1, 1, 1, 1, 1], [0, 0, 0, 0, 0], 1 / 32),
        ([1, 1, 1, 1, 0, 7], [0, 0, 0, 0, 1, 7], 6 / 32),  # 4 or 5 of 5 rows
        ([1, 0], [0, 1], 0.75),
        ([1, 0], [0, 0], 0.5),
        ([0, 0], [1, 0], 1.0),
        ([1, 0], [1, 0], 1.0),
        ([3.0, 1.0], [1.0, 2.0], 0.5),  # 2 - 1, against 2 + 1, -2 + 1 and -2 - 1
    ],
)
def test_a_p_value_counts_the_signs_that_gain_as_much(new, best, p):
    assert paired_p(new, best) == pytest.approx(p)


def test_a_p_value_of_many_rows_is_near_the_exact_one_and_the_same_each_time():
    new, best = [1.0] * 14 + [0.0] * 6, [0.0] * 14 + [1.0] * 6
    exact = sum(comb(20, k) for k in range(14, 21)) / 2**20
    assert paired_p(new, best) == paired_p(new, best) == pytest.approx(exact, abs=0.01)


def test_a_gain_that_may_be_chance_is_not_kept():
    new, best = scored(1, 1, 1, 1, 0), scored(0, 0, 0, 0, 0)
    assert MetricFirst(max_p=0.07).accepts(new, best, None)  # 1 of 16
    assert not MetricFirst(max_p=0.06).accepts(new, best, None)


def test_the_rows_labels_are_taken_where_the_rule_names_none():
    assert acceptance_of(None, "ab") == MetricFirst("ab")
    assert acceptance_of(MetricFirst(min_gain=0.1), "ab") == MetricFirst("ab", min_gain=0.1)
    assert acceptance_of(MetricFirst(()), "ab") == MetricFirst(())
    new, best = scored(1, 1, 1, 0, 0, 0), scored(1, 0, 0, 1, 0, 0)
    assert MetricFirst(()).accepts(new, best, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_gain": -0.1}, "min_gain must be 0 or more, got min_gain=-0.1"),
        ({"length_penalty": float("nan")}, "length_penalty must be 0 or more, got .*nan"),
        ({"max_p": 0}, "max_p must be above 0 and at most 1, got max_p=0"),
        ({"max_p": 1.5}, "max_p must be above 0 and at most 1, got max_p=1.5"),
    ],
)
def test_a_number_out_of_its_range_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MetricFirst(**options)
