"""What helps when SmolLM2 has few tokens to become a masked diffusion LM in.

Each variant changes one thing of the last stage of the recipe ``smollm2-adapt-fs``, and trains the
causal LM with that stage alone, until it has seen so many tokens. Then the infill probe measures it
on the first rows of a file of held-out windows, as ``dspy-infill probe`` does::

    python tests/benchmarks/adapt_ablations.py --data FOLDER --probe PROBE.jsonl --json OUT.json

FOLDER holds the recipe's files: ``instruct_text.jsonl``, ``worked_tasks.jsonl`` and
``feedback.jsonl``. Variants whose figures are in OUT.json are not run again, and one that was
killed goes on from its last checkpoint. All variants of one OUT.json have the same tokens, rows,
seed and ``--set``. The table is printed as Markdown, and ``--table`` prints it without running.
"""

import argparse
import json
import re
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dspy_diffusion_infill.denoisers import load_denoiser
from dspy_diffusion_infill.training.mixture import make_pools, read_sources
from dspy_diffusion_infill.training.model import load_trainable
from dspy_diffusion_infill.training.options import Recipe
from dspy_diffusion_infill.training.probe import probe, read_probe_rows
from dspy_diffusion_infill.training.recipe import load_recipe
from dspy_diffusion_infill.training.run import build_trainer, plan_stage, train

FILES = (*["instruct_text.jsonl"] * 3, *["worked_tasks.jsonl"] * 2, "feedback.jsonl")
WITH_EXAMPLES = (1, 3)  # the sources whose worked examples are plain text
CHAT = (2, 4)  # those in DSPy's chat form


@dataclass(frozen=True)
class Variant:
    """Overrides of the recipe, and the share of the steps over which later tokens come in sight."""

    overrides: tuple[str, ...] = ()
    annealing: float = 0.0


def of_stage(*settings: str) -> Variant:
    return Variant(tuple(f"stages.1.{setting}" for setting in settings))


def of_sources(numbers: tuple[int, ...], setting: str) -> Variant:
    return Variant(tuple(f"data.sources.{number}.{setting}" for number in numbers))


VARIANTS = {
    "the recipe": Variant(),
    "no windows": of_stage("masking.full_sequence=1.0", "masking.window=0.0"),
    "windows in half": of_stage("masking.full_sequence=0.5", "masking.window=0.5"),
    "windows only": of_stage("masking.full_sequence=0.0", "masking.window=1.0"),
    "windows of 4 to 16": of_stage(
        "masking.window_lengths=[4, 16]", "masking.tokens_per_window=40"
    ),
    "windows of 8": of_stage("masking.window_lengths=[8, 8]", "masking.tokens_per_window=40"),
    "windows in the instructions only": of_stage("masking.tokens_per_window=100000"),
    "annealed over a fifth": Variant(annealing=0.2),
    "annealed over half": Variant(annealing=0.5),
    "learning rate 2.5e-4": of_stage("optimizer.learning_rate=2.5e-4"),
    "learning rate 1e-3": of_stage("optimizer.learning_rate=1e-3"),
    "learning rate 2e-3": of_stage("optimizer.learning_rate=2e-3"),
    "rank 8": Variant(("model.lora={rank: 8, alpha: 16}",)),
    "rank 64": Variant(("model.lora={rank: 64, alpha: 128}",)),
    "no worked examples": of_sources(WITH_EXAMPLES + CHAT, "max_examples=1"),
    "worked examples first": of_sources(WITH_EXAMPLES, "examples=before"),
}
COLUMNS = {
    "right, one at a time": "accuracy_sequential",
    "all at once, nats": "nll_parallel",
    "15 % masked, nats": "nll_random_0.15",
    "50 % masked, nats": "nll_random_0.5",
}


def recipe_of(variant: Variant, options: argparse.Namespace) -> Recipe:
    """The recipe's last stage alone, from the causal LM; its number of steps is still open."""
    paths = [f"data.sources.{k}.path={options.data / name}" for k, name in enumerate(FILES)]
    given = [*paths, f"seed={options.seed}", *options.overrides]
    recipe = load_recipe("smollm2-adapt-fs", [*given, *variant.overrides])
    return replace(recipe, stages=recipe.stages[-1:])


def with_steps(recipe: Recipe, num_steps: int, annealing: float) -> Recipe:
    [stage] = recipe.stages
    assert recipe.model.adapt is not None
    adapt = replace(recipe.model.adapt, annealing_steps=round(annealing * num_steps))
    return replace(
        recipe,
        model=replace(recipe.model, adapt=adapt),
        stages=(replace(stage, steps=num_steps),),
    )


def steps_for(recipe: Recipe, folder: Path, num_tokens: int) -> tuple[int, int]:
    """(steps, tokens) of the fewest steps that see at least ``num_tokens``, padding not counted."""
    model = load_trainable(recipe, folder)
    pools, _ = make_pools(read_sources(recipe.data), recipe.data, model.denoiser())
    plan = plan_stage(recipe, 0, pools, folder, num_processes=1)
    data: Any = build_trainer(recipe, plan, pools, model, print).train_dataset
    sequences = plan.stage.optimizer.batch_size * plan.stage.optimizer.accumulation
    steps = seen = 0
    while seen < num_tokens:
        places = range(steps * sequences, (steps + 1) * sequences)
        seen += sum(len(data.row(place).input_ids) for place in places)
        steps += 1
    return steps, seen


def run_variant(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Trains and probes one variant; goes on where it was killed."""
    variant, began = VARIANTS[name], time.monotonic()
    folder = options.output / re.sub(r"\W+", "-", name)
    recipe = recipe_of(variant, options)
    steps, tokens = steps_for(recipe, folder, options.tokens)
    train(with_steps(recipe, steps, variant.annealing), output=folder, resume=True, show=log)
    rows = read_probe_rows(options.probe, limit=options.rows)
    figures = probe(load_denoiser(str(folder)), rows).figures()
    seconds = round(time.monotonic() - began)
    return {"steps": steps, "tokens": tokens, "seconds": seconds, **figures}


def log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def read_results(options: argparse.Namespace) -> dict[str, Any]:
    """What OUT.json holds already; its settings must be these."""
    settings = {name: getattr(options, name) for name in ("tokens", "rows", "seed", "overrides")}
    settings["probe"] = options.probe.name
    if not options.json.is_file():
        return {"settings": settings, "variants": {}}
    results = json.loads(options.json.read_text(encoding="utf-8"))
    if results["settings"] != settings:
        sys.exit(
            f"{options.json} is of {results['settings']}, not of {settings}: name another --json"
        )
    return results


def markdown(results: dict[str, Any]) -> str:
    """A line for each variant that has run, in the order of ``VARIANTS``."""
    header = ["variant", "steps", "tokens", "one at a time, nats", *COLUMNS]
    lines = [header, ["---"] * len(header)]
    for name in VARIANTS:
        if found := results["variants"].get(name):
            nll = f"{found['nll_sequential']:.3f} ± {found['nll_sequential_standard_error']:.3f}"
            rest = [f"{found[key]:.3f}" for key in COLUMNS.values()]
            lines.append([name, str(found["steps"]), f"{found['tokens']:,}", nll, *rest])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--probe", type=Path, required=True, metavar="FILE")
    parser.add_argument("--json", type=Path, required=True, metavar="OUT")
    parser.add_argument("--output", type=Path, default=Path("runs/ablations"), metavar="FOLDER")
    parser.add_argument("--tokens", type=int, default=300_000, help="that a variant is trained on")
    parser.add_argument("--rows", type=int, default=100, help="of the probe")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--variants", help="names, with commas; all where not given")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
        help="another value for a key of the recipe, in every variant",
    )  # fmt: skip
    parser.add_argument("--table", action="store_true", help="print what OUT holds, run nothing")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Runs what is missing, and prints the table."""
    options = parse(arguments)
    names = options.variants.split(",") if options.variants else list(VARIANTS)
    if unknown := set(names) - set(VARIANTS):
        sys.exit(f"no variant {sorted(unknown)[0]!r}; there are: {', '.join(VARIANTS)}")
    results = read_results(options)
    for name in [] if options.table else names:
        if name not in results["variants"]:
            log(f"--- {name}")
            results["variants"][name] = run_variant(name, options)
            whole = options.json.with_suffix(".partial")
            whole.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
            whole.replace(options.json)  # a kill leaves the old file or the new one
    print(markdown(results))


if __name__ == "__main__":
    main()
