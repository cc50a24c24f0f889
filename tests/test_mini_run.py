"""The small reproduction's figures, and a run of it from nothing."""

import json
import math
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from test_mini import TINY, generator

from dspy_diffusion_infill.errors import MissingDependencyError
from dspy_diffusion_infill.reproduction.mini import MiniRow, run_mini, training, world
from dspy_diffusion_infill.reproduction.mini.recipe import STAGES
from dspy_diffusion_infill.reproduction.mini.summary import (
    COLUMNS,
    markdown,
    mean_over_seeds,
    verdicts,
    wilson,
)

# The figures


def rows_of(values, *, stage="FS", field="infill_exact_match", num_contexts=100):
    zero = dict.fromkeys(("infill_exact_match", "downstream_accuracy", "told_accuracy"), 0.0)
    return [
        MiniRow(
            stage=stage,
            seed=k,
            num_contexts=num_contexts,
            **{**zero, "perplexity": 2.0, field: value},
        )
        for k, value in enumerate(values)
    ]


def all_stages(*, response_only, full, both):
    values = {"None": [0.0] * 3, "RO": response_only, "FS": full, "FS+RO": both}
    return [row for stage in STAGES for row in rows_of(values[stage], stage=stage)]


def test_the_interval_of_perplexity_is_students_over_seeds():
    values, column = [3.0, 4.0, 5.5], COLUMNS[2]
    result = mean_over_seeds(rows_of(values, field="perplexity"), "FS", column)
    reach = 4.302652729749464 * statistics.stdev(values) / math.sqrt(3)  # t table, 2 degrees, 0.975
    assert result.mean == pytest.approx(12.5 / 3)
    assert result.std == pytest.approx(statistics.stdev(values))
    assert result.low == pytest.approx(max(1.0, 12.5 / 3 - reach))
    assert result.high == pytest.approx(12.5 / 3 + reach)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_of_a_share_is_wilsons(counts):
    hits, count = counts
    expected = binomtest(hits, count).proportion_ci(method="wilson")
    assert wilson(hits / count, count) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_seeds_that_agree_still_leave_an_interval():
    result = mean_over_seeds(rows_of([0.0, 0.0, 0.0]), "FS", COLUMNS[0])
    assert (result.mean, result.std, result.low) == (0, 0, 0)
    assert 0.01 < result.high < 0.02  # 0 of 300


def test_one_seed_has_an_interval_but_no_deviation():
    result = mean_over_seeds(rows_of([0.5]), "FS", COLUMNS[0])
    assert math.isnan(result.std) and result.low < 0.5 < result.high


def test_the_verdict_is_said_either_way():
    good = all_stages(response_only=[0.1] * 3, full=[0.9] * 3, both=[0.2, 0, 0.1])
    fs, fs_ro = verdicts(good)
    assert "(9.0 times)" in fs and "lie apart" in fs
    assert "(1.0 times)" in fs_ro and "do not lie apart" in fs_ro


def test_no_ratio_is_said_where_response_only_has_nothing():
    rows = all_stages(response_only=[0] * 3, full=[1] * 3, both=[1] * 3)
    assert all("no ratio to 0" in line and "lie apart" in line for line in verdicts(rows))


def test_the_markdown_table_has_a_line_for_each_stage():
    rows = all_stages(response_only=[0] * 3, full=[1] * 3, both=[1] * 3)
    lines = [line for line in markdown(rows).splitlines() if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in lines] == ["stage", "---", *STAGES]
    assert {line.count("|") for line in lines} == {len(COLUMNS) + 2}


# A run


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mini")
    rows = run_mini(
        seeds=1, output=folder / "out", json=folder / "rows.json", display=False, scale=TINY
    )
    return folder, rows


def test_a_run_gives_a_row_for_each_stage_with_figures_in_range(smoke):
    _, rows = smoke
    assert [row.stage for row in rows] == list(STAGES)
    for row in rows:
        for share in (row.infill_exact_match, row.downstream_accuracy, row.told_accuracy):
            assert 0.0 <= share <= 1.0
        assert 1.0 < row.perplexity < math.inf


def test_the_json_file_holds_what_is_compared_and_nothing_else(smoke):
    folder, rows = smoke
    written = json.loads((folder / "rows.json").read_text(encoding="utf-8"))
    keys = ["stage", "seed", "infill_exact_match", "downstream_accuracy", "perplexity"]
    assert [list(row) for row in written] == [keys] * len(rows)
    assert [row["perplexity"] for row in written] == [row.perplexity for row in rows]


def test_the_output_folder_holds_table_and_plots(smoke):
    folder, rows = smoke
    assert (folder / "out" / "mini.md").read_text(encoding="utf-8") == markdown(rows)
    assert (folder / "out" / "mini.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (folder / "out" / "mini.svg").read_text(encoding="utf-8")


def test_the_same_seed_gives_the_same_rows(smoke):
    _, rows = smoke
    assert run_mini(seeds=1, display=False, scale=TINY) == rows


def weights_of(model):
    return {name: weights.detach().clone() for name, weights in model.named_parameters()}


def test_fine_tuning_starts_from_the_same_weights_and_moves_them(monkeypatch):
    fine_tune, before, after = training.fine_tune, {}, {}

    def watched(model, seen, stage, **options):
        before[stage] = weights_of(model)
        fine_tune(model, seen, stage, **options)
        after[stage] = weights_of(model)

    monkeypatch.setattr(training, "fine_tune", watched)
    run_mini(seeds=1, display=False, scale=replace(TINY, num_contexts=2))
    assert list(before) == list(STAGES)
    for stage, weights in before.items():
        for name, start in before["None"].items():
            assert torch.equal(weights[name], start)
            assert torch.equal(after[stage][name], start) == (stage == "None"), (stage, name)


def test_each_masking_of_a_stage_has_an_optimizer_and_a_schedule_of_its_own(monkeypatch):
    """As each stage of a recipe; the rate of what comes second has a peak of its own."""
    step, rates, optimizers_of = training._step, {}, {}

    def watched(model, optimizers, x0, masking, generator):
        rates.setdefault(masking, []).append(optimizers[0].param_groups[0]["lr"])
        optimizers_of.setdefault(masking, optimizers)
        assert optimizers_of[masking] is optimizers
        return step(model, optimizers, x0, masking, generator)

    monkeypatch.setattr(training, "_step", watched)
    scale = replace(TINY, stage_tokens=192 * 128, batch_tokens=128)
    seen, _ = world.split(generator())
    training.fine_tune(training.new_model(scale, 0), seen, "FS+RO", scale=scale, seed=0, log=False)
    assert optimizers_of["FS"] is not optimizers_of["RO"]
    for part in STAGES["FS+RO"]:
        learned, peak = rates[part.masking], part.rate * scale.learning_rate
        assert learned[0] < 0.1 * peak
        assert 0.95 * peak < max(learned) <= peak
        assert learned[-1] < 0.01 * peak
    assert len(rates["FS"]) == pytest.approx(2 * len(rates["RO"]), rel=0.1)


def test_without_matplotlib_rows_and_table_are_kept_and_a_line_says_that_plots_are_not(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("dspy_diffusion_infill.reproduction.mini.run.find_spec", lambda name: None)
    run_mini(
        seeds=1,
        output=tmp_path / "out",
        json=tmp_path / "rows.json",
        display=False,
        scale=replace(TINY, num_contexts=2),
    )
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mini.md"]
    assert len(json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))) == len(STAGES)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("plots need matplotlib: pip install")


def test_without_matplotlib_and_without_json_it_says_so_before_it_starts(tmp_path, monkeypatch):
    monkeypatch.setattr("dspy_diffusion_infill.reproduction.mini.run.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="plots need matplotlib"):
        run_mini(output=tmp_path / "out")


def test_a_run_prints_progress_and_table(capfd):
    run_mini(seeds=1, scale=replace(TINY, num_contexts=2))
    out, err = capfd.readouterr()
    assert "downstream" in out and all(stage in out for stage in STAGES)
    assert "seed 0 · pretraining" in err and "seed 0 · FS+RO · RO" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"scale": "huge"}, "scale must be one of full"),
        ({"scale": "smoke", "json": Path()}, "json must be a file, got the folder"),
    ],
)
def test_wrong_options_are_said_before_anything_starts(options, message):
    with pytest.raises(ValueError, match=message):
        run_mini(**options)


@pytest.mark.slow
def test_seeds_in_processes_of_their_own_give_the_rows_that_they_give_here(smoke):
    _, rows = smoke
    assert run_mini(seeds=2, display=False, scale=TINY)[: len(rows)] == rows
