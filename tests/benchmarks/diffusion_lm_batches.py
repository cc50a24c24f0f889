"""Rows a second and forward passes of ``diffusion_lm``, one row at a time and in batches.

``dspy.Evaluate`` asks the embedded denoiser for plurals, in as many threads as a batch has rows::

    python tests/benchmarks/diffusion_lm_batches.py --rows 16 --batches 1 8

A forward pass is one call of the model, whatever the number of texts in it. Answers that differ
from those of the first batch size are counted: float32 can differ by rounding, and the command
exits with 1 where an answer does. On a CPU a pass over eight texts takes as long as eight passes,
so that the rows a second say something on a GPU only (``--device cuda``).
"""

import argparse
import sys
import time

import dspy

from dspy_diffusion_infill import TemplateAdapter, diffusion_lm, load_denoiser
from dspy_diffusion_infill.denoisers.transformer import TransformerDenoiser

WORDS = "dog cat house mouse child leaf city box tooth goose knife potato bus sheep man key".split()
SIGNATURE = dspy.Signature("word -> plural", "Write the plural.\n\nWord: {word}\nPlural:")


def measure(
    denoiser: TransformerDenoiser, batch: int, num_rows: int, num_tokens: int
) -> tuple[list[str], int, float]:
    """Answers, forward passes and seconds of one run."""
    passes: list[int] = []
    hook = denoiser.model.register_forward_pre_hook(lambda *_: passes.append(1))
    rows = [dspy.Example(word=WORDS[k % 16]).with_inputs("word") for k in range(num_rows)]
    lm = diffusion_lm(
        denoiser, max_tokens=num_tokens, steps=num_tokens, cache=False, max_batch=batch
    )
    with hook, dspy.context(lm=lm, adapter=TemplateAdapter()):
        started = time.perf_counter()
        found = dspy.Evaluate(
            devset=rows, metric=lambda *_: 1.0, num_threads=batch, display_progress=False
        )(dspy.Predict(SIGNATURE))
        seconds = time.perf_counter() - started
    return [prediction.plural for _, prediction, _ in found.results], len(passes), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=8, help="masks, and steps, of an answer")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    loaded = load_denoiser("smollm2-fs", device=asked.device, dtype="float32")
    denoiser = TransformerDenoiser(loaded.checkpoint, name="embedded", tokens_per_batch=16384)
    first: list[str] = []
    num_different = 0
    print("| batch | rows | forward passes | passes a row | rows a second | other answers |")
    print("|---|---|---|---|---|---|")
    for batch in asked.batches:
        answers, passes, seconds = measure(denoiser, batch, asked.rows, asked.tokens)
        first = first or answers
        different = sum(one != other for one, other in zip(first, answers, strict=True))
        num_different += different
        rate = f"{asked.rows / seconds:.2f}"
        cells = (batch, asked.rows, passes, f"{passes / asked.rows:.1f}", rate, different)
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)
    sys.exit(1 if num_different else 0)


if __name__ == "__main__":
    main()
