"""Kills compiles at random moments, resumes them, and counts what was lost and paid for twice.

``python tests/benchmarks/kills.py --kills 50`` takes some minutes and calls a loopback LM alone.
"""

import argparse
import os
import random
import sys
import tempfile
import time
from pathlib import Path

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # asks no network
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from killed import SEARCHES, kill_once, uninterrupted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started, rng = time.monotonic(), random.Random(options.seed)
    wholes = {search: uninterrupted(search) for search in SEARCHES}
    for search, (result, num_calls) in wholes.items():
        print(f"{search}: {num_calls} calls, {len(result['trials'])} trials, {result['scores']}")
    kills = []
    for number in range(options.kills):
        search = list(SEARCHES)[number % len(SEARCHES)]
        with tempfile.TemporaryDirectory() as folder:
            kills.append(kill_once(Path(folder), search, rng, wholes[search]))
        print(search, kills[-1], "" if kills[-1].is_good else "BROKEN", flush=True)
    good = sum(kill.is_good for kill in kills)
    print(
        f"{good} of {len(kills)} end as the uninterrupted run, with no call made twice but in runs "
        f"under way (at most {max(kill.again for kill in kills)} calls); "
        f"{sum(kill.was_killed for kill in kills)} were killed before their end, after "
        f"{min(kill.before for kill in kills)} to {max(kill.before for kill in kills)} calls; "
        f"{time.monotonic() - started:.0f} s"
    )
    sys.exit(good < len(kills))


if __name__ == "__main__":
    main()
