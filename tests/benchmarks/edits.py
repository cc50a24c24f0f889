"""Protected text and canaries in numbers: how many random edits and compiles break a promise.

``python tests/benchmarks/edits.py --texts 2000 --compiles 500`` takes minutes and calls no model.
"""

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from edit_cases import cases, leaks_of_a_compile, lost_after_edits


def edit_texts(num_texts: int) -> Counter[str]:
    """Edits random instructions again and again; counts texts, edits and violations."""
    counts = Counter[str]()

    @settings(
        max_examples=num_texts, deadline=None, database=None, suppress_health_check=HealthCheck
    )
    @given(cases(), st.integers(0, 2**31))
    def edit(case, seed):
        lost, num_edits = lost_after_edits(case, seed)
        counts.update(texts=1, edits=num_edits, violations=len(lost))

    edit()
    return counts


def compile_with_canaries(num_compiles: int) -> Counter[str]:
    """Compiles with a canary in a row or demo; counts compiles, texts tried, and leaks."""
    counts = Counter[str]()
    for seed in range(num_compiles):
        leaks, num_tried, _ = leaks_of_a_compile(seed)
        counts.update(compiles=1, tried=num_tried, leaks=len(leaks))
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--compiles", type=int, default=500)
    options = parser.parse_args()
    broken = 0
    for run, number in ((edit_texts, options.texts), (compile_with_canaries, options.compiles)):
        started = time.monotonic()
        counts = run(number)
        broken += counts["violations"] + counts["leaks"]
        shown = ", ".join(f"{count:,} {name}" for name, count in counts.items())
        print(f"{shown} in {time.monotonic() - started:.0f} s")
    sys.exit(broken > 0)


if __name__ == "__main__":
    main()
