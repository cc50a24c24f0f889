import json
import re
from pathlib import Path

import pytest
from synthetic_results import synthetic
from test_callbacks import Raises
from test_progress import ROWS, compiled

from dspy_diffusion_infill.errors import DataError
from dspy_diffusion_infill.optimizer.callbacks import EndEvent, StartEvent, TrialEvent
from dspy_diffusion_infill.optimizer.plan import ANSWERS_FILE
from dspy_diffusion_infill.optimizer.results import DetailedResults
from dspy_diffusion_infill.optimizer.run_files import (
    EVENTS_FILE,
    RUN_FILE,
    RunFiles,
    read_run,
)

NOT_COMPARED = ("answers_before", "answers_after", "inputs", "spent_before", "settings", "versions")


def assert_alike(read: DetailedResults, written: DetailedResults) -> None:
    assert read == written
    for name in NOT_COMPARED:
        assert getattr(read, name) == getattr(written, name), name
    assert [t.spent for t in read.trials] == [t.spent for t in written.trials]


def test_the_files_of_a_search_hold_its_records(tmp_path: Path):
    results = compiled(log_dir=tmp_path).detailed_results
    assert_alike(read_run(tmp_path), results)
    assert len(results.trials) > 1 and len(results.refused) > 0
    assert results.answers_before == ("no idea",) * 5
    assert results.answers_after == ("red", "blue", "green", "grey", "pink")
    assert results.inputs == tuple(row.text for row in ROWS)
    assert results.settings["options"]["seed"] == 3
    assert results.settings["used"]["lm"] == ["test/rule"]
    assert results.versions["dspy"]


def test_a_search_that_was_interrupted_is_read_and_a_resumed_one_holds_no_trial_twice(
    tmp_path: Path,
):
    with pytest.raises(KeyboardInterrupt):
        compiled(Raises(KeyboardInterrupt()), log_dir=tmp_path)
    cut = read_run(tmp_path)
    assert (len(cut.trials), cut.end_reason) == (1, "interrupted")
    results = compiled(log_dir=tmp_path).detailed_results
    numbers = [trial.number for trial in read_run(tmp_path).trials]
    assert numbers == list(range(1, len(results.trials) + 1))


def test_answers_are_known_after_a_search_was_resumed(tmp_path: Path):
    whole = compiled(log_dir=tmp_path).detailed_results
    again = compiled(log_dir=tmp_path, rule=lambda _: 1 / 0).detailed_results
    assert (again.answers_before, again.answers_after) == (
        whole.answers_before,
        whole.answers_after,
    )


def test_answers_that_are_damaged_are_not_known_and_end_no_search(tmp_path: Path):
    compiled(log_dir=tmp_path)
    file = tmp_path / ANSWERS_FILE
    file.write_text(re.sub(r'"value": \[.*?\]', '"value": 7', file.read_text()))
    again = compiled(log_dir=tmp_path).detailed_results
    assert (again.answers_before, again.answers_after) == ((None,) * 5, (None,) * 5)


def test_files_that_cannot_be_written_do_not_end_the_search(tmp_path: Path, caplog):
    (tmp_path / EVENTS_FILE).mkdir()
    assert compiled(log_dir=tmp_path).detailed_results == compiled().detailed_results
    assert "RunFiles.on_start raised" in caplog.text


def written(folder: Path, *, num_trials: int = 3) -> DetailedResults:
    results, files = synthetic(num_trials), RunFiles(folder)
    files.on_start(StartEvent(results=results, most_metric_calls=9, max_seconds=None))
    for trial in results.trials:
        files.on_trial(TrialEvent(trial=trial, results=results))
    files.on_end(EndEvent(program=None, results=results))
    return results


def test_a_line_that_is_being_written_is_left_out(tmp_path: Path):
    written(tmp_path)
    events = tmp_path / EVENTS_FILE
    events.write_bytes(events.read_bytes()[:-20])
    assert [trial.number for trial in read_run(tmp_path).trials] == [1, 2]


def test_a_folder_without_records_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"holds no run\.json: give the log_dir of a search"):
        read_run(tmp_path)


def test_of_a_folder_of_folds_it_is_told_which_of_them_have_records(tmp_path: Path):
    written(tmp_path / "fold-2")
    (tmp_path / "fold-1").mkdir()
    with pytest.raises(DataError, match=r"has ended; of its folders \['fold-2'\] do$"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (RUN_FILE, b"[1]", r"run\.json: must be a JSON object"),
        (RUN_FILE, b'{"score_before": 1', r"run\.json: no JSON"),
        (RUN_FILE, b"\xff", r"run\.json: invalid UTF-8"),
        (RUN_FILE, b"{}", r"run\.json: instructions_before: Field required"),
        (EVENTS_FILE, b"[]\n", r"events\.jsonl:1: must be a trial or a refused"),
        (EVENTS_FILE, b'{"event": "theft"}\n', r"events\.jsonl:1: must be a trial"),
        (EVENTS_FILE, b"{]\n", r"events\.jsonl:1: no JSON"),
        (EVENTS_FILE, b'{"event": "trial", "number": "x"}\n', r"trials\.0\.number"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, file: str, content: bytes, message: str):
    written(tmp_path)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_run(tmp_path)


def test_half_a_surrogate_pair_in_a_text_is_written_all_the_same(tmp_path: Path):
    results = written(tmp_path)
    state = json.loads((tmp_path / RUN_FILE).read_bytes())
    RunFiles(tmp_path).on_end(
        EndEvent(
            program=None, results=type(results)(**{**state, "trials": (), "denoiser": "\ud800"})
        )
    )
    assert b"\\ud800" in (tmp_path / RUN_FILE).read_bytes()
