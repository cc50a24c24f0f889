import math

import numpy as np
import pytest

from dspy_diffusion_infill.evaluation.statistics import (
    Comparison,
    bootstrap_interval,
    compare,
    compare_means,
    compare_runs,
    spread,
)


def correlated(size: int, noise: float, seed: int) -> tuple[list[float], list[float]]:
    rng = np.random.default_rng(seed)
    human = rng.normal(size=size)
    return list(human + noise * rng.normal(size=size)), list(human)


def test_spread_leaves_out_runs_without_the_figure() -> None:
    found = spread([0.2, None, 0.4])
    assert found.mean == pytest.approx(0.3)
    assert found.std == pytest.approx(np.std([0.2, 0.4], ddof=1))
    assert found.num_runs == 2
    assert spread([0.5]).std is None
    assert spread([None]).mean is None


@pytest.mark.parametrize("level", ["sample", "summary", "system"])
def test_a_bootstrap_interval_holds_the_figure_and_repeats_with_its_seed(level: str) -> None:
    judge, human = correlated(60, 0.7, seed=3)
    groups = list(np.repeat(np.arange(12), 5))
    options = {"measure": "pearson", "level": level, "groups": groups, "num_resamples": 200}
    found = bootstrap_interval(judge, human, **options)
    assert found is not None
    assert found == bootstrap_interval(judge, human, **options)
    assert found != bootstrap_interval(judge, human, **options, seed=1)
    assert -1 <= found.low < found.high <= 1
    assert found.low > 0  # the correlation is strong


def test_an_interval_of_an_undefined_figure_is_none() -> None:
    assert bootstrap_interval([3, 3, 3], [1, 2, 3]) is None
    assert bootstrap_interval([], []) is None


def test_confidence_outside_its_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"confidence must be in \(0, 1\)"):
        bootstrap_interval([1, 2], [1, 2], confidence=95)


def test_a_clearly_better_judge_is_found_better() -> None:
    good, human = correlated(120, 0.2, seed=4)
    bad, _ = correlated(120, 0.2, seed=5)
    found = compare(bad, good, human, measure="pearson", num_resamples=200)
    assert found.difference is not None and found.difference > 0.5
    assert found.interval is not None and found.interval.low > 0
    assert found.p_value is not None and found.p_value < 0.02
    assert found.num_rows == 120


def test_a_judge_is_as_good_as_itself() -> None:
    judge, human = correlated(40, 0.5, seed=6)
    found = compare(judge, judge, human, num_resamples=100)
    assert found.difference == 0
    assert found.p_value == 1
    assert found.interval is not None and (found.interval.low, found.interval.high) == (0, 0)


def test_rows_that_either_judge_could_not_score_do_not_enter() -> None:
    found = compare([1, 2, None, 4, 5], [1, 2, 3, None, 5], [1, 2, 3, 4, 5], num_resamples=20)
    assert found.num_rows == 3


@pytest.mark.parametrize("missing", [None, math.nan, math.inf])
def test_a_missing_score_gives_no_figure_of_its_own(missing: float | None) -> None:
    found = compare_means([0.1, missing, 0.2, 0.4], [0.3, 0.9, 0.4, 0.5], num_resamples=50)
    assert found == compare_means([0.1, 0.2, 0.4], [0.3, 0.4, 0.5], num_resamples=50)
    assert found.num_rows == 3
    assert spread([0.2, missing, 0.4]) == spread([0.2, None, 0.4])
    judge, human = [1.0, 2.0, missing, 4.0], [1, 2, 3, 5]
    dropped = bootstrap_interval([1, 2, 4], [1, 2, 5], num_resamples=50)
    assert bootstrap_interval(judge, human, num_resamples=50) == dropped


@pytest.mark.parametrize("missing", [None, math.nan])
def test_where_every_row_lacks_a_score_there_is_no_difference_interval_or_p_value(
    missing: float | None,
) -> None:
    known = [0.1, 0.2, 0.3, 0.4]
    for first, second in (([missing] * 4, known), (known, [missing] * 4)):
        nothing = Comparison(None, None, None, 0)
        assert compare_means(first, second, num_resamples=20) == nothing
        assert compare(first, second, known, num_resamples=20) == nothing
    assert bootstrap_interval(known, [missing] * 4, num_resamples=20) is None


@pytest.mark.parametrize("scores", [[], [0.5], [0.5, 0.7]])
def test_too_few_rows_have_no_interval_and_no_p_value(scores: list[float]) -> None:
    higher = [score + 0.1 for score in scores]
    means, judges = compare_means(scores, higher), compare(scores, higher, scores)
    assert (means.interval, means.p_value) == (judges.interval, judges.p_value) == (None, None)
    assert (means.difference is None) == (not scores)
    assert bootstrap_interval(scores, scores) is None


def test_too_few_articles_with_a_coefficient_have_no_interval() -> None:
    judge, human = [1, 2, 3, 1, 2, 3, 4, 4, 4, 4, 4, 4], [1, 3, 2, 1, 2, 3, 1, 2, 3, 1, 2, 3]
    groups = ["a"] * 3 + ["b"] * 3 + ["c"] * 3 + ["d"] * 3  # the judge is constant in c and d
    assert bootstrap_interval(judge, human, level="summary", groups=groups) is None
    assert bootstrap_interval(judge[:6], human[:6], level="system", groups=groups[:6]) is None


def test_a_judge_that_never_varies_has_no_difference() -> None:
    found = compare([3, 3, 3, 3], [1, 2, 3, 4], [1, 2, 3, 4], num_resamples=20)
    assert found == Comparison(None, None, None, 4)


def test_means_are_compared_row_by_row() -> None:
    wrong, right = [0.0] * 30, [1.0] * 25 + [0.0] * 5
    found = compare_means(wrong, right, num_resamples=300)
    assert found.difference == pytest.approx(25 / 30)
    assert found.p_value is not None and found.p_value < 0.01
    with pytest.raises(ValueError, match="same rows, got 30 and 1"):
        compare_means(wrong, [1.0])


def test_runs_of_a_row_move_together() -> None:
    first, second = [0.0, 1.0, 0.0, 1.0] * 6, [1.0, 1.0, 0.0, 1.0] * 6
    one = compare_means(first, second, num_resamples=200)
    assert compare_runs([first] * 3, [second] * 3, num_resamples=200) == one
    judge, human = correlated(30, 0.5, seed=8)
    worse, _ = correlated(30, 0.5, seed=9)
    alone = [compare(worse, other, human, num_resamples=0) for other in (judge, worse)]
    both = compare_runs([worse, worse], [judge, worse], human, num_resamples=50)
    assert alone[0].difference is not None and alone[1].difference == 0
    assert both.difference == pytest.approx(alone[0].difference / 2)


def test_runs_must_be_over_the_same_rows() -> None:
    for runs in (([[1.0]], [[1.0], [2.0]]), ([[1.0]], [[1.0, 2.0]]), ([], [])):
        with pytest.raises(ValueError, match="as many runs over the same rows, got"):
            compare_runs(*runs)
