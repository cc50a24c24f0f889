"""Log-likelihoods a second: the responses of the demo's 16 rows under 8 instructions.

``CausalScorer`` scores them one at a time and all at once, in turn, in one process::

    python tests/benchmarks/likelihood_speed.py --rounds 3
"""

import argparse
import time
from statistics import median

from dspy_diffusion_infill.contexts import render_messages
from dspy_diffusion_infill.infiller.hidden_windows import BUNDLED_INSTRUCTIONS, bundled_task
from dspy_diffusion_infill.scorers.causal import CausalScorer, embedded_scorer
from dspy_diffusion_infill.scorers.protocol import ScoredPair

ENDINGS = ("now", "here", "please", "today", "only", "first", "again", "then")


def all_pairs() -> list[ScoredPair]:
    slot = bundled_task()
    prompts = [
        render_messages(slot, f"{BUNDLED_INSTRUCTIONS} {ending}", (example,))
        for ending in ENDINGS
        for example in slot.examples
    ]
    return [ScoredPair(tuple(prompt), response["content"]) for *prompt, response in prompts]


def rate(scorer: CausalScorer, batches: list[list[ScoredPair]]) -> float:
    began = time.perf_counter()
    for batch in batches:
        scorer.log_likelihoods(batch)
    return sum(map(len, batches)) / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    scorer, pairs = embedded_scorer(), all_pairs()
    scorer.log_likelihoods(pairs[:1])  # warms up
    rounds = [
        (rate(scorer, [[pair] for pair in pairs]), rate(scorer, [pairs]))
        for _ in range(options.rounds)
    ]
    alone, together = (median(rates) for rates in zip(*rounds, strict=True))
    print(f"{alone:.1f} likelihoods/s one at a time, {together:.1f} together")


if __name__ == "__main__":
    main()
