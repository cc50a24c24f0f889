"""Whether a trial is kept: ties need evidence, failures never reach the tie rule as scores."""

import pytest

from dspy_diffusion_infill.optimizer.acceptance import MetricFirst, is_better, loses_a_label
from dspy_diffusion_infill.optimizer.guidance import Gain
from dspy_diffusion_infill.runs import Evaluation

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
