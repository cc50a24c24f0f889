"""The journal on disk: damage, a full disk, two processes; and the best program beside it."""

import errno
import itertools
import json
import math
import os
import signal
import threading
from pathlib import Path

import dspy
import pytest
from doubles import WordCountScorer, rule_lm
from filelock import FileLock
from test_diffusion_infill import TASK, answer_if_told_briefly, compile_with, program

from dspy_diffusion_infill import disk, jsonl
from dspy_diffusion_infill.errors import DataError
from dspy_diffusion_infill.journal import Journal
from dspy_diffusion_infill.optimizer import plan
from dspy_diffusion_infill.optimizer.callbacks import SearchCallback

SMALL = {"max_metric_calls": 24}
UNWRITABLE = Path("/sys/kernel")


def lines_of(folder) -> list[str]:
    return (folder / "journal.jsonl").read_text(encoding="utf-8").splitlines()


# Damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("{", "no JSON"),
        ("\0\0\0\0", "no JSON"),
        ("[1, 2]", "no entry with key"),
        ('{"key": 3, "value": 1}', "no entry with key"),
        ('{"key": "a"}', "no entry with value"),
        ("[" * 100_000, "at most 100 inside one another"),
    ],
)
def test_a_damaged_line_in_the_middle_is_named_before_any_call(damage, message, tmp_path):
    compile_with(log_dir=tmp_path, **SMALL)
    first, _, *others = lines_of(tmp_path)
    (tmp_path / "journal.jsonl").write_text("\n".join([first, damage, *others, ""]))
    lm, engine = rule_lm(answer_if_told_briefly)
    with pytest.raises(DataError, match=rf"journal\.jsonl:2 is damaged.*{message}.*delete this"):
        compile_with(lm=lm, log_dir=tmp_path, **SMALL)
    assert engine.prompts == []
    (tmp_path / "journal.jsonl").write_text("\n".join([first, *others, ""]))  # as it says
    assert compile_with(log_dir=tmp_path, **SMALL).detailed_results.metric_calls == 24


@pytest.mark.parametrize("header", ['{"identity": 3}', "{}", "nonsense"])
def test_a_damaged_first_line_is_named(header, tmp_path):
    compile_with(log_dir=tmp_path, **SMALL)
    (tmp_path / "journal.jsonl").write_text("\n".join([header, *lines_of(tmp_path)[1:], ""]))
    with pytest.raises(DataError, match=r"journal\.jsonl:1 is damaged"):
        compile_with(log_dir=tmp_path, **SMALL)


@pytest.mark.parametrize("about", ["baseline", "proposals", "trial"])
@pytest.mark.parametrize(
    "value",
    [
        0,
        "text",
        [1, 2],
        [["fills"]],
        {"score": 1.0},
        {"usage": [], "score": "x"},
        {"usage": [], "score": math.inf},
        {"usage": [["m", -1, 0]], "score": 1.0},
        {"usage": [["m", 10**400, 0]], "score": 1.0},
        {"usage": [], "failure": ["why", "because"]},
        {"usage": [], "scores": [1.0]},
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_value_of_another_kind_is_named_and_no_other_error_comes_of_it(about, value, tmp_path):
    compile_with(log_dir=tmp_path, **SMALL)
    entries = [json.loads(line) for line in lines_of(tmp_path)]
    for entry in entries:
        if entry.get("about") == about:
            entry["value"] = value
    text = "".join(json.dumps(entry) + "\n" for entry in entries)
    (tmp_path / "journal.jsonl").write_text(text)
    with pytest.raises(DataError, match=r"journal\.jsonl: the value of .* is damaged .*delete its"):
        compile_with(log_dir=tmp_path, **SMALL)


def test_a_line_longer_than_any_entry_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "MAX_LINE", 1000)
    (tmp_path / "journal.jsonl").write_text('{"key": "a", "value": "' + "x" * 1000 + '"}\n')
    with pytest.raises(DataError, match=r"journal\.jsonl:1: a line must be at most 1000 bytes"):
        Journal(tmp_path / "journal.jsonl")


def test_numbers_that_json_lacks_come_back_as_they_were_written(tmp_path):
    Journal(tmp_path / "j").put("a", [float("-inf"), float("inf")], about="likelihood")
    assert Journal(tmp_path / "j").get("a") == [float("-inf"), float("inf")]


def test_the_journal_of_another_version_is_refused(tmp_path, monkeypatch):
    compile_with(log_dir=tmp_path, **SMALL)
    monkeypatch.setattr(plan, "version", lambda name: "0.0.1")
    with pytest.raises(ValueError, match=r"another search \(other version\)"):
        compile_with(log_dir=tmp_path, **SMALL)


# Disks and folders


def test_a_full_disk_ends_the_search_with_its_best_program_and_a_whole_journal(
    tmp_path, monkeypatch
):
    whole = compile_with(sweeps=1).detailed_results
    synced, sync = [], os.fsync

    def fills_up(descriptor: int) -> None:
        synced.append(descriptor)
        if len(synced) > 12:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fills_up)
    monkeypatch.setattr(disk, "sync_folder", lambda folder: None)  # lines alone are counted
    monkeypatch.setattr(disk, "replace", lambda part, whole: part.replace(whole))
    with pytest.raises(OSError, match=r"cannot be written \(No space left") as caught:
        compile_with(log_dir=tmp_path, sweeps=1)
    assert caught.value.errno == errno.ENOSPC
    assert isinstance(vars(caught.value)["best_program"], dspy.Predict)
    lines = [*lines_of(tmp_path), *(tmp_path / "answers.jsonl").read_text().splitlines()]
    assert len(lines) == 12 and all(map(json.loads, lines))
    monkeypatch.undo()
    assert compile_with(log_dir=tmp_path, sweeps=1).detailed_results.trials == whole.trials


def test_a_log_dir_that_is_no_folder_is_refused_before_any_call(tmp_path):
    (tmp_path / "file").write_text("mine")
    lm, engine = rule_lm(answer_if_told_briefly)
    with pytest.raises(OSError, match="file"):
        compile_with(lm=lm, log_dir=tmp_path / "file")
    assert engine.prompts == [] and (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(not UNWRITABLE.is_dir(), reason="needs a folder that root cannot write either")
def test_a_log_dir_that_cannot_be_written_is_refused_before_any_call():
    lm, engine = rule_lm(answer_if_told_briefly)
    with pytest.raises(OSError, match=f"'{UNWRITABLE}/journal.lock'"):
        compile_with(lm=lm, log_dir=UNWRITABLE)
    assert engine.prompts == []


def test_a_second_compile_in_the_folder_is_refused_and_the_first_goes_on(tmp_path):
    refused = []

    def answers(prompt: str) -> str:
        if not refused:
            with pytest.raises(ValueError, match="in use by another compile: wait") as caught:
                compile_with(log_dir=tmp_path, **SMALL)
            refused.append(caught.value)
        return answer_if_told_briefly(prompt)

    results = compile_with(answers, log_dir=tmp_path, **SMALL).detailed_results
    assert refused and results.trials == compile_with(**SMALL).detailed_results.trials
    with FileLock(tmp_path / "journal.lock", timeout=0):  # it is free again
        pass


# The best program beside it


def test_the_best_program_stands_in_the_folder_after_each_improvement(tmp_path):
    better = compile_with(log_dir=tmp_path, sweeps=2)
    loaded = program()
    loaded.load(str(tmp_path / "best_program.json"))
    assert loaded.signature.instructions == better.signature.instructions != TASK
    assert not (tmp_path / "partial_best_program.json").exists()


def test_a_program_that_cannot_be_saved_is_searched_all_the_same(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(dspy.Predict, "save", lambda *_: 1 / 0)
    results = compile_with(log_dir=tmp_path, sweeps=1).detailed_results
    assert results.score_after > results.score_before
    assert "best_program.json: ZeroDivisionError" in caplog.text


# Signals


@pytest.mark.skipif(
    threading.current_thread() is not threading.main_thread(),
    reason="only the main thread gets signals",
)
def test_sigterm_is_as_ctrl_c_and_the_search_goes_on_in_the_folder(tmp_path):
    whole = compile_with(sweeps=1).detailed_results
    asked = itertools.count(1)

    def terminated(prompt: str) -> str:
        if next(asked) == 30:
            os.kill(os.getpid(), signal.SIGTERM)
        return answer_if_told_briefly(prompt)

    with pytest.raises(KeyboardInterrupt) as caught:
        compile_with(terminated, log_dir=tmp_path, sweeps=1)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert caught.value.detailed_results.end_reason == "interrupted"
    assert 0 < len(caught.value.detailed_results.trials) < len(whole.trials)
    assert compile_with(log_dir=tmp_path, sweeps=1).detailed_results.trials == whole.trials


def test_ctrl_c_while_the_end_is_announced_is_raised_and_the_folder_has_the_best_program(tmp_path):
    class Impatient(SearchCallback):
        def on_best(self, event):
            signal.raise_signal(signal.SIGINT)

        def on_end(self, event):
            raise KeyboardInterrupt("a second time")

    with pytest.raises(KeyboardInterrupt, match="a second time"):
        compile_with(log_dir=tmp_path, sweeps=1, callbacks=[Impatient()])
    loaded = program()
    loaded.load(str(tmp_path / "best_program.json"))
    assert loaded.signature.instructions != TASK


def test_compile_runs_beside_the_main_thread_and_leaves_signals_alone(tmp_path):
    found = []
    handlers = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=lambda: found.append(compile_with(**SMALL)))
    thread.start()
    thread.join()
    assert found[0].detailed_results.metric_calls == 24
    assert signal.getsignal(signal.SIGTERM) is handlers


def test_entries_come_back_with_the_last_value_of_a_key(tmp_path):
    journal = Journal(tmp_path / "deep" / "j.jsonl", identity={"a": 1})
    journal.put("k", [1], about="x")
    journal.put("k", {"n": None}, about="x")
    again = Journal(journal.path, identity={"a": 1})
    assert again.get("k") == {"n": None} and again.values() == [{"n": None}]


class TooShort(WordCountScorer):
    """A scorer under which a text with "care" has no likelihood at all."""

    def log_likelihoods(self, pairs) -> list[float]:
        prompts = [str(pair.messages) for pair in pairs]
        plain = super().log_likelihoods(pairs)
        return [-math.inf if "care" in a else b for a, b in zip(prompts, plain, strict=True)]


def test_a_likelihood_that_is_not_finite_comes_back_from_the_journal(tmp_path):
    options = {"guidance": TooShort(name="too short"), "sweeps": 1, "log_dir": tmp_path}
    whole = compile_with(**options).detailed_results
    assert "null" in "".join(lines_of(tmp_path)) and "Infinity" not in "".join(lines_of(tmp_path))
    lm, engine = rule_lm(answer_if_told_briefly)
    again = compile_with(lm=lm, **options).detailed_results
    assert engine.prompts == [] and again.trials == whole.trials
