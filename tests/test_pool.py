"""The pool: programs that are the best on some row."""

import random
from collections import Counter

from dspy_diffusion_infill.optimizer.pool import Member, Pool


def pool_of(*scores: tuple[float, ...]) -> Pool:
    pool = Pool()
    for number, own in enumerate(scores):
        pool.add(Member({"self": str(number)}, own))
    return pool


def names(pool: Pool) -> list[str]:
    return [member.texts["self"] for member in pool.members]


def test_programs_that_are_the_best_on_some_row_stay():
    assert names(pool_of((1, 0, 0), (0, 1, 0), (0, 0, 0))) == ["0", "1"]


def test_a_program_goes_when_another_is_the_best_wherever_it_is():
    assert names(pool_of((1, 0, 0), (0, 1, 0), (1, 1, 0))) == ["2"]
    assert names(pool_of((0.5, 0, 0), (0.4, 1, 0), (0.6, 0, 0))) == ["1", "2"]


def test_of_programs_that_are_the_best_on_the_same_rows_the_oldest_stays():
    pool = pool_of((1, 0, 0.5), (0, 1, 0.5))
    assert not pool.add(Member({"self": "new"}, (1, 0, 0.5)))
    assert names(pool) == ["0", "1"]
    assert names(pool_of((0, 0), (0, 0))) == ["0"]


def test_a_first_program_is_drawn_though_it_is_wrong_on_every_row():
    assert pool_of((0, 0)).draw(random.Random(0)).texts == {"self": "0"}


def test_programs_that_are_the_best_on_more_rows_are_drawn_more_often():
    pool = pool_of((1, 1, 1, 0, 0), (0, 0, 0, 1, 0))
    rng = random.Random(0)
    drawn = Counter(pool.draw(rng).texts["self"] for _ in range(600))
    assert 350 < drawn["0"] < 450  # 4 to 2
