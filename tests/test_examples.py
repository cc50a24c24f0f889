"""The notebooks: valid, with the outputs of one whole run, and running from top to bottom."""

import ast
import shutil
from itertools import groupby
from pathlib import Path

import nbformat
import pytest
from embedded_pair import needs_embedded_pair
from nbclient import NotebookClient

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
SUMMEVAL = EXAMPLES.parent.parent / "shared/data/summeval_dev"
SECONDS_A_CELL = 1800  # two idle cores need one or two minutes for all of them
by_name = pytest.mark.parametrize("name", [path.stem for path in NOTEBOOKS])


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def replaced(notebook: nbformat.NotebookNode, smaller: dict[str, str]) -> nbformat.NotebookNode:
    """The notebook with these pieces of code in place of others, each of which it holds."""
    for old, new in smaller.items():
        assert any(old in cell.source for cell in code_cells(notebook)), old
        for cell in code_cells(notebook):
            cell.source = cell.source.replace(old, new)
    return notebook


def run(notebook: nbformat.NotebookNode, folder: Path) -> nbformat.NotebookNode:
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(
        notebook, timeout=SECONDS_A_CELL, kernel_name="python3", resources=resources
    ).execute()
    return notebook


def shape(notebook: nbformat.NotebookNode) -> list[list[str]]:
    """What each cell puts out: printed text, or the kinds of data that it displays.

    Text that is printed in several pieces counts once; warnings of the machine do not count.
    """
    shapes = []
    for cell in code_cells(notebook):
        kinds = [
            output.name if output.output_type == "stream" else " ".join(sorted(output.data))
            for output in cell.outputs
        ]
        kinds = [kind for kind in kinds if kind != "stderr"]
        shapes.append([kind for kind, _ in groupby(kinds)])
    return shapes


def printed_by(notebook: nbformat.NotebookNode) -> str:
    """All that a notebook prints and displays as text."""
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    shown = [output.get("data", {}).get("text/plain", "") for output in outputs]
    return "\n".join([output.get("text", "") for output in outputs] + shown)


@by_name
def test_a_notebook_is_valid_and_its_cells_are_python(name):
    notebook = read(name)
    nbformat.validate(notebook)
    assert notebook.cells[0].source.startswith("# ")
    for cell in code_cells(notebook):
        ast.parse(cell.source)


@by_name
def test_a_notebook_holds_the_outputs_of_one_whole_run(name):
    cells = code_cells(read(name))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert any(cell.outputs for cell in cells)
    assert all(output.output_type != "error" for cell in cells for output in cell.outputs)


JUDGED = (
    "8 rows to search with, 16 to measure on",
    "32 verdicts",
    "unreadable and not scored",
    "score of the first rubric",
    "Kendall τ-b",
    "<Figure",
)
PRINTED = {
    "quickstart": ("at most", "denoiser passes", "before", "held-out", "validated"),
    "after_copro": ("written by the LM:", "\nfirst ", "\nCOPRO ", "\nand infilled "),
    "judge": ("summaries: 8 rows", *JUDGED),
}

# Searches are shorter than a reader's: every cell runs, and puts out as much.
SMALLER = {
    "quickstart": {},
    "after_copro": {"max_metric_calls=112": "max_metric_calls=48"},
    "judge": {"num_proposals=3": "num_proposals=1"},
}


@pytest.mark.slow
@needs_embedded_pair
@by_name
def test_a_notebook_runs_and_puts_out_again_what_it_holds(name, tmp_path):
    shutil.copytree(EXAMPLES / "summaries", tmp_path / "summaries")
    notebook = run(replaced(read(name), SMALLER[name]), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["summaries"]
    assert shape(notebook) == shape(read(name))
    printed = printed_by(notebook)
    for part in PRINTED[name]:
        assert part in printed


@pytest.mark.slow
@needs_embedded_pair
@pytest.mark.skipif(not SUMMEVAL.is_dir(), reason="needs ../shared/data/summeval_dev")
def test_the_judge_notebook_runs_on_summeval():
    """On half of the articles: texts of SummEval are long."""
    halves = {"[:6]": "[:3]", "articles[:2]": "articles[:1]", "articles[2:]": "articles[1:]"}
    notebook = replaced(read("judge"), {**SMALLER["judge"], **halves})
    printed = printed_by(run(notebook, EXAMPLES))
    sizes = ("summeval_dev: 4 rows", "4 rows to search with, 8 to measure on", "16 verdicts")
    for part in (*sizes, *JUDGED[2:]):
        assert part in printed
