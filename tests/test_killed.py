"""Nothing is lost: compiles that are killed, and LMs that fail, die and come back."""

import random

import dspy
import pytest
from benchmarks.failures import FAILED, compile_flaky
from killed import SEARCHES, THREADS, Killer, compiled, kill_once, uninterrupted
from loopback import loopback

from dspy_diffusion_infill.errors import TooManyErrors

NO_RETRY = {"num_retries": 0}


@pytest.fixture(scope="module")
def wholes() -> dict:
    return {search: uninterrupted(search) for search in SEARCHES}


def test_a_killed_compile_ends_as_a_whole_one_and_pays_again_only_for_runs_under_way(
    tmp_path, wholes
):
    kill = kill_once(tmp_path, "adaptive", random.Random(1), wholes["adaptive"])
    assert kill.was_killed and kill.is_good, kill


class Mortal(Killer):
    """Answers until it dies, and again once it lives."""

    def __init__(self, last: int) -> None:
        super().__init__(latency=0.0)
        self.last, self.lives = last, False

    def __call__(self, number, body):
        return super().__call__(number, body) if number < self.last or self.lives else 500


@pytest.mark.parametrize("search", SEARCHES)
def test_a_dead_lm_ends_the_search_with_its_best_program_and_is_asked_again(
    search, tmp_path, wholes
):
    """Six rows, fewer than the ten that may raise: no single evaluation can tell."""
    whole, num_calls = wholes[search]
    mortal = Mortal(last=num_calls * 3 // 4)
    with loopback(mortal) as server:
        with pytest.raises(TooManyErrors, match=r"more than max_errors=10; .*LMServerError") as end:
            compiled(tmp_path, server.url, search, lm=NO_RETRY)
        best = end.value.detailed_results
        kept = [trial.score for trial in best.trials if trial.accepted]
        assert best.score_after == kept[-1] > best.score_before
        mortal.lives = True
        found = compiled(tmp_path, server.url, search, lm=NO_RETRY)
        spent = whole["spent"][0], 2 * len(server.answered)  # half runs too
        assert found == {**whole, "spent": spent}
        assert num_calls <= len(server.answered) <= num_calls + THREADS


def test_an_lm_that_was_dead_from_the_start_is_asked_again(tmp_path, wholes):
    whole, num_calls = wholes["left_to_right"]
    mortal = Mortal(last=0)
    with loopback(mortal) as server:
        first = compiled(tmp_path, server.url, "left_to_right", lm=NO_RETRY)
        assert first["end"] == "no run succeeded" and first["trials"] == ()
        mortal.lives = True
        assert compiled(tmp_path, server.url, "left_to_right", lm=NO_RETRY) == whole
        assert len(server.answered) == num_calls


def test_of_an_lm_that_mostly_fails_only_answers_are_scored_and_caps_hold():
    student = dspy.Predict(dspy.Signature("text -> colour", "Name the colour that is meant by it"))
    options = {"student": student, "max_metric_calls": 50, "sweeps": 3}
    found = compile_flaky(hang=0.2, lm={**NO_RETRY, "timeout": 0.1}, **options)
    assert found["unanswered"] == 0
    scores = [*found["before"], *(score for one in found["trials"] for score in one.scores)]
    assert scores.count(FAILED) == found["failures"] > len(scores) // 2
    assert set(scores) == {FAILED, 0.0, 1.0}
    assert len(scores) == found["spent"][0] <= 50
