"""Scores what ``likelihood_speed.py`` sends, with the package that stands first on the path.

A line of JSON in is ``[[messages, response], …]``, one out ``{"cpu", "wall", "scores"}``; the first
line out says that the weights are loaded. The package may be of an older checkout, whose modules
had other names.
"""

import importlib
import json
import sys
import time
from typing import Any

CAUSAL = ("dspy_diffusion_infill.scorers.causal", "dspy_diffusion_infill.denoisers.causal_scorer")
DENOISER = ("dspy_diffusion_infill.scorers.denoiser", "dspy_diffusion_infill.infiller.scoring")
PAIRS = ("dspy_diffusion_infill.scorers.protocol", "dspy_diffusion_infill.denoisers.pairs")


def first_of(modules: tuple[str, ...]) -> Any:
    """The module that this version of the package has."""
    for name in modules:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not error.name.startswith("dspy_diffusion_infill"):
                raise
    raise SystemExit(f"this checkout has none of {', '.join(modules)}")


def load(kind: str, dtype: str, folder: str) -> Any:
    """The scorer; of the kind ``denoiser`` that of the folder's weights."""
    if kind == "causal":
        return first_of(CAUSAL).embedded_scorer(dtype=dtype)
    denoisers = importlib.import_module("dspy_diffusion_infill.denoisers")
    return first_of(DENOISER).DenoiserScorer(
        denoisers.load_denoiser(folder, device="cpu", dtype=dtype)
    )


def main() -> None:
    kind, dtype, folder = sys.argv[1:]
    scorer, pair = load(kind, dtype, folder), first_of(PAIRS).ScoredPair
    print(json.dumps(importlib.import_module("dspy_diffusion_infill").__file__), flush=True)
    for line in sys.stdin:
        pairs = [pair(tuple(messages), response) for messages, response in json.loads(line)]
        cpu, wall = time.process_time(), time.perf_counter()
        scores = scorer.log_likelihoods(pairs)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        print(json.dumps({"cpu": cpu, "wall": wall, "scores": scores}), flush=True)


if __name__ == "__main__":
    main()
