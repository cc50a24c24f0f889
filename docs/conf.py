"""Sphinx configuration: MyST notebooks, furo, and the API from docstrings."""

import re
import sys
from pathlib import Path

import fastapi  # noqa: F401 - before autodoc, which sets TYPE_CHECKING: its models fail under that

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_settings = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text("utf-8"))

project = _settings["project"]["name"]
author = "the authors of dspy-diffusion-infill"
copyright = f"2026, {author}"
release = version = _settings["project"]["version"]

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "jupyter_execute"]

# Notebooks are run by the tests, not here.
nb_execution_mode = "off"
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3

# Shape annotations of jaxtyping read badly in signatures; the docstrings say what the types mean.
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_class_signature = "mixed"
napoleon_use_ivar = True

html_theme = "furo"
html_title = project


def setup(app) -> None:
    """Makes a bar in a docstring a bar (|x|); reStructuredText would take it for a substitution."""
    app.connect("autodoc-process-docstring", _escape_bars)


def _escape_bars(app, what, name, obj, options, lines) -> None:
    lines[:] = [re.sub(r"(``.*?``)|\|", lambda found: found[1] or r"\|", line) for line in lines]
