import pickle
from pathlib import Path

import pytest
from synthetic_results import synthetic

RESULTS = synthetic(40)


def test_print_shows_instructions_scores_and_counts_without_colours():
    text = str(RESULTS)
    assert "\x1b" not in text
    assert "validation" in text and "37.5%" in text
    assert "320 proposals, 40 validated" in text


def test_a_debugger_shows_one_line():
    assert repr(RESULTS) == (
        f"DetailedResults(score 0.375 → {RESULTS.score_after:.3f}, 40 trials, "
        f"{RESULTS.counts.accepted} kept, {RESULTS.metric_calls} metric calls, "
        "end_reason='max_metric_calls')"
    )


def test_a_notebook_shows_scores_and_diff_without_scripts():
    shown = RESULTS._repr_html_()
    assert "37.5 %" in shown and "<del " in shown and "<ins " in shown
    assert "<script" not in shown and len(shown) < 20_000


@pytest.mark.parametrize(("name", "begins"), [("a.html", "<!doctype html>"), ("a.md", "## Instr")])
def test_report_writes_the_form_that_the_name_says(tmp_path: Path, name: str, begins: str):
    path = RESULTS.report(tmp_path / name)
    assert path == tmp_path / name
    assert path.read_text(encoding="utf-8").startswith(begins)


def test_records_survive_pickle():
    assert pickle.loads(pickle.dumps(RESULTS)) == RESULTS
