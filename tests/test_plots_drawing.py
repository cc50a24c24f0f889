"""The plots of the documentation: what they show, and that each one is drawn in both themes."""

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from tools.plots import from_rivals
from tools.plots.drawing import THEMES, draw_demo, draw_probe, draw_tasks, halves, mean_gain, save

ROOT = Path(__file__).resolve().parent.parent
FIGURES = ROOT / "docs" / "figures"

DRAWINGS = {"demo": draw_demo, "instruction_induction": draw_tasks, "probe": draw_probe}


def figures_of(name: str):
    return json.loads((FIGURES / f"{name}.json").read_text(encoding="utf-8"))


def test_the_mean_gain_is_over_tasks_and_not_over_seeds():
    rows = [{"task": "a", "test_before": 0.0, "test_after": after} for after in (0.2, 0.4, 0.3)] + [
        {"task": "b", "test_before": 0.5, "test_after": 0.4}
    ]
    assert mean_gain(rows).startswith("mean of 2 tasks: +10.0 points, 95 % interval -10.0 to +30.0")


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_plot_is_drawn_from_its_figures_in_both_themes(name, tmp_path):
    for theme in THEMES.values():
        save(DRAWINGS[name](figures_of(name), theme), tmp_path / "first.svg")
        save(DRAWINGS[name](figures_of(name), theme), tmp_path / "again.svg")
        assert "<svg" in (first := (tmp_path / "first.svg").read_text())
        without_ids = re.compile(r'(id="|#|url\(#)[\w-]+')
        again = (tmp_path / "again.svg").read_text()
        assert without_ids.sub("", first) == without_ids.sub("", again)


def test_tasks_that_helped_to_choose_are_kept_apart():
    rows = [
        {"task": "a", "seed": 0, "helped_to_choose": True},
        {"task": "b", "seed": 0},
        {"task": "a", "seed": 1, "helped_to_choose": True},
    ]
    assert halves(rows) == {"test": [rows[1]], "starred": [rows[0], rows[2]]}


def test_the_figures_of_the_tasks_are_those_of_the_benchmarks_lines(tmp_path):
    lines = FIGURES / "rivals.jsonl"
    from_rivals.main(str(lines), tmp_path)
    for name in ("rivals.jsonl", "instruction_induction.json"):
        assert (tmp_path / name).read_bytes() == (FIGURES / name).read_bytes()


def test_a_line_of_the_benchmark_becomes_a_figure_without_its_instructions(tmp_path):
    value = {"task": "a", "seed": 1, "half": "choose", "arm": "infill", "calls": 40}
    value |= {"curve": [[16, 0.25], [32, 0.5]], "instructions": ["Text of others.", "More."]}
    other = value | {"arm": "gepa"}
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(json.dumps({"key": "k", "value": v}) + "\n" for v in (value, other)))
    from_rivals.main(str(path), tmp_path)
    (row,) = json.loads((tmp_path / "instruction_induction.json").read_text())
    expected = {"task": "a", "seed": 1, "test_before": 0.25, "test_after": 0.5, "metric_calls": 40}
    assert row == expected | {"helped_to_choose": True}
    assert "others" not in (tmp_path / "rivals.jsonl").read_text()


def test_every_plot_of_the_documents_is_there_in_both_themes():
    documents = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    texts = "\n".join(path.read_text(encoding="utf-8") for path in documents)
    used = set(re.findall(r"figures/(\w+)-(?:light|dark)\.svg", texts))
    assert used == set(DRAWINGS)
    for name in used:
        for theme in THEMES:
            assert f"figures/{name}-{theme}.svg" in texts
            assert (FIGURES / f"{name}-{theme}.svg").is_file()


def test_the_documents_say_what_the_figures_say():
    for name in ("README.md", "docs/results.md"):
        words = " ".join((ROOT / name).read_text(encoding="utf-8").split())
        for half in filter(None, halves(figures_of("instruction_induction")).values()):
            found = re.fullmatch(
                r"mean of (\d+) tasks: (\S+) points, 95 % interval (\S+) to (\S+)", mean_gain(half)
            )
            assert found
            num_tasks, mean, low, high = (text.replace("-", "−") for text in found.groups())
            assert f"{num_tasks} tasks" in words
            assert f"{mean} points (95 % interval {low} to {high})" in words
