import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import dspy
import pytest
from loopback import loopback

from dspy_diffusion_infill.identity import key_of
from dspy_diffusion_infill.journal import Journal
from dspy_diffusion_infill.reproduction.journals import CallJournal, CallsUnderWay, RunStopped, Stop


def test_a_journal_is_read_again(tmp_path: Path) -> None:
    first = Journal(tmp_path / "runs" / "rows.jsonl")
    assert first.get("a") is None
    first.put("a", {"score": None, "text": "zwei\u2028Zeilen\n"}, about="a row")
    first.put("b", 2, about="another")
    again = Journal(first.path)
    assert again.get("a") == {"score": None, "text": "zwei\u2028Zeilen\n"}
    assert again.get("b") == 2


def test_a_line_that_was_being_written_is_dropped(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "rows.jsonl")
    journal.put("a", 1, about="a row")
    with journal.path.open("a", encoding="utf-8") as file:
        file.write('{"key": "b", "val')
    again = Journal(journal.path)
    assert (again.get("a"), again.get("b")) == (1, None)
    again.put("b", 2, about="another")
    assert Journal(journal.path).get("b") == 2


def test_keys_depend_on_every_part() -> None:
    assert key_of("a", {"b": 1, "c": 2}) == key_of("a", {"c": 2, "b": 1})
    assert len({key_of("a", 1), key_of("a", 2), key_of("a1"), key_of("a", "1")}) == 4


def test_a_call_is_made_once_over_all_runs(tmp_path: Path) -> None:
    with loopback(lambda number, _: f"answer {number}") as server:
        lm = server.lm(cache=True)
        for _ in range(2):
            calls = CallJournal(tmp_path / "calls", Stop())
            with calls.in_use():
                assert lm("one") == ["answer 0"]
                assert lm("two") == ["answer 1"]
                assert lm("one", rollout_id=1) == ["answer 2"]
    assert len(server.bodies) == 3
    assert (calls.num_made, calls.num_known) == (0, 3)


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def test_a_pickle_among_the_calls_is_not_run_and_the_call_is_made_anew(tmp_path: Path) -> None:
    calls = CallJournal(tmp_path / "calls", Stop())
    calls.put(request := {"model": "m", "prompt": "p"}, Bomb(tmp_path / "ran"))
    again = CallJournal(tmp_path / "calls", Stop())
    assert again.get(request) is None
    assert not (tmp_path / "ran").exists()


def test_dspys_own_cache_is_back_afterwards(tmp_path: Path) -> None:
    before = dspy.cache
    with pytest.raises(KeyError), CallJournal(tmp_path / "calls", Stop()).in_use():
        assert dspy.cache is not before
        raise KeyError
    assert dspy.cache is before


def test_after_a_stop_known_answers_are_given_and_no_call_is_made(tmp_path: Path) -> None:
    stop = Stop()
    with loopback(lambda *_: "fine") as server, CallJournal(tmp_path / "c", stop).in_use():
        lm = server.lm(cache=True)
        lm("one")
        with stop.on_signals():
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.is_asked
        assert lm("one") == ["fine"]
        with pytest.raises(RunStopped):
            lm("two")
    assert len(server.bodies) == 1


def test_no_except_exception_swallows_a_stop() -> None:
    assert not issubclass(RunStopped, Exception)


def test_a_second_ctrl_c_ends_at_once_and_a_second_sigterm_does_not() -> None:
    before = signal.getsignal(signal.SIGINT)
    stop = Stop()
    with stop.on_signals():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            signal.sigtimedwait([], 1)
    assert signal.getsignal(signal.SIGINT) is before


def test_answers_under_way_are_waited_for() -> None:
    answering, asked = threading.Event(), threading.Event()

    def slow(number: int, body: dict) -> str:
        asked.set()
        answering.wait(10)
        return "fine"

    calls = CallsUnderWay()
    with loopback(slow) as server:

        def ask() -> None:
            with dspy.context(callbacks=[calls]):
                server.lm()("one")

        thread = threading.Thread(target=ask)
        thread.start()
        assert asked.wait(10)
        calls.wait(seconds=0.01)
        assert not server.answered
        answering.set()
        calls.wait(seconds=10)
        deadline = time.monotonic() + 10  # the server notes an answer when it has sent it
        while not server.answered and time.monotonic() < deadline:
            time.sleep(0.01)
        assert server.answered == ["one"]
        thread.join()
