"""``docs/fidelity.md``: every item of the paper has a row, and every place that it names exists."""

import re
from pathlib import Path
from typing import Any

import pytest
import typer

from dspy_diffusion_infill.cli.app import app
from dspy_diffusion_infill.reproduction.experiment_files import TABLES

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "dspy_diffusion_infill"
PAPER = ROOT.parent / "shared" / "paper.txt"

EQUATIONS = [f"Eq. {number}" for number in range(1, 8)]
ITEMS = [
    *(f"Table {number}" for number in range(1, 8)),
    *(f"Figure {number}" for number in range(1, 7)),
    *(f"Appendix {letter}" for letter in "ABCDEFGHIKL"),
    *(f"Appendix J.{number}" for number in range(1, 5)),
]
HYPERPARAMETERS = [
    *("Learning rate (LLaDA)", "Learning rate (Dream)", "LR schedule", "Batch size (LLaDA)"),
    *("Batch size (Dream)", "Training epochs (FS)", "Training epochs (RO)", "Warmup", "Optimizer"),
    *("Weight decay", "Gradient clipping"),
    *("Diffusion steps", "Response length", "Temperature (LLaDA)", "Temperature (Dream)"),
    *("Window", "Stride", "Mask", "σmax", "Masked prefix", "Shots"),
]


def rows() -> list[list[str]]:
    """The cells of the document's tables, headings and rules left out."""
    text = (ROOT / "docs/fidelity.md").read_text(encoding="utf-8")
    found = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return [cells for cells in found if cells[0] != "Item"]


def where(cells: list[str]) -> list[str]:
    """The places that a row names, in its last column but one."""
    return re.findall(r"`([^`]+)`", cells[-2])


def named(item: str) -> list[list[str]]:
    return [cells for cells in rows() if re.match(rf"{re.escape(item)}(?![\w.])", cells[0])]


@pytest.mark.parametrize("item", [*ITEMS, *HYPERPARAMETERS])
def test_every_item_of_the_paper_has_one_row_that_says_where_it_is(item: str) -> None:
    (cells,) = named(item)
    assert len(cells) == (4 if item in HYPERPARAMETERS else 3)
    assert cells[-1].strip()
    assert bool(where(cells)) == (item != "Appendix L")


@pytest.mark.parametrize("equation", EQUATIONS)
def test_every_equation_of_the_paper_is_in_a_row(equation: str) -> None:
    assert [cells for cells in rows() if re.search(rf"{re.escape(equation)}\b", cells[0])]


def test_every_place_that_a_row_names_exists() -> None:
    commands: Any = typer.main.get_command(app)
    places = {place for cells in rows() for place in where(cells)}
    for place in places:
        if place.startswith("dspy-infill "):
            command, table = place.split()[1:]
            assert command in commands.commands and table in TABLES, place
        else:
            assert (PACKAGE / place).is_file() or (ROOT / place).is_file(), place
    assert {f"dspy-infill reproduce {table}" for table in TABLES} <= places


@pytest.mark.skipif(not PAPER.exists(), reason="the paper's text is not here")
def test_the_items_are_those_of_the_paper() -> None:
    paper = PAPER.read_text(encoding="utf-8")
    kinds = {f"{kind} {n}" for kind, n in re.findall(r"\b(Table|Figure) (\d)", paper)}
    parts = re.findall(r"^ ?([A-L])(\.\d)? [A-Z][\w :-]+$", paper, re.MULTILINE)
    appendices = {f"Appendix {letter}{number}" for letter, number in parts}
    assert kinds | appendices - {"Appendix J"} == set(ITEMS)
    numbered = {f"Eq. {number}" for number in re.findall(r" \((\d)\)$", paper, re.MULTILINE)}
    assert numbered == set(EQUATIONS)
    start = paper.index("Hyperparameter Value")
    table = paper[start : paper.index("Table 6:", start)]
    for name in HYPERPARAMETERS[:15]:
        assert re.search(rf"^{re.escape(name)} ", table, re.MULTILINE), name
