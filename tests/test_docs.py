"""README and documentation: code runs as written, commands and options exist, links lead somewhere.

The ``python`` blocks of a document run in order, in one process, as a reader would paste them. A
block that needs what tests have not (a GPU, the hub, a key) has ``<!-- skip: reason -->`` above it
and is compiled only.
"""

import ast
import inspect
import re
import shlex
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import forked
import pytest
import typer
from embedded_pair import needs_embedded_pair

from dspy_diffusion_infill import DiffusionInfill, Sampling, embedded_lm
from dspy_diffusion_infill.cli.app import app

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [
    ROOT / "README.md",
    *sorted(p for p in (ROOT / "docs").rglob("*.md") if "_build" not in p.parts),
]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SKIP = re.compile(r"<!-- skip: (\S.*?) -->\s*\Z")
NEEDS_PAIR = re.compile(r"\b(?:embedded_lm|diffusion_lm|load_denoiser|compile|estimate)\(")


@dataclass(frozen=True)
class Block:
    """A fenced block: language, text, first line in the document, and why it is not run."""

    language: str
    text: str
    line: int
    skip: str


@cache
def blocks(document: Path) -> tuple[Block, ...]:
    text = document.read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        skip = SKIP.search(text[: match.start()])
        line = text.count("\n", 0, match.start()) + 2
        found.append(Block(match[1], match[2], line, skip[1] if skip else ""))
    return tuple(found)


def script(document: Path) -> str:
    """The runnable Python blocks on their lines of the document, so that tracebacks are right."""
    lines = [""] * (document.read_text(encoding="utf-8").count("\n") + 1)
    for block in blocks(document):
        if block.language == "python" and not block.skip:
            code = block.text.splitlines()
            lines[block.line - 1 : block.line - 1 + len(code)] = code
    return "\n".join(lines)


def name_of(document: Path) -> str:
    return document.relative_to(ROOT).as_posix()


def run(document: Path, folder: Path) -> None:
    """Runs a document's Python in ``folder``."""
    path = folder / f"{document.stem}.py"
    path.write_text(script(document), encoding="utf-8")
    forked.run([path.name], folder / "printed", cwd=folder, PYTHONPATH=str(ROOT))


RUNNABLE = [document for document in DOCUMENTS if script(document).strip()]
WITH_PAIR = [document for document in RUNNABLE if NEEDS_PAIR.search(script(document))]
WITHOUT_PAIR = [document for document in RUNNABLE if document not in WITH_PAIR]


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_python_block_is_python(document):
    for block in blocks(document):
        if block.language == "python":
            compile(block.text, f"{document.name}:{block.line}", "exec")


@pytest.mark.parametrize("document", WITHOUT_PAIR, ids=name_of)
def test_python_blocks_run_as_written(document, tmp_path):
    run(document, tmp_path)


@pytest.mark.slow
@needs_embedded_pair
@pytest.mark.parametrize("document", WITH_PAIR, ids=name_of)
def test_python_blocks_run_as_written_on_the_embedded_pair(document, tmp_path):
    run(document, tmp_path)


# Commands


def commands() -> list[tuple[str, list[str]]]:
    """(where, words) of every command line in the shell blocks."""
    found = []
    for document in DOCUMENTS:
        for block in blocks(document):
            if block.language in ("bash", "sh", "console"):
                text = block.text.replace("\\\n", " ")
                found += [
                    (f"{name_of(document)}:{block.line}", shlex.split(line, comments=True))
                    for line in text.splitlines()
                    if line.strip() and not line.startswith("#")
                ]
    return found


def options_of(command: Any) -> set[str]:
    return {name for option in command.params for name in (*option.opts, *option.secondary_opts)}


def test_commands_of_the_documents_exist_with_their_options():
    root: Any = typer.main.get_command(app)
    known = root.commands
    seen = set()
    for where, words in commands():
        if words[0] != "dspy-infill":
            continue
        assert words[1] in known, f"{where}: dspy-infill has no command {words[1]!r}"
        command = known[words[1]]
        used = {word.partition("=")[0] for word in words[2:] if word.startswith("-")}
        unknown = used - options_of(command) - {"--help"}
        assert not unknown, f"{where}: dspy-infill {words[1]} has no option {unknown}"
        seen.add(words[1])
    assert "demo" in seen


def test_make_targets_of_the_documents_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))
    used = {words[1] for _, words in commands() if words[0] == "make"}
    assert used and used <= targets


def test_extras_of_the_documents_exist():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = set(settings["project"]["optional-dependencies"])
    texts = [document.read_text(encoding="utf-8") for document in DOCUMENTS]
    used = {name for text in texts for name in re.findall(r"(?:'\.|infill)\[(\w+)\]", text)}
    assert used and used <= extras


def test_scripts_of_the_documents_exist():
    for where, words in commands():
        for word in words:
            if words[0] == "python" and word.endswith(".py"):
                assert (ROOT / word).is_file(), f"{where}: {word}"


# Options and links


def rows_of(heading: str) -> dict[str, str]:
    """Name and default of every option in the tables of ``docs/options.md``."""
    text = (ROOT / "docs/options.md").read_text(encoding="utf-8")
    before, _, after = text.partition("\n## `Sampling`\n")
    part = after if heading == "Sampling" else before
    return dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", part, re.MULTILINE))


@pytest.mark.parametrize("documented", [DiffusionInfill, Sampling])
def test_every_option_is_documented_with_its_default(documented):
    parameters = inspect.signature(documented).parameters.values()
    defaults = {parameter.name: repr(parameter.default) for parameter in parameters}
    assert rows_of(documented.__name__) == defaults


def test_options_of_the_embedded_lm_are_documented():
    text = (ROOT / "docs/embedded-models.md").read_text(encoding="utf-8")
    for name in inspect.signature(embedded_lm).parameters:
        assert f"| `{name}` |" in text


def test_links_of_the_readme_lead_to_files():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    assert links
    for link in links:
        assert (ROOT / link).exists(), link


def test_the_first_block_of_the_readme_is_short():
    first = next(block for block in blocks(ROOT / "README.md") if block.language == "python")
    assert len(first.text.splitlines()) <= 15
    assert ast.parse(first.text).body
