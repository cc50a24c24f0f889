"""Racing: which rows come first, and when a trial is given up."""

import numpy as np
import pytest

from dspy_diffusion_infill.optimizer.racing import Race, RowHistory


def history(*evaluations: list[float]) -> RowHistory:
    found = RowHistory.over(len(evaluations[0]))
    for scores in evaluations:
        found.add(dict(enumerate(scores)))
    return found


def test_rows_on_which_evaluations_differ_come_first():
    seen = history([0, 1, 0, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 0, 0, 0])
    first, second = Race(seen).blocks([0.0] * 8)
    assert {1, 3, 4} < set(first) and len(first) == 4
    assert sorted(first + second) == list(range(8))


def test_rows_that_can_be_won_and_lost_take_turns():
    best = [1.0] * 6 + [0.0] * 2
    (first, second) = Race(history(best)).blocks(best)
    assert [best[row] for row in first] == [0.0, 1.0, 0.0, 1.0]
    assert [best[row] for row in second] == [1.0] * 4


def test_blocks_grow_as_the_rows_so_far_do():
    assert [len(block) for block in Race(history([0.0] * 40)).blocks([0.0] * 40)] == [
        4,
        4,
        8,
        16,
        8,
    ]


def test_the_order_of_rows_is_the_seeds():
    seen, best = history([0.0] * 12), [0.0] * 12
    assert Race(seen, seed=1).blocks(best) == Race(seen, seed=1).blocks(best)
    assert Race(seen, seed=1).blocks(best) != Race(seen, seed=2).blocks(best)


@pytest.mark.parametrize(("tie", "expected"), [(True, True), (False, False)])
def test_only_a_tie_is_left_where_the_best_program_is_perfect(tie, expected):
    race = Race(history([1.0] * 8))
    assert race.can_win({0: 1.0, 1: 1.0}, [1.0] * 8, is_tie_enough=tie) is expected


def test_what_lost_every_row_that_tells_is_given_up():
    best = [1.0] * 8 + [0.0] * 8
    race = Race(history(best))
    assert not race.can_win(dict.fromkeys(range(8), 0.0), best, is_tie_enough=False)
    assert race.can_win(dict.fromkeys(range(8, 12), 1.0), best, is_tie_enough=False)


def test_scores_are_scaled_by_what_was_seen():
    best = [50.0] * 4 + [0.0] * 4
    race = Race(history(best, [100.0] * 8))
    assert race.can_win({0: 100.0, 1: 90.0}, best, is_tie_enough=False)
    assert not race.can_win(dict.fromkeys(range(4), 0.0), best, is_tie_enough=False)


def test_a_whole_trial_goes_to_acceptance():
    assert Race(history([1.0, 1.0])).can_win({0: 0.0, 1: 0.0}, [1.0, 1.0], is_tie_enough=False)


def test_winners_are_seldom_lost_and_losers_end_early():
    """Rows differ in difficulty and programs in quality, as in the model of item responses."""
    rng = np.random.default_rng(0)

    def scores(quality: float, difficulty: np.ndarray) -> list[float]:
        right = rng.random(len(difficulty)) < 1 / (1 + np.exp(-4 * (quality - difficulty)))
        return right.astype(float).tolist()

    rows_scored, wins, lost, gain, lost_gain = 0, 0, 0, 0.0, 0.0
    for number in range(200):
        difficulty = rng.normal(0, 1.5, 64)
        best = scores(0.0, difficulty)
        seen = history(best, *(scores(rng.normal(-0.7), difficulty) for _ in range(4)))
        whole = scores(rng.normal(-0.7), difficulty)
        race, new, goes_on = Race(seen, seed=number), {}, True
        for block in race.blocks(best):
            new |= {row: whole[row] for row in block}
            if not (goes_on := race.can_win(new, best, is_tie_enough=False)):
                break
        rows_scored += len(new)
        better = max(0.0, sum(whole) - sum(best))
        wins, gain = wins + (better > 0), gain + better
        lost, lost_gain = lost + (better > 0 and not goes_on), lost_gain + better * (not goes_on)
    assert rows_scored / (200 * 64) < 0.45
    assert lost / wins < 0.2  # the stated chance
    assert lost_gain / gain < 0.05  # and what is lost are the smallest gains
