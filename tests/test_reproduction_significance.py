from pathlib import Path
from typing import Any

import pytest

from dspy_diffusion_infill.evaluation.statistics import compare, compare_means
from dspy_diffusion_infill.journal import Journal
from dspy_diffusion_infill.reproduction import significance
from dspy_diffusion_infill.reproduction.experiment import Experiment
from dspy_diffusion_infill.reproduction.experiment_files import load_experiments, parse_experiment
from dspy_diffusion_infill.reproduction.runner import Cell, CellResult
from dspy_diffusion_infill.reproduction.significance import PairedRow, baseline_of, paired_rows

HUMAN = [float(1 + k % 5) for k in range(24)]
GOOD = [score + (k % 3) / 4 for k, score in enumerate(HUMAN)]
BAD = [float(k * 7 % 5) for k in range(24)]


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(significance, "NUM_RESAMPLES", 40)


def experiment(task: str, measures: list[str], seeds: list[int]) -> Experiment:
    content = {
        "title": "Small",
        "task": task,
        "test": {"name": task, "split": "test"},
        "shots": {"name": task, "split": "dev", "num": 2},
        "seeds": seeds,
        "measures": measures,
        "conditions": [
            {"label": {"Prompt": "plain"}, "model": "a"},
            {"label": {"Prompt": "infilled"}, "model": "a", "steps": [{"infill": "a"}]},
        ],
    }
    return parse_experiment(content, name="small", scale="full")


def result(spec: Experiment, place: int, seed: int, rows: dict[int, dict[str, Any]]) -> CellResult:
    return CellResult(
        cell=Cell(spec.conditions[place], seed),
        figures={},
        rows=tuple(rows.values()),
        num_failed=0,
        num_too_long=0,
        perplexity=None,
        instructions={},
        outcome="given",
        row_numbers=tuple(rows),
    )


def judged(scores: list[float]) -> dict[int, dict[str, Any]]:
    return {k: {"score": s, "human": h} for k, (s, h) in enumerate(zip(scores, HUMAN, strict=True))}


def compared(spec: Experiment, results: list[CellResult]) -> PairedRow:
    (row,) = paired_rows(spec, results, Journal(None))
    assert (row.baseline, row.condition) == spec.conditions
    return row


def test_a_judge_is_compared_as_compare_does() -> None:
    spec = experiment("summeval", ["pearson", "perplexity"], [0])
    row = compared(spec, [result(spec, 0, 0, judged(BAD)), result(spec, 1, 0, judged(GOOD))])
    wanted = compare(BAD, GOOD, HUMAN, measure="pearson", num_resamples=40)
    assert row.comparisons == {"pearson": wanted}
    assert wanted.difference is not None and wanted.difference > 0.5


def test_rows_are_matched_by_their_places_and_in_the_unit_of_the_table() -> None:
    spec = experiment("gsm8k", ["em", "tokens"], [0])
    first = {k: {"flexible": k % 4 == 0, "tokens": 10} for k in range(30) if k != 3}
    second = {k: {"flexible": k % 2 == 0, "tokens": 12} for k in range(30) if k != 29}
    row = compared(spec, [result(spec, 1, 0, second), result(spec, 0, 0, first)])
    both = [k for k in range(30) if k not in (3, 29)]
    scores = ([100.0 * (k % step == 0) for k in both] for step in (4, 2))
    wanted = compare_means(*scores, num_resamples=40)
    assert row.comparisons["em"] == wanted
    assert wanted.num_rows == 28 and wanted.difference == pytest.approx(25.0)
    assert row.comparisons["tokens"].difference == 2


def test_runs_are_joined_and_a_run_without_rows_is_left_out() -> None:
    spec = experiment("summeval", ["pearson"], [0, 1, 2])
    results = [
        *(result(spec, 0, seed, judged(BAD)) for seed in (0, 1, 2)),
        result(spec, 1, 0, judged(GOOD)),
        result(spec, 1, 1, judged(BAD)),
        result(spec, 1, 2, {}),
    ]
    found = compared(spec, results).comparisons["pearson"]
    whole = compare(BAD, GOOD, HUMAN, measure="pearson", num_resamples=0).difference
    assert whole is not None and found.difference == pytest.approx(whole / 2)
    assert found.num_rows == 24


def test_few_rows_have_a_difference_and_no_test() -> None:
    spec = experiment("summeval", ["pearson"], [0])
    few = [{k: row for k, row in judged(s).items() if k < 19} for s in (BAD, GOOD)]
    found = compared(spec, [result(spec, k, 0, rows) for k, rows in enumerate(few)]).comparisons
    assert found["pearson"].difference is not None and found["pearson"].num_rows == 19
    assert (found["pearson"].interval, found["pearson"].p_value) == (None, None)
    nothing = compared(spec, [result(spec, 0, 0, judged(BAD)), result(spec, 1, 0, {})])
    assert nothing.comparisons == {}


def test_a_test_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = experiment("summeval", ["kendall"], [0])
    results = [result(spec, 0, 0, judged(BAD)), result(spec, 1, 0, judged(GOOD))]
    first = paired_rows(spec, results, Journal(tmp_path / "tests.jsonl"))

    def untested(*runs: Any, num_resamples: int, **options: Any) -> Any:
        assert num_resamples == 0
        return first[0].comparisons["kendall"]

    monkeypatch.setattr(significance, "compare_runs", untested)
    assert paired_rows(spec, results, Journal(tmp_path / "tests.jsonl")) == first


def baselines(table: str) -> dict[str, str | None]:
    found = {}
    for spec in load_experiments(table, scale="full"):
        for condition in spec.conditions:
            baseline = baseline_of(spec, condition)
            name = baseline and ", ".join(baseline.label.values())
            found[", ".join(condition.label.values())] = name
    return found


def test_an_infilled_prompt_is_compared_with_the_prompt_that_it_rewrites() -> None:
    table2, table4, table7 = map(baselines, ("table2", "table4", "table7"))
    assert table2["LLaDA, None, G-Eval"] is None
    assert table2["Dream, FS, Judge Infill"] == "Dream, FS, Judge"
    assert table2["Dream, FS, C-gen Infill"] == "Dream, FS, C-gen"
    assert table2["Dream, FS, Judge"] == "LLaDA, None, G-Eval"
    assert table4["13B, COPRO + Infill, LLaDA 8B"] == "13B, Baseline, –"
    assert table7["LLaDA (FS+RO)"] == "LLaDA (Public)"
