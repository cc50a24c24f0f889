"""``python -m tools.plots``: draws every plot of README and documentation, light and dark.

The figures stand in ``docs/figures``; each file says which command gave it:

- ``demo.json``: ``dspy-infill demo --json docs/figures/demo.json``
- ``instruction_induction.json``: ``python tests/benchmarks/rivals.py``, then
  ``python -m tools.plots.from_rivals`` with what it wrote
- ``probe.json``: ``dspy-infill probe`` on the weights of each training run
"""

import json
from typing import Any

from tools.plots import FOLDER
from tools.plots.drawing import THEMES, draw_demo, draw_probe, draw_tasks, save


def main() -> None:
    """Writes ``NAME-light.svg`` and ``NAME-dark.svg`` beside the figures."""
    drawings = {"demo": draw_demo, "instruction_induction": draw_tasks, "probe": draw_probe}
    for name, draw in drawings.items():
        figures: Any = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
        for theme in THEMES:
            save(draw(figures, THEMES[theme]), FOLDER / f"{name}-{theme}.svg")


main()
