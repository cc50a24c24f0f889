import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dspy_diffusion_infill.evaluation.agreement import agreement
from dspy_diffusion_infill.evaluation.statistics import bootstrap_interval

scores = st.one_of(st.integers(1, 5).map(float), st.none(), st.just(math.nan))


def tied(rng: np.random.Generator, size: int) -> np.ndarray:
    return rng.integers(1, 6, size=size).astype(float)


def test_sample_level_equals_scipy_on_ties_and_missing_scores() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        judge, human = tied(rng, 60), rng.normal(size=60).round(1)
        judge[rng.random(60) < 0.1] = math.nan
        human[rng.random(60) < 0.1] = math.nan
        known = np.isfinite(judge) & np.isfinite(human)
        found = agreement(list(judge), list(human))
        x, y = judge[known], human[known]
        assert found.pearson == pytest.approx(stats.pearsonr(x, y)[0], abs=1e-12)
        assert found.spearman == pytest.approx(stats.spearmanr(x, y)[0], abs=1e-12)
        assert found.kendall == pytest.approx(stats.kendalltau(x, y)[0], abs=1e-12)
        assert found.num_rows == known.sum()
        assert found.num_skipped == found.num_missing == (~known).sum()


def test_none_is_missing_as_nan_is() -> None:
    with_none = agreement([1, 2, None, 4], [2, 1, 3, None])
    assert with_none == agreement([1, 2, math.nan, 4], [2, 1, 3, math.nan])
    assert with_none.num_rows == 2
    assert with_none.num_skipped == 2
    assert with_none.pearson == pytest.approx(-1)


@pytest.mark.parametrize(
    ("judge", "human"),
    [([3, 3, 3], [1, 2, 3]), ([1, 2, 3], [4, 4, 4]), ([2], [3]), ([], []), ([None, None], [1, 2])],
)
def test_an_undefined_coefficient_is_none_and_not_nan(judge: list, human: list) -> None:
    found = agreement(judge, human)
    assert (found.pearson, found.spearman, found.kendall) == (None, None, None)


def test_summary_level_is_the_mean_over_articles_and_skips_those_without_variance() -> None:
    rng = np.random.default_rng(1)
    articles = np.repeat(np.arange(6), 8)
    judge, human = tied(rng, 48), tied(rng, 48) + rng.normal(size=48)
    judge[articles == 2] = 3.0
    human[articles == 4] = 1.0
    found = agreement(list(judge), list(human), level="summary", groups=list(articles))
    each = [(judge[articles == k], human[articles == k]) for k in (0, 1, 3, 5)]
    assert found.pearson == pytest.approx(np.mean([stats.pearsonr(a, b)[0] for a, b in each]))
    assert found.spearman == pytest.approx(np.mean([stats.spearmanr(a, b)[0] for a, b in each]))
    assert found.kendall == pytest.approx(np.mean([stats.kendalltau(a, b)[0] for a, b in each]))
    assert found.num_skipped == 2
    assert found.num_rows == 32
    assert found.num_missing == 0


def test_summary_level_counts_an_article_whose_rows_are_all_missing() -> None:
    found = agreement(
        [1, 2, None, None], [1, 3, 2, 5], level="summary", groups=["a", "a", "b", "b"]
    )
    assert found.pearson == pytest.approx(1)
    assert (found.num_rows, found.num_skipped, found.num_missing) == (2, 1, 2)


def test_system_level_correlates_the_means_of_the_systems() -> None:
    rng = np.random.default_rng(2)
    systems = np.tile(np.arange(5), 7)
    judge, human = tied(rng, 35), tied(rng, 35)
    found = agreement(list(judge), list(human), level="system", groups=list(systems))
    means = [(judge[systems == k].mean(), human[systems == k].mean()) for k in range(5)]
    x, y = map(np.array, zip(*means, strict=True))
    assert found.pearson == pytest.approx(stats.pearsonr(x, y)[0])
    assert found.spearman == pytest.approx(stats.spearmanr(x, y)[0])
    assert found.kendall == pytest.approx(stats.kendalltau(x, y)[0])
    assert (found.num_rows, found.num_skipped) == (35, 0)


def test_system_level_counts_a_system_without_a_scored_row() -> None:
    found = agreement([1, 2, None], [1, 2, 3], level="system", groups=["a", "b", "c"])
    assert (found.num_skipped, found.num_missing) == (1, 1)


@pytest.mark.parametrize("level", ["sample", "summary", "system"])
def test_scores_and_groups_may_be_arrays(level: str) -> None:
    judge, human = [1, 2, 3, 2, 4, 5], [2, 1, 3, 2, 5, 4]
    for groups in (["a", "a", "a", "b", "b", "b"], [0, 1, 2, 0, 1, 2]):
        as_lists = agreement(judge, human, level=level, groups=groups)
        as_arrays = agreement(
            np.array(judge), np.array(human), level=level, groups=np.array(groups)
        )
        assert as_arrays == as_lists
        assert bootstrap_interval(
            judge, human, level=level, groups=np.array(groups), num_resamples=20
        ) == bootstrap_interval(judge, human, level=level, groups=groups, num_resamples=20)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"level": "corpus"}, "level must be one of"),
        ({"level": "summary"}, "level='summary' needs groups=, the article of each row"),
        ({"level": "system"}, "the system of each row"),
        ({"groups": ["a"]}, "groups must name 2 rows, got 1"),
    ],
)
def test_wrong_arguments_name_the_fix(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        agreement([1, 2], [1, 2], **arguments)


def test_scores_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="got 2 and 3"):
        agreement([1, 2], [1, 2, 3])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(scores, scores, st.integers(0, 3)), max_size=40))
def test_every_coefficient_is_none_or_in_range_and_rows_add_up(rows: list) -> None:
    judge, human, groups = ([row[k] for row in rows] for k in range(3))
    for level in ("sample", "summary", "system"):
        found = agreement(judge, human, level=level, groups=groups)
        for value in (found.pearson, found.spearman, found.kendall):
            assert value is None or -1 - 1e-9 <= value <= 1 + 1e-9
        assert found.num_rows + found.num_missing <= len(rows)
        if level != "summary":
            assert found.num_rows + found.num_missing == len(rows)
