"""Tables: every figure of a run in its place, beside the paper's, and none that was not found."""

import csv
import io
import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_diffusion_infill.evaluation.statistics import Comparison, Interval
from dspy_diffusion_infill.reproduction.experiment import MEASURES, Experiment, JudgeSpec
from dspy_diffusion_infill.reproduction.experiment_files import parse_experiment
from dspy_diffusion_infill.reproduction.runner import Cell, CellResult
from dspy_diffusion_infill.reproduction.significance import REMARK, PairedRow
from dspy_diffusion_infill.reproduction.tables import HEADINGS, Table, make_table
from dspy_diffusion_infill.reproduction.tasks import JudgeTask

FIGURE = st.none() | st.floats(-1, 1)


def experiment(**changes: Any) -> Experiment:
    content = {
        "title": "Small",
        "task": "summeval",
        "test": {"name": "summeval", "split": "test"},
        "shots": {"name": "summeval", "split": "dev", "num": 2},
        "seeds": [3, 4, 5],
        "measures": ["pearson", "perplexity"],
        "conditions": [
            {"label": {"Prompt": "plain"}, "model": "a", "paper": [[0.1, 0.02], 7.4]},
            {"label": {"Prompt": "other", "Shots": 2}, "model": "b", "paper": [None, 3]},
        ],
        **changes,
    }
    return parse_experiment(content, name="small", scale="full")


def table_of(spec: Experiment, found: dict[int, list[tuple[float | None, ...]]]) -> Table:
    """A table whose condition k has the figures ``found[k]``, one tuple a seed."""
    results = [
        CellResult(
            cell=Cell(condition, seed),
            figures=dict(zip(spec.measures, figures, strict=True)),
            rows=(),
            num_failed=seed,
            num_too_long=2 * number,
            perplexity=None,
            instructions={},
            outcome="given",
        )
        for number, condition in enumerate(spec.conditions)
        for seed, figures in zip(spec.seeds, found[number], strict=True)
    ]
    names = {"a": "openai/a", "b": "b | b"}
    return make_table(spec, JudgeTask(JudgeSpec()), results, models=names, notes=["The end."])


def test_the_paper_stands_beside_ours_and_runs_without_a_figure_are_said() -> None:
    found = {0: [(0.5, 4.0), (0.6, 5.0), (0.7, 6.0)], 1: [(None, None), (0.25, None), (0.5, None)]}
    text = table_of(experiment(caution="Beware."), found).markdown()
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert lines == [
        "| Prompt | Shots | Pearson | paper | Perplexity | paper | measured on |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| plain |  | 0.600 ± 0.100 | 0.100 ± 0.020 | 5.00 ± 1.00 | 7.40 | openai/a |",
        "| other | 2 | 0.375 ± 0.177 (2 of 3 runs) | – | – | 3.00 | b \\| b |",
    ]
    assert text.startswith("# Small\n\n> **Beware.**\n\n")
    assert "Runs: 3 (seeds 3, 4, 5)" in text
    assert "2 of ours lack a run or more." in text
    assert "left out and asked for again by the next run: 24." in text
    assert "left out and not counted as failed: 6 (other, 2: 6)." in text
    assert "Searches" not in text and "SE" not in text
    assert text.endswith("- The end.\n")


def test_comparisons_stand_below_the_table_and_in_the_json() -> None:
    spec = experiment()
    plain, other = spec.conditions
    tested = Comparison(-0.25, Interval(-0.5, 0.0625, 0.95), 0.0314, 40)
    table = replace(
        table_of(spec, {0: [(0.5, 4.0)] * 3, 1: [(0.25, 4.0)] * 3}),
        paired=(PairedRow(other, plain, {"pearson": tested}),),
    )
    end = table.markdown().partition("- The end.\n\n")[2]
    assert end == (
        "## Paired significance\n\n| Prompt | Shots | against | Pearson |\n"
        "| --- | --- | --- | --- |\n"
        f"| other | 2 | plain | -0.250 (-0.500 to +0.062), p = 0.031 |\n\n- {REMARK}\n"
    )
    first, second = json.loads(table.json())["rows"]
    assert (first["against"], first["paired"]) == (None, None)
    assert first["figures"]["pearson"] == {"mean": 0.5, "std": 0.0, "num_runs": 3}
    assert first["paper"]["pearson"] == {"mean": 0.1, "std": 0.02}
    assert second["against"] == {"Prompt": "plain"}
    assert second["paired"]["pearson"]["interval"] == {
        "low": -0.5,
        "high": 0.0625,
        "confidence": 0.95,
    }
    assert second["paired"]["pearson"]["p_value"] == 0.0314


@given(st.lists(st.tuples(FIGURE, FIGURE), min_size=6, max_size=6))
def test_the_csv_holds_mean_std_and_number_of_runs(figures: list) -> None:
    table = table_of(experiment(), {0: figures[:3], 1: figures[3:]})
    rows = list(csv.DictReader(io.StringIO(table.csv())))
    assert [row["Prompt"] for row in rows] == ["plain", "other"]
    for row, mine in zip(rows, (figures[:3], figures[3:]), strict=True):
        for place, measure in enumerate(("pearson", "perplexity")):
            known = [figure[place] for figure in mine if figure[place] is not None]
            assert int(row[f"{measure}_runs"]) == len(known)
            assert row[measure] == ("" if not known else str(float(np.mean(known))))
            std = str(float(np.std(known, ddof=1))) if len(known) > 1 else ""
            assert row[f"{measure}_std"] == std
    assert (rows[0]["paper_pearson"], rows[0]["paper_pearson_std"]) == ("0.1", "0.02")
    assert (rows[1]["paper_pearson"], rows[1]["measured_on"]) == ("", "b | b")


@given(st.lists(st.tuples(FIGURE, FIGURE), min_size=6, max_size=6), st.text("a|b\\", min_size=1))
def test_every_line_of_the_table_has_all_cells(figures: list, label: str) -> None:
    spec = experiment(
        conditions=[{"label": {"Prompt": label}, "model": name} for name in ("a", "b")]
    )
    text = table_of(spec, {0: figures[:3], 1: figures[3:]}).markdown()
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {7}
    assert "None" not in text and "nan" not in text


def test_every_measure_of_every_task_has_a_heading() -> None:
    assert {name for measures in MEASURES.values() for name in measures} == set(HEADINGS)


@pytest.mark.parametrize("seeds", [[0], [0, 1]])
def test_one_run_has_no_deviation(seeds: list[int]) -> None:
    spec = experiment(seeds=seeds, measures=["pearson"], conditions=[{"label": {}, "model": "a"}])
    table = table_of(spec, {0: [(0.5,) for _ in seeds]})
    assert ("±" in table.markdown().splitlines()[4]) == (len(seeds) > 1)
