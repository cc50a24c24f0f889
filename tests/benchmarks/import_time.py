"""What ``import dspy_diffusion_infill`` adds to ``import dspy``, in seconds.

Each import runs in a fresh process, the two in turn; the smallest of several runs counts, since
whatever else the machine does only adds to it. The budget is 0.3 s::

    python tests/benchmarks/import_time.py --runs 10
"""

import argparse
import subprocess
import sys

BUDGET_SECONDS = 0.3
SCRIPT = """
import dspy, time
started = time.perf_counter()
import dspy_diffusion_infill
print(time.perf_counter() - started)
"""


def added_seconds() -> float:
    """Seconds of one import in a fresh process that has imported DSPy before."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10)
    times = [added_seconds() for _ in range(parser.parse_args().runs)]
    verdict = "within" if min(times) <= BUDGET_SECONDS else "OVER"
    best = f"{min(times):.3f} s at best of {len(times)} runs"
    print(f"{best}: {verdict} the budget of {BUDGET_SECONDS} s")
    sys.exit(0 if min(times) <= BUDGET_SECONDS else 1)


if __name__ == "__main__":
    main()
