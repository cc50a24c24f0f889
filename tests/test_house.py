"""Rules of the house that no linter checks: light imports, exact exports, layout, packaging."""

import ast
import os
import re
import shutil
import subprocess
import sys
import types
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path, PurePosixPath

import pytest

import dspy_diffusion_infill

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "dspy_diffusion_infill"
HEAVY = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "xllamacpp",
    "gguf",
    "datasets",
    "scipy",
    "ray",
)

# Test files that mirror no module: the behaviour that each one is about.
BEHAVIOURS = {
    "demo_rows": "the rows that the demo ships",
    "docs": "README and documentation run as written",
    "dspy_conventions": "what DSPy expects of an optimizer",
    "examples": "the notebooks run",
    "fidelity": "the paper's items, each with its place in the code",
    "hostile_checkpoints": "checkpoints that are made to do harm",
    "house": "this file",
    "killed": "what is lost of a compile that is killed, or whose LM fails",
    "perplexity": "diffusion perplexity against full enumeration",
    "rivals": "the comparison of optimizers in tests/benchmarks",
    "worked_tasks": "the worked tasks that the embedded denoiser is trained on",
}

FUNCTIONS = ast.FunctionDef, ast.AsyncFunctionDef


@cache
def settings() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@cache
def tracked_files() -> list[Path]:
    """The files that git tracks or would track, links left out."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("needs a git checkout")
    paths = {ROOT / name for name in done.stdout.split("\0") if name}
    return sorted(path for path in paths if path.is_file() and not path.is_symlink())


def sources() -> list[Path]:
    """The Python files of the package and of ``tools``."""
    return sorted(path for name in (PACKAGE, ROOT / "tools") for path in name.rglob("*.py"))


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def walk(path: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(path.read_text(encoding="utf-8")))


def loaded_by(statement: str) -> set[str]:
    """The heavy packages that are in ``sys.modules`` after the statement, in a fresh process."""
    script = f"import sys\n{statement}\nprint(*({set(HEAVY)!r} & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


# Imports


def test_importing_the_package_loads_nothing_heavy():
    before = loaded_by("import dspy")
    assert loaded_by("import dspy_diffusion_infill") - before == set()


def test_the_command_line_starts_without_anything_heavy():
    before = loaded_by("import dspy")
    assert loaded_by("import dspy_diffusion_infill.cli") - before == set()


def test_torch_is_imported_where_models_run_only():
    for path in sources():
        name = module_name(path)
        if re.match(
            r"dspy_diffusion_infill\.(denoisers|training|scorers\.(causal|token_tree)"
            r"|reproduction\.mini)\b",
            name,
        ):
            continue
        for node in walk(path):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found = {imported.partition(".")[0] for imported in names}
            assert not found & {"torch", "transformers", "peft"}, f"{name} imports {found}"


def test_no_code_of_a_checkpoint_is_ever_trusted():
    for path in [*sources(), *(ROOT / "tests").rglob("*.py")]:
        for node in walk(path):
            assert not (isinstance(node, ast.keyword) and node.arg == "trust_remote_code"), path


# Exports


def test_the_exports_are_exact():
    exports = dspy_diffusion_infill.__all__
    assert sorted(exports) == exports
    assert len(exports) <= 12
    public = {
        name
        for name, value in vars(dspy_diffusion_infill).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert public == set(exports)


def test_every_export_is_explained():
    for name in dspy_diffusion_infill.__all__:
        assert (getattr(dspy_diffusion_infill, name).__doc__ or "").strip(), name


# Packaging


def test_the_package_list_is_the_tree():
    found = {module_name(path) for path in PACKAGE.rglob("__init__.py")}
    listed = settings()["tool"]["setuptools"]["packages"]
    assert sorted(listed) == listed
    assert set(listed) == found


def test_training_at_the_top_is_a_link_into_the_package():
    entry = subprocess.run(
        ["git", "ls-files", "--stage", "training"], cwd=ROOT, capture_output=True, text=True
    )
    if entry.returncode:
        pytest.skip("needs a git checkout")
    assert entry.stdout.startswith("120000 "), "the symbolic link must be committed as one"
    assert os.readlink(ROOT / "training") == "dspy_diffusion_infill/training"


def test_every_data_file_is_in_a_package_data_pattern():
    for path in tracked_files():
        parts = path.relative_to(ROOT).parts
        if path.suffix == ".py" or parts[0] != "dspy_diffusion_infill":
            continue
        assert is_shipped(path), f"no package-data pattern of pyproject.toml takes {path}"


def is_shipped(path: Path) -> bool:
    for package, patterns in settings()["tool"]["setuptools"]["package-data"].items():
        folder = ROOT / package.replace(".", "/")
        if folder in path.parents and any(path in folder.glob(pattern) for pattern in patterns):
            return True
    return False


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tracked files alone."""
    folder = tmp_path_factory.mktemp("tree")
    for path in tracked_files():
        copy = folder / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    return folder


@pytest.fixture(scope="module")
def wheel(tree, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by way of the sdist."""
    return built(tree, tmp_path_factory.mktemp("wheel"))


@pytest.mark.slow
def test_an_installed_wheel_has_no_top_level_training(wheel):
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    tops = {PurePosixPath(name).parts[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"dspy_diffusion_infill"}
    for path in tracked_files():
        parts = path.relative_to(ROOT).parts
        if parts[0] == "dspy_diffusion_infill":
            assert "/".join(parts) in names


@pytest.mark.slow
def test_a_wheel_of_the_same_files_is_equal_to_the_byte(wheel, tree, tmp_path):
    """Without an sdist, from files with other times."""
    for path in tree.rglob("*.py"):
        os.utime(path, (0, 10**9))
    assert built(tree, tmp_path, "--wheel").read_bytes() == wheel.read_bytes()


def built(tree: Path, folder: Path, *options: str) -> Path:
    """The wheel of a copy of the tree; without options by way of the sdist."""
    pytest.importorskip("setuptools", minversion="77")
    pytest.importorskip("build")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), *options]
    done = subprocess.run(
        [*build, str(tree)],
        env={**os.environ, "SOURCE_DATE_EPOCH": "1700000000"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "absent from the `packages` configuration" not in done.stdout + done.stderr
    return next(folder.glob("*.whl"))


def test_the_version_is_the_changelogs_newest():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## \[(\d[^\]]*)\]", text, re.MULTILINE)
    assert versions[0] == settings()["project"]["version"]


# The tree


def test_no_file_names_a_place_on_somebodys_machine():
    place = re.compile(r"(?<![\w.~])/(?:work|root|home|Users|opt|tmp)/\w")
    private = re.compile(
        r"\b(?:10(?:\.\d{1,3}){3}|192\.168(?:\.\d{1,3}){2})\b|\w\.(?:internal|corp|lan)\b"
    )
    for path in tracked_files():
        text = text_of(path)
        for pattern in (place, private):
            found = pattern.search(text)
            assert found is None, f"{path.relative_to(ROOT)}: {found}"
        assert f"{ROOT}{os.sep}" not in text, path


def text_of(path: Path) -> str:
    """The file's text; of a binary file, what of it is ASCII."""
    return path.read_bytes().decode("utf-8", "ignore")


def test_files_stop_at_400_lines_and_functions_at_40():
    """40 lines without signature and docstring, and 80 with them; nested functions count."""
    long_docstring = {"DiffusionInfill.__init__"}  # it explains every option
    for path in sources():
        assert len(text_of(path).splitlines()) <= 400, path
        for name, node in functions_of(ast.parse(text_of(path))):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            length = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
            assert length <= 40, f"{path}:{node.lineno} {name}"
            whole = (node.end_lineno or 0) - node.lineno + 1
            assert whole <= 80 or name in long_docstring, f"{path}:{node.lineno} {name}"


def functions_of(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef]]:
    """Every function of a module, however deep, with its qualified name."""
    for node in ast.iter_child_nodes(tree):
        named = isinstance(node, (*FUNCTIONS, ast.ClassDef))
        inner = f"{prefix}{node.name}." if named else prefix
        if isinstance(node, FUNCTIONS):
            yield inner.removesuffix("."), node
        yield from functions_of(node, inner)


def test_a_public_name_of_a_class_or_a_type_stands_for_one_thing():
    places = defaultdict[str, list[str]](list)
    for path in sources():
        for node in ast.parse(text_of(path)).body:
            is_alias = isinstance(node, ast.Assign) and isinstance(node.value, ast.Subscript)
            names = [node.name] if isinstance(node, ast.ClassDef) else []
            names += [t.id for t in node.targets if isinstance(t, ast.Name)] if is_alias else []
            for name in names:
                if re.fullmatch(r"[A-Z]\w*[a-z]\w*", name):
                    places[name].append(module_name(path))
    twice = {name: found for name, found in places.items() if len(found) > 1}
    assert twice == {} and len(places) > 200


def test_no_module_is_named_after_nothing():
    vague = {"utils", "util", "helpers", "common", "misc", "base", "manager"}
    assert not vague & {path.stem for path in sources()}


def test_every_test_file_mirrors_a_module_or_a_behaviour():
    """``test_windows``, ``test_training_resume`` (a module, then what of it), or BEHAVIOURS."""
    modules = [module_name(path).split(".") for path in sources()]
    known = {"_".join(parts[first:]) for parts in modules for first in range(1, len(parts))}
    for path in (ROOT / "tests").glob("test_*.py"):
        words = path.stem.split("_")[1:]
        beginnings = {"_".join(words[:n]) for n in range(1, len(words) + 1)}
        assert beginnings & known or "_".join(words) in BEHAVIOURS, (
            f"{path.name} mirrors no module: name it after one, or say in BEHAVIOURS what it tests"
        )
