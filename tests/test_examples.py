"""The notebooks: valid, without leftovers, and running from top to bottom."""

import ast
import shutil
from pathlib import Path

import nbformat
import pytest
from embedded_pair import needs_embedded_pair
from nbclient import NotebookClient

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
SUMMEVAL = EXAMPLES.parent.parent / "shared/data/summeval_dev"
SECONDS_A_CELL = 1800  # two idle cores need one or two minutes for all of them


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_valid_and_its_cells_are_python(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.cells[0].source.startswith("# ")
    for cell in notebook.cells:
        if cell.cell_type == "code":
            ast.parse(cell.source)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_keeps_no_error_and_no_output_of_half_a_run(path):
    cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    assert all(output.output_type != "error" for cell in cells for output in cell.outputs)
    counts = [cell.execution_count for cell in cells]
    assert counts in ([None] * len(cells), list(range(1, len(cells) + 1)))


def printed_by(name: str, folder: Path) -> str:
    """All that a notebook prints when it runs in ``folder``; an exception in a cell is raised."""
    notebook = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    client = NotebookClient(
        notebook, timeout=SECONDS_A_CELL, kernel_name="python3", resources=resources
    )
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    shown = [output.get("data", {}).get("text/plain", "") for output in outputs]
    return "\n".join([output.get("text", "") for output in outputs] + shown)


@pytest.mark.slow
@needs_embedded_pair
def test_the_quickstart_runs(tmp_path):
    printed = printed_by("quickstart", tmp_path)
    for part in ("at most", "denoiser passes", "before", "held-out", "validated"):
        assert part in printed
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@needs_embedded_pair
def test_diffusion_infill_follows_copro(tmp_path):
    lines = printed_by("after_copro", tmp_path).splitlines()
    for name in ("first", "COPRO", "and infilled"):
        assert any(line.startswith(name) and "%" in line for line in lines)


def assert_the_judge_was_measured(printed: str) -> None:
    for part in (
        "8 rows to search with, 16 to measure on",
        "48 verdicts",
        "unreadable and not scored",
        "score of the first rubric",
        "Kendall τ-b",
        "<Figure",
    ):
        assert part in printed


@pytest.mark.slow
@needs_embedded_pair
def test_the_judge_notebook_runs_on_rows_of_our_own(tmp_path):
    shutil.copytree(EXAMPLES / "summaries", tmp_path / "summaries")
    printed = printed_by("judge", tmp_path)
    assert "summaries: 8 rows" in printed
    assert_the_judge_was_measured(printed)


@pytest.mark.slow
@needs_embedded_pair
@pytest.mark.skipif(not SUMMEVAL.is_dir(), reason="needs ../shared/data/summeval_dev")
def test_the_judge_notebook_runs_on_summeval():
    printed = printed_by("judge", EXAMPLES)
    assert "summeval_dev: 8 rows" in printed
    assert_the_judge_was_measured(printed)
