"""What parallel unmasking changes: passes, seconds and quality with each ``Sampling(threshold=…)``.

Windows of true instructions are hidden, of one half of the instruction-induction tasks or of the
demo's::

    python tests/benchmarks/threshold_effect.py --data FOLDER --half choose

Agreement, NLL and accuracy are those of ``dspy-infill calibrate``, in exact passes at temperature
0. Passes and CPU seconds are those of a proposal as a search draws it: at the denoiser's own
temperature, eight proposals a window, with each cache; thresholds take turns window by window.
With a threshold all masks of a window are one block: the embedded denoiser's own blocks are of one
token.
"""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from induction import HALVES, halves_of

from dspy_diffusion_infill.contexts import Slot
from dspy_diffusion_infill.denoisers.calibration import THRESHOLDS, compare_thresholds, parallel
from dspy_diffusion_infill.denoisers.checkpoints.loading import load
from dspy_diffusion_infill.denoisers.protocol import Cache, InfillRequest, Sampling, ScoreRequest
from dspy_diffusion_infill.denoisers.transformer import TransformerDenoiser
from dspy_diffusion_infill.infiller.hidden_windows import bundled_task, hidden_windows, read_task

NUM_PROPOSALS = 8
Key = tuple[Cache, float | None]


def slots_of(file: Path, num: int) -> Iterator[Slot]:
    """A task under each of its first so many human instructions."""
    slot = read_task(file)
    for text in json.loads(file.read_text(encoding="utf-8"))["human_instructions"][:num]:
        yield replace(slot, signature=slot.signature.with_instructions(text))


def timed(
    denoiser: TransformerDenoiser, requests: Sequence[ScoreRequest], keys: Sequence[Key]
) -> dict[Key, tuple[float, float]]:
    """Passes and CPU seconds of a proposal with each cache and threshold."""
    passes, seconds = defaultdict[Key, list[float]](list), defaultdict[Key, float](float)
    for number, request in enumerate(requests):
        texts = [
            InfillRequest(request.input_ids, NUM_PROPOSALS * number + k, request.context)
            for k in range(NUM_PROPOSALS)
        ]
        for cache, threshold in keys:
            began = time.process_time()
            filled = denoiser.infill(texts, parallel([request], Sampling(cache=cache), threshold))
            seconds[cache, threshold] += time.process_time() - began
            passes[cache, threshold] += [one.num_passes for one in filled]
    return {key: (fmean(passes[key]), seconds[key] / len(passes[key])) for key in keys}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The effect of Sampling(threshold=…).")
    parser.add_argument("--model", default="smollm2-fs")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--data", type=Path, nargs="*", default=[], help="folders of tasks")
    parser.add_argument("--half", choices=HALVES, default="choose")
    parser.add_argument("--instructions", type=int, default=8, help="by humans, of each task")
    parser.add_argument("--windows", type=int, default=5, help="of each of them, at most")
    parser.add_argument("--timed", type=int, default=6, help="of them all, with proposals")
    parser.add_argument("--caches", nargs="*", default=["off", "window", "context"])
    return parser.parse_args()


def main() -> None:
    options = parse()
    denoiser = load(options.model, device="cpu", dtype=options.dtype)
    halves = halves_of(options.data)
    files = [path for path, half in halves.items() if options.half in ("all", half)]
    slots = [slot for file in files for slot in slots_of(file, options.instructions)]
    slots = slots or [bundled_task()]
    requests = hidden_windows(denoiser, slots, num_windows=options.windows, seed=0)
    lengths = [len(request.input_ids) for request in requests]
    tokens = sum(len(request.targets) for request in requests)
    print(
        f"{denoiser.name}: {len(requests)} windows of {len(slots)} instructions, {tokens} tokens, "
        f"texts of {min(lengths)} to {max(lengths)} tokens\n",
        flush=True,
    )
    step = max(1, len(requests) // options.timed)
    keys: list[Key] = [(cache, one) for cache in options.caches for one in THRESHOLDS]
    times = timed(denoiser, requests[::step][: options.timed], keys)
    costs = [name for cache in options.caches for name in (f"passes, {cache}", f"s, {cache}")]
    columns = ["threshold", "agreement", "NLL", "accuracy", *costs]
    print(f"| {' | '.join(columns)} |\n" + "|---" * len(columns) + "|", flush=True)
    for one in compare_thresholds(denoiser, requests, THRESHOLDS):
        own = [times[cache, one.threshold] for cache in options.caches]
        cells = [f"{passes:.2f} | {seconds:.3f}" for passes, seconds in own]
        name = "off" if one.threshold is None else f"{one.threshold:g}"
        print(
            f"| {name} | {one.agreement:.1%} | {one.nll:.3f} | {one.accuracy:.1%} | "
            f"{' | '.join(cells)} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
