"""Single runs in the journal: what is known, what is made again, what is not written any more."""

import dspy
import pytest

from dspy_diffusion_infill.errors import DataError
from dspy_diffusion_infill.journal import Journal
from dspy_diffusion_infill.optimizer.run_journal import JournaledRuns
from dspy_diffusion_infill.optimizer.trace_json import TraceJson
from dspy_diffusion_infill.outcomes import Failure, Outcome
from dspy_diffusion_infill.usage import ModelUsage

USAGE = (ModelUsage("m", 3, 4),)
SCORED = Outcome(0.5, usage=USAGE)
FAILED = Outcome(None, failure=Failure("KeyError: 'x'"), usage=USAGE)


def runs_in(path, num_rows=3, **options) -> JournaledRuns:
    return JournaledRuns(Journal(path), "k", num_rows, about="trial", **options)


def test_runs_come_back_one_by_one(tmp_path):
    runs = runs_in(tmp_path / "j")
    runs.put(2, SCORED)
    runs.put(0, FAILED)
    again = runs_in(tmp_path / "j")
    assert again.known == {0: FAILED, 2: SCORED} and again.lost == {}


def test_failures_that_ended_the_search_are_made_again_and_what_they_took_is_counted(tmp_path):
    runs = runs_in(tmp_path / "j")
    runs.put(0, FAILED)
    runs.put(1, SCORED)
    runs.give_up()
    runs.put(2, FAILED)  # was under way
    again = runs_in(tmp_path / "j")
    assert again.known == {1: SCORED} and again.lost == {0: USAGE, 2: USAGE}
    again.put(0, SCORED)
    twice = (ModelUsage("m", 6, 8),)
    assert runs_in(tmp_path / "j").known[0] == Outcome(0.5, usage=twice)


def test_a_run_without_the_trace_that_is_needed_is_made_again(tmp_path):
    step = dspy.Predict("text -> label")
    traces = TraceJson(step, step, ["self"], [])
    runs = runs_in(tmp_path / "j", traces=traces)
    called = ((step, {"text": "a"}, dspy.Prediction(label="b")),)
    runs.put(0, Outcome(1.0, called))
    runs.put(1, Outcome(1.0, ((step, {"text": object()}, dspy.Prediction(label="b")),)))
    again = runs_in(tmp_path / "j", traces=traces)
    assert again.known == {0: Outcome(1.0, ((step, {"text": "a"}, {"label": "b"}),))}
    assert again.lost == {1: ()}


def test_a_scored_run_whose_trace_is_missing_is_damage(tmp_path):
    runs_in(tmp_path / "j").put(0, SCORED)
    step = dspy.Predict("text -> label")
    with pytest.raises(DataError, match=r"value of 'k 0' is damaged"):
        runs_in(tmp_path / "j", traces=TraceJson(step, step, ["self"], []))


def test_a_thread_that_outlives_its_search_writes_nothing_more(tmp_path):
    journal = Journal(tmp_path / "j")
    runs = JournaledRuns(journal, "k", 2, about="trial")
    runs.put(0, SCORED)
    journal.close()
    runs.put(1, SCORED)
    assert runs_in(tmp_path / "j").known == {0: SCORED}
