"""Nothing is lost: compiles that are killed, and LMs that fail, die and come back."""

import json
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import dspy
import pytest
from benchmarks.failures import FAILED, compile_flaky
from killed import SEARCHES, THREADS, Clues, Killer, compiled, kill_once, started, uninterrupted
from loopback import loopback, prompt_of

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


class Silent(Killer):
    """Answers so many calls, and takes the others without an answer until it is let go."""

    def __init__(self, last: int) -> None:
        super().__init__(latency=0.0)
        self.last, self.is_silent, self.lets_go = last, threading.Event(), threading.Event()

    def __call__(self, number, body):
        if number >= self.last:
            self.is_silent.set()
            self.lets_go.wait()
        return super().__call__(number, body)


@contextmanager
def compile_in_the_middle(folder, search, last, **options) -> Iterator[tuple]:
    """A compile in a process of its own whose LM has stopped to answer, and that LM."""
    silent = Silent(last)
    with loopback(silent) as server:
        process = started(folder, search, server.url, **options)
        try:
            assert silent.is_silent.wait(60)
            yield process, silent, server
        finally:
            process.kill()
            process.wait()
            silent.lets_go.set()


def test_a_second_process_in_the_folder_is_refused_and_the_first_ends_as_it_would(tmp_path, wholes):
    whole, num_calls = wholes["left_to_right"]
    middle = compile_in_the_middle(tmp_path, "left_to_right", num_calls // 2)
    with middle as (first, silent, server):
        options = {"job": "refused", "stdout": subprocess.PIPE}
        second = started(tmp_path, "left_to_right", server.url, **options)
        seconds, error = json.loads(second.communicate(timeout=60)[0])
        assert "in use by another compile: wait until it ends, or give a new folder" in error
        assert seconds < 1.0
        assert len(server.bodies) <= num_calls // 2 + THREADS  # those of the first
        silent.lets_go.set()
        assert first.wait(60) == 0
        assert compiled(tmp_path, server.url, "left_to_right") == whole
        assert len(server.bodies) == num_calls


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_the_process_though_the_lm_does_not_answer(number, tmp_path, wholes):
    last, told = wholes["left_to_right"][1] * 3 // 4, tmp_path / "stderr"
    with (
        told.open("wb") as file,
        compile_in_the_middle(tmp_path, "left_to_right", last, stderr=file) as (process, _, server),
    ):
        process.send_signal(number)
        late = time.monotonic() + 30
        while b"\nKeyboardInterrupt" not in told.read_bytes():
            assert time.monotonic() < late
            time.sleep(0.1)
        time.sleep(0.5)
        assert process.poll() is None, "it waits for calls under way"
        num_asked = len(server.bodies)
        process.send_signal(number)
        assert process.wait(5) != 0
        assert len(server.bodies) == num_asked <= last + THREADS
    best = Clues()
    best.load(str(tmp_path / "best_program.json"))
    before = [one.signature.instructions for one in Clues().predictors()]
    assert [one.signature.instructions for one in best.predictors()] != before


@pytest.mark.skipif(
    threading.current_thread() is not threading.main_thread(),
    reason="only the main thread gets signals",
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_after_a_signal_the_lm_hears_of_no_row_that_is_left(number, tmp_path):
    rows = [dspy.Example(text=f"row {k}", colour="red").with_inputs("text") for k in range(60)]
    student = dspy.Predict(dspy.Signature("text -> colour", "Name the colour that is meant by it"))

    def signals(call, body):
        if call == 20:
            os.kill(os.getpid(), number)
        time.sleep(0.05)
        return "red"

    with loopback(signals) as server:
        with pytest.raises(KeyboardInterrupt):
            compiled(tmp_path, server.url, "left_to_right", student=student, rows=rows)
        time.sleep(0.5)  # calls that were under way
        num_asked = len(server.bodies)
        assert num_asked < 40
        time.sleep(2)
        assert len(server.bodies) == num_asked


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


def test_a_call_that_fails_is_made_again_after_longer_and_longer_waits(wholes):
    whole, num_calls = wholes["left_to_right"]
    asked: list[tuple[float, str]] = []

    def stumbling(number, body):
        asked.append((time.monotonic(), prompt_of(body)))
        return {5: 429, 6: 500}.get(number) or Killer()(number, body)

    with loopback(stumbling, retry_after=None) as server:
        found = compiled(None, server.url, "left_to_right", num_threads=1)
    assert found == whole and len(asked) == num_calls + 2, "nothing is scored but answers"
    first, second, third = asked[5:8]
    assert first[1] == second[1] == third[1]
    waits = second[0] - first[0], third[0] - second[0]
    assert waits[0] >= 1 and waits[1] >= 2, "as DSPy doubles them; a busy machine adds to both"
