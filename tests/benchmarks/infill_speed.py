"""Proposals a second and peak memory of infilling, ours against a plain implementation.

The embedded denoiser ``smollm2-fs`` fills windows of an instruction of 40 tokens, given the 16
training rows of the demo, as ``DiffusionInfill`` has it done: window 8, 8 masks, 8 proposals a
window. Three kinds, each in a process of its own, in turn::

    python tests/benchmarks/infill_speed.py --rounds 3 --json OUT.json

* ``plain`` is what one writes first: one request at a time, each step a pass over the whole text,
  with logits at all positions.
* ``ours`` is ``denoiser.infill``: logits at the masked positions alone, and requests that share a
  text share its pass.
* ``cached`` is the same with ``Sampling(cached=True)``, an approximation: later passes compute the
  masked tokens alone.

All three see the same contexts, draw with the same seeds and take the same number of steps. Two
settings: contexts of 1 to 4 examples (the default of ``DiffusionInfill``), and of all 16. Three
figures do not depend on what else the machine does: the share of the proposals that have the same
text as plain's; how likely the passes find the instructions' own text, in nats a token of a window
that is filled from left to right (lower is better; ours finds what plain does); and memory, the
process's highest resident set, of which the model and the libraries are a part. Ours must stay
within 2 GB.
"""

import argparse
import json
import random
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from statistics import median
from typing import Any

import dspy
import torch

from dspy_diffusion_infill.contexts import Slot, WorkedExample
from dspy_diffusion_infill.denoisers import Infilled, InfillRequest, Sampling, load_denoiser
from dspy_diffusion_infill.denoisers.forward import ForwardPasses
from dspy_diffusion_infill.denoisers.infill_state import InfillState, ResolvedSampling
from dspy_diffusion_infill.denoisers.transformer import TransformerDenoiser
from dspy_diffusion_infill.infiller.infiller import Infiller
from dspy_diffusion_infill.template_adapter import TemplateAdapter
from dspy_diffusion_infill.windows import SlidingWindow, Window

KINDS = ("plain", "ours", "cached")
SETTINGS = {"1-4": (1, 4), "16": (16, 16)}
BUDGET_GB = 2.0
NUM_TOKENS = 40
INSTRUCTIONS = (
    "Read what the customer has written about the product, the service or the place, think about "
    "how the customer feels, and then say whether the text is positive or negative in one single "
    "word, nothing else"
)


class Plain:
    """The same denoiser, filling as one writes it first."""

    def __init__(self, denoiser: TransformerDenoiser) -> None:
        self.denoiser, self.num_passes = denoiser, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.denoiser, name)

    def infill(self, requests: Sequence[InfillRequest], sampling: Sampling) -> list[Infilled]:
        return [self._fill(request, sampling) for request in requests]

    @torch.inference_mode()
    def _fill(self, request: InfillRequest, sampling: Sampling) -> Infilled:
        checkpoint = self.denoiser.checkpoint
        assert checkpoint.shift
        choices = ResolvedSampling.of(
            sampling,
            temperature=checkpoint.temperature,
            algorithm=checkpoint.algorithm,
            block_length=checkpoint.block_length,
            forbidden=self._special(),
        )
        filling = InfillState(
            torch.as_tensor(request.input_ids),
            mask_id=checkpoint.mask_id,
            seed=request.seed,
            choices=choices,
            device=checkpoint.model.device,
        )
        while not filling.done:
            logits = checkpoint.model(input_ids=filling.ids[None], use_cache=False).logits[0]
            filling.advance(logits.float()[filling.candidates() - 1])  # shifted by one
            self.num_passes += 1
        return filling.result()

    def _special(self) -> torch.Tensor:
        tokenizer = self.denoiser.tokenizer
        special = torch.zeros(self.denoiser.model.config.vocab_size, dtype=torch.bool)
        special[[k for k, token in tokenizer.added_tokens_decoder.items() if token.special]] = True
        special[tokenizer.all_special_ids] = True
        return special


def demo_slot() -> Slot:
    """The demo's task: 16 rows, under the instructions of 40 tokens."""
    file = resources.files("dspy_diffusion_infill") / "data/demo/sentiment_train.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    examples = tuple(
        WorkedExample({"text": row["text"]}, {"label": row["label"]}) for row in rows[:16]
    )
    signature = dspy.Signature("text -> label", INSTRUCTIONS)
    return Slot("self", signature, TemplateAdapter(), examples)


def some_windows(denoiser: TransformerDenoiser, num: int) -> list[Window]:
    """``num`` of the windows, evenly spread."""
    encoding = denoiser.encode(INSTRUCTIONS)
    assert len(encoding.input_ids) == NUM_TOKENS, len(encoding.input_ids)
    windows = SlidingWindow(window=8, stride=4, mask=8).windows(INSTRUCTIONS, encoding.offsets, [])
    return [windows[k * len(windows) // num] for k in range(num)]


def nats_per_token(
    denoiser: TransformerDenoiser, infiller: Infiller, slot: Slot, windows: Sequence[Window]
) -> float:
    """Of the windows' own text, each token given those before it: what its pass would draw from."""
    checkpoint, total, num = denoiser.checkpoint, 0.0, 0
    passes = ForwardPasses(checkpoint.model, shift=checkpoint.shift, pad_id=denoiser.mask_id)
    for seed, window in enumerate(windows):
        truth = torch.tensor(denoiser.encode(window.text_of(INSTRUCTIONS)).input_ids)
        context = infiller.masked_context(slot, INSTRUCTIONS, window, random.Random(seed))
        ids = torch.tensor(context.input_ids)
        places = (ids == denoiser.mask_id).nonzero()[:, 0]
        if len(truth) != len(places):
            continue  # its first word reads otherwise without the space before it
        visible, logits = passes.prefill(ids, places, places[:1])
        for k, place in enumerate(places):
            if k:
                ids[places[:k]] = truth[:k]
                asked = [ids], [place[None]]
                cached = infiller.sampling.cached
                [(_, logits)] = (
                    passes.decode_masked(visible, *asked) if cached else passes.at(*asked)
                )
            total -= float(logits[0].log_softmax(-1)[truth[k]])
            num += 1
    return total / num


def child(options: argparse.Namespace) -> dict[str, Any]:
    """One run in this process."""
    warnings.simplefilter("ignore")
    began = time.perf_counter()
    denoiser = load_denoiser("smollm2-fs", device="cpu", dtype=options.dtype)
    loading = time.perf_counter() - began
    filler: Any = Plain(denoiser) if options.child == "plain" else denoiser
    infiller = Infiller(
        filler,
        Sampling(cached=options.child == "cached"),
        SETTINGS[options.setting],
    )
    slot, windows = demo_slot(), some_windows(denoiser, options.windows)
    infiller.propose(slot, INSTRUCTIONS, windows[0], num=1, seed=99)  # warms up
    before, began = infiller.denoiser.num_passes, time.perf_counter()
    fills = [
        proposal.fills[0]
        for seed, window in enumerate(windows)
        for proposal in infiller.propose(
            slot, INSTRUCTIONS, window, num=options.num_proposals, seed=seed
        )
    ]
    seconds = time.perf_counter() - began
    highest = peak_gb()
    nats = None
    if options.child != "plain":
        nats = nats_per_token(denoiser, infiller, slot, some_windows(denoiser, 9) * 2)
    return {
        "proposals_per_second": len(fills) / seconds,
        "passes_per_proposal": (infiller.denoiser.num_passes - before) / len(fills),
        "peak_gb": highest,
        "nats_per_token": nats,
        "seconds_to_load": loading,
        "dtype": str(denoiser.model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "fills": fills,
    }


def peak_gb() -> float:
    """The highest resident set of this process so far; Linux counts kilobytes."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024 / 1e9


def measure(kind: str, setting: str, arguments: list[str]) -> dict[str, Any]:
    """One run in a process of its own."""
    command = [sys.executable, __file__, "--child", kind, "--setting", setting, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"the {kind} run failed:\n{done.stderr}")
    return {"kind": kind, "setting": setting, **json.loads(done.stdout.splitlines()[-1])}


def summary(runs: list[dict[str, Any]], setting: str) -> dict[str, dict[str, float]]:
    """Medians of each kind in a setting, and what they are of plain's in the same round."""
    of = {
        kind: [run for run in runs if (run["kind"], run["setting"]) == (kind, setting)]
        for kind in KINDS
    }
    rows = {}
    for kind in KINDS:
        rounds = list(zip(of[kind], of["plain"], strict=True))
        equal = [
            ours == plain
            for run, base in rounds
            for ours, plain in zip(run["fills"], base["fills"], strict=True)
        ]
        figures = ("proposals_per_second", "passes_per_proposal", "peak_gb")
        rows[kind] = {name: median(run[name] for run in of[kind]) for name in figures}
        rows[kind]["times_plain"] = median(
            run["proposals_per_second"] / base["proposals_per_second"] for run, base in rounds
        )
        rows[kind]["same_as_plain"] = sum(equal) / len(equal)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each kind, in turn")
    parser.add_argument("--windows", type=int, default=3, help="windows of one run")
    parser.add_argument("--num-proposals", type=int, default=8, help="of each window")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--dtype", default="auto", help="as that of load_denoiser")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--setting", choices=SETTINGS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(options)))
        return
    names = ("windows", "num_proposals", "dtype")
    passed = [f"--{name.replace('_', '-')}={getattr(options, name)}" for name in names]
    runs = [
        measure(kind, setting, passed)
        for _ in range(options.rounds)
        for setting in options.settings
        for kind in KINDS
    ]
    summaries = {setting: summary(runs, setting) for setting in options.settings}
    for setting, kinds in summaries.items():
        print(f"{setting} examples in a context")
        for kind, row in kinds.items():
            print(
                f"  {kind:6} {row['proposals_per_second']:7.2f} proposals/s "
                f"{row['times_plain']:6.2f} x plain {row['passes_per_proposal']:6.2f} passes each "
                f"{row['same_as_plain']:6.0%} the same {row['peak_gb']:6.2f} GB"
            )
    if options.json:
        figures = {"runs": runs, "summaries": summaries}
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    highest = max(run["peak_gb"] for run in runs if run["kind"] != "plain")
    verdict = "within" if highest <= BUDGET_GB else "OVER"
    print(f"{highest:.2f} GB at most: {verdict} the budget of {BUDGET_GB:.0f} GB")
    sys.exit(0 if highest <= BUDGET_GB else 1)


if __name__ == "__main__":
    main()
