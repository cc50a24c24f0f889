"""A small experiment on articles of our own, whole or in a process that a test can kill.

Run as a script: ``python small_experiment.py DATA OUTPUT API_BASE``.
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import dspy

from dspy_diffusion_infill.programs import instructions_of, with_instructions
from dspy_diffusion_infill.reproduction import prompt_search
from dspy_diffusion_infill.reproduction.experiment import Experiment, ModelSpec
from dspy_diffusion_infill.reproduction.experiment_files import parse_experiment
from dspy_diffusion_infill.reproduction.experiment_run import run_experiment
from dspy_diffusion_infill.reproduction.infill_step import InfillStep
from dspy_diffusion_infill.reproduction.tables import Table
from dspy_diffusion_infill.windows import take_marks

Infill = Callable[[dspy.Module, Sequence[dspy.Example], InfillStep], dspy.Module]

NOWHERE = "http://127.0.0.1:9/v1"
NUM_ARTICLES, NUM_SYSTEMS = 6, 3
NUM_TEST = NUM_ARTICLES * NUM_SYSTEMS - 6
CONTENT: dict[str, Any] = {
    "title": "Small",
    "task": "summeval",
    "test": {"name": "summeval", "split": "dev[6:]"},
    "shots": {"name": "summeval", "split": "dev[:6]", "num": 2},
    "seeds": [0, 1],
    "measures": ["pearson", "spearman", "kendall"],
    "threads": 4,
    "judge": {"retries": 1},
    "conditions": [
        {
            "label": {"Answers": "A", "Prompt": "C-gen"},
            "model": "a",
            "template": "c_gen",
            "paper": [[0.1, 0.2], 0.3],
        },
        {
            "label": {"Answers": "A", "Prompt": "C-gen Infill"},
            "model": "a",
            "template": "c_gen_masked",
            "steps": [{"infill": "a"}],
        },
        {
            "label": {"Answers": "B", "Prompt": "C-gen Infill (transfer)"},
            "model": "b",
            "found_with": "a",
            "template": "c_gen_masked",
            "steps": [{"infill": "a"}],
        },
    ],
}
PLAIN = [condition for condition in CONTENT["conditions"] if "steps" not in condition]


class FilledIn:
    """Stands in for the optimizer: fills marks with its own words and asks every shot once."""

    def __init__(self) -> None:
        self.num_searches = 0

    def __call__(
        self, program: dspy.Module, shots: Sequence[dspy.Example], step: InfillStep
    ) -> dspy.Module:
        self.num_searches += 1
        found = {}
        for name, text in instructions_of(program).items():
            bare, window = take_marks(text)
            assert window is not None
            pieces = range(len(window.pieces))
            fills = [f"Judge with care ({step.seed}.{number})." for number in pieces]
            found[name] = window.splice(bare, fills)
        better = with_instructions(program, found)
        for shot in shots:
            assert 0 <= step.task.metric(shot, better(**shot.inputs())) <= 1
        return better


@contextmanager
def infilled_by(infill: Infill) -> Iterator[None]:
    """Puts another optimizer in the place of the shipped one."""
    with mock.patch.object(prompt_search, "infill", infill):
        yield


def write_summeval(folder: Path) -> Path:
    """Articles, summaries and scores of our own, in SummEval's form."""
    folder.mkdir(parents=True, exist_ok=True)
    documents, outputs = [], []
    for article in range(NUM_ARTICLES):
        name = f"article-{article}"
        source = f"In town number {article} it rained for {article + 2} days."
        documents.append({"doc_id": name, "source": source, "references": [f"Rain in {article}."]})
        for system in range(NUM_SYSTEMS):
            score = 1 + (article + 2 * system) % 5
            scores = {"coherence": score, "consistency": score, "fluency": 5, "relevance": score}
            text = f"It rained in {article}, said {system}."
            outputs.append(
                {"doc_id": name, "system_id": f"M{system}", "system_output": text, "scores": scores}
            )
    for name, rows in (("docs", documents), ("outputs", outputs)):
        lines = "\n".join(json.dumps(row) for row in rows)
        (folder / f"{name}.jsonl").write_text(f"{lines}\n", encoding="utf-8")
    return folder


def small_experiment(**changes: Any) -> Experiment:
    return parse_experiment({**CONTENT, **changes}, name="small", scale="full")


def specs(api_base: str) -> dict[str, ModelSpec]:
    """Two LMs of one loopback server; the denoiser is a folder that is never opened."""
    options = {"api_base": api_base, "api_key": "none", "temperature": 1.0, "max_tokens": 64}
    return {
        name: ModelSpec(lm=f"openai/{name}", options=options, denoiser=f"{name}-denoiser")
        for name in "ab"
    }


def run_small(
    data: Path, output: Path, api_base: str, *, infill: Infill | None = None, **changes: Any
) -> Table:
    """Runs the experiment quietly; without an ``infill`` of the test's, ``FilledIn`` infills."""
    experiment = small_experiment(**changes)
    with infilled_by(infill or FilledIn()):
        return run_experiment(
            experiment, specs(api_base), data=data, output=output, echo=lambda _: None
        )


if __name__ == "__main__":
    run_small(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], conditions=PLAIN, threads=1)
