"""Three of the tables on the embedded pair, as ``reproduce --scale smoke`` runs them, on few rows.

A judge, GSM8K and HoVer: nothing stands in for a model, an optimizer or a data set.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from embedded_pair import loaded_once, needs_embedded_pair

from dspy_diffusion_infill.reproduction import models
from dspy_diffusion_infill.reproduction.experiment import Experiment, selected
from dspy_diffusion_infill.reproduction.experiment_files import load_experiments, load_models
from dspy_diffusion_infill.reproduction.experiment_run import run_experiment
from dspy_diffusion_infill.reproduction.tables import Table

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"

pytestmark = [
    pytest.mark.slow,
    needs_embedded_pair,
    pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared rows"),
]


@pytest.fixture(autouse=True)
def one_denoiser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "load_denoiser", loaded_once)


def smallest(
    table: str,
    keep: Mapping[str, Sequence[str]],
    *,
    rows: int,
    shots: int | None = None,
    metric_calls: int,
    **changes: Any,
) -> Experiment:
    """A smoke experiment with some of its conditions, few rows and a short search."""
    experiment = load_experiments(table, scale="smoke")[-1]
    return replace(
        experiment,
        conditions=tuple(selected(experiment.conditions, keep)),
        test=replace(experiment.test, num=rows),
        shots=replace(experiment.shots, num=shots or experiment.shots.num),
        search=replace(experiment.search, proposals=1, max_metric_calls=metric_calls),
        **changes,
    )


def run_twice(experiment: Experiment, output: Path) -> Table:
    """The table, after a second run has given the same one without a single call."""
    said: list[str] = []
    tables = []
    for _ in range(2):
        tables.append(
            run_experiment(
                experiment, load_models("smoke"), data=SHARED, output=output, echo=said.append
            )
        )
    assert tables[0].markdown() == tables[1].markdown()
    assert "; 0 calls made, " in said[-1]
    for suffix in (".md", ".csv", ".png", ".svg"):
        assert (output / f"{experiment.name}{suffix}").stat().st_size > 0
    return tables[0]


def check(table: Table, *, rows: int) -> None:
    """Every row is measured or accounted for, and the caution and the models' names are said."""
    text = table.markdown()
    assert text.count("> **Smoke run") == 1
    for row in table.rows:
        assert row.num_failed == row.num_too_long == 0
        assert row.num_rows == rows or ", ".join(row.condition.label.values()) in text
        assert row.model.startswith(("embedded/", "diffusion/smollm2-fs@"))
    assert any(row.num_rows == rows for row in table.rows)


def test_a_judge_infills_its_prompt_and_is_measured(tmp_path: Path) -> None:
    keep = {"Model": ["LLaDA"], "Prompt": ["G-Eval", "C-gen Infill"]}
    table = run_twice(smallest("table2", keep, rows=2, shots=1, metric_calls=2), tmp_path)
    check(table, rows=2)
    assert "Verdicts: " in table.markdown()


def test_gsm8k_is_answered_by_a_diffusion_lm_with_and_without_a_prefix(tmp_path: Path) -> None:
    keep = {"Model": ["Dream"], "Shots": ["0", "3"]}
    table = run_twice(smallest("table1", keep, rows=2, metric_calls=6), tmp_path)
    check(table, rows=2)
    plain, infilled = table.rows
    assert plain.ours["em"].mean in (0, 50, 100)
    if infilled.num_rows:
        assert infilled.ours["tokens"].mean > plain.ours["tokens"].mean


def test_hover_searches_reads_and_labels(tmp_path: Path) -> None:
    few = {"rows": 1, "shots": 1, "metric_calls": 2, "pages_per_hop": 1}
    table = run_twice(smallest("table7", {}, **few), tmp_path)
    check(table, rows=1)
    (row,) = table.rows
    assert row.ours["recall"].mean is not None and 0 <= row.ours["recall"].mean <= 1


def test_perplexity_is_measured_with_its_error(tmp_path: Path) -> None:
    keep = {"Train": ["FS+RO"], "Template": ["C-gen"]}
    changes = {"perplexity_rows": 2, "perplexity_samples": 2}
    table = run_twice(smallest("table3", keep, rows=2, metric_calls=1, **changes), tmp_path)
    (row,) = table.rows
    assert row.ours["perplexity"].mean > 1
    assert row.perplexity_error is not None and row.perplexity_error > 0
    assert f"(SE {row.perplexity_error:.2f})" in table.markdown()
