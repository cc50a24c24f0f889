from pathlib import Path

from test_evaluation_hover_dump import dump_of, line
from typer.testing import CliRunner

from dspy_diffusion_infill.cli.app import app
from dspy_diffusion_infill.evaluation.retrieval import Page
from dspy_diffusion_infill.evaluation.stored_index import open_index


def test_the_dump_becomes_an_index_that_reproduce_opens(tmp_path: Path) -> None:
    text = "\n".join(line(f"Page {k}", [f"It is about number{k}."]) for k in range(3))
    dump, out = dump_of({"wiki_00.bz2": text}, tmp_path / "d.tar.bz2"), tmp_path / "pages"
    result = CliRunner().invoke(app, ["hover-corpus", str(dump), str(out)])
    assert result.exit_code == 0, result.output
    assert "3 pages are indexed in" in result.output
    assert "(the published dump has 5,233,329)" in result.output
    found = open_index(out).search("number1", num_pages=2)
    assert found == [Page("Page 1", "It is about number1.")]
