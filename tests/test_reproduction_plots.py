"""Pictures of tables: bars and dots where the figures are, ours and the paper's."""

from pathlib import Path

import pytest
from matplotlib.collections import PathCollection
from test_reproduction_tables import experiment, table_of

from dspy_diffusion_infill.reproduction.plots import draw, save_plot

FOUND = {0: [(0.5, 4.0), (0.6, 5.0), (0.7, 6.0)], 1: [(None, 2.0), (None, None), (None, None)]}


def test_bars_are_as_long_as_the_figures_and_what_is_not_defined_has_none() -> None:
    figure = draw(table_of(experiment(), FOUND))
    pearson, perplexity = figure.axes
    widths = [[round(bar.get_width(), 6) for bar in axis.patches] for axis in (pearson, perplexity)]
    assert widths == [[0.6, 0.1], [5.0, 7.4, 2.0, 3.0]]
    assert [axis.get_title() for axis in figure.axes] == ["Pearson", "Perplexity"]
    assert [label.get_text() for label in pearson.get_yticklabels()] == ["plain", "other · 2"]
    assert {text.get_text() for text in pearson.get_legend().get_texts()} == {"ours", "paper"}


def test_the_plot_may_show_some_measures_only() -> None:
    spec = experiment(plot={"measures": ["perplexity"]})
    assert [axis.get_title() for axis in draw(table_of(spec, FOUND)).axes] == ["Perplexity"]


def test_dots_lie_at_both_figures_and_only_where_both_are_known() -> None:
    spec = experiment(plot={"kind": "scatter", "x": "perplexity", "measures": ["pearson"]})
    (axis,) = draw(table_of(spec, FOUND)).axes
    dots = [dot for dot in axis.collections if isinstance(dot, PathCollection)]
    places = [[round(float(x), 6) for x in dot.get_offsets()[0]] for dot in dots]
    assert places == [[5.0, 0.6], [7.4, 0.1]]
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("Perplexity", "Pearson")


def test_a_table_without_any_figure_is_drawn_too() -> None:
    nothing = {0: [(None, None)] * 3, 1: [(None, None)] * 3}
    for plot in ({}, {"kind": "scatter", "x": "perplexity", "measures": ["pearson"]}):
        bare = [{"label": {"Prompt": "p"}, "model": name} for name in ("a", "b")]
        figure = draw(table_of(experiment(plot=plot, conditions=bare), nothing))
        assert not any(axis.patches for axis in figure.axes)


@pytest.mark.parametrize("scale", ["full", "smoke"])
def test_a_smoke_run_says_so_in_its_picture(scale: str, tmp_path: Path) -> None:
    from dspy_diffusion_infill.reproduction.experiment_files import parse_experiment

    content = {
        "title": "What $5 buys for $6",
        "task": "summeval",
        "test": {"name": "summeval", "split": "test"},
        "shots": {"name": "summeval", "split": "dev"},
        "seeds": [0],
        "measures": ["pearson"],
        "conditions": [{"label": {"Prompt": "$ and $"}, "model": "a"}],
    }
    spec = parse_experiment(content, name="small", scale=scale)
    table = table_of(spec, {0: [(0.5,)]})
    files = save_plot(table, tmp_path / "small")
    assert [file.name for file in files] == ["small.png", "small.svg"]
    assert files[0].read_bytes().startswith(b"\x89PNG")
    assert "</svg>" in files[1].read_text(encoding="utf-8")
    assert draw(table).get_suptitle().endswith("(smoke scale)") == (scale == "smoke")
