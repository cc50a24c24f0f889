"""``python -m tools.plots.from_rivals LINES.jsonl``: the figures of a run of ``rivals.py``.

It writes ``docs/figures/rivals.jsonl``, the lines without the instructions, which are made of the
text of data that is not ours: a benchmark with ``--json`` on a copy of it goes on where the lines
end. And it writes ``docs/figures/instruction_induction.json``, what the plot of the tasks shows:
the arm ``infill`` on each task, those of the choosing half marked as such.
"""

import json
import sys
from pathlib import Path
from typing import Any

from dspy_diffusion_infill.jsonl import lines_of
from tools.plots import FOLDER


def without_instructions(line: dict[str, Any]) -> dict[str, Any]:
    """A line of the benchmark's journal without texts."""
    return line | {"value": line["value"] | {"instructions": []}}


def figures(outcomes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Accuracy before and after the default search, by task and seed; the demo's reviews apart."""
    rows = [
        {
            "task": one["task"],
            "seed": one["seed"],
            "test_before": one["curve"][0][1],
            "test_after": one["curve"][-1][1],
            "metric_calls": one["calls"],
        }
        | ({"helped_to_choose": True} if one["half"] == "choose" else {})
        for one in outcomes
        if one["arm"] == "infill" and not one["task"].startswith("demo_")
    ]
    return sorted(rows, key=lambda row: ("helped_to_choose" in row, row["task"], row["seed"]))


def main(path: str, folder: Path = FOLDER) -> None:
    """Writes both files into the folder."""
    lines = [without_instructions(line.parse()) for line in lines_of(path)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "rivals.jsonl").write_text(text, encoding="utf-8")
    rows = [json.dumps(row) for row in figures([line["value"] for line in lines])]
    joined = "[\n " + ",\n ".join(rows) + "\n]\n"
    (folder / "instruction_induction.json").write_text(joined, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
