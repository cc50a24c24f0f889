"""How long a whole ``compile`` takes, beside an older checkout of this project.

    git worktree add --detach OLD 3f0530f
    python tests/benchmarks/compile_speed.py --against OLD --data FOLDER... --tasks NAME,NAME

For the demo's reviews and each task: 16 rows, the embedded pair, a budget of metric calls, seed 0,
one thread. Each search runs in a process of its own (``compile_once.py``), one after the other;
models are loaded before the clock starts. The older default went from left to right and ended when
nothing more was let through; today's default spends its budget. So today's search from left to
right stands beside both. The older checkout has the adapter that it shipped, whose proposals are
other ones.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[2]
SEARCHES: dict[str, dict[str, Any]] = {
    "from left to right, exact": {"order": "left_to_right"},
    'from left to right, "window"': {"order": "left_to_right", "cache": "window"},
    'default, "window"': {"cache": "window"},
    'default, "context"': {"cache": "context"},
}
OLDER = "older default"


def run(checkout: Path, task: Any, options: dict[str, Any], calls: int) -> dict[str, Any]:
    """What one search took, in a process with the code of a checkout."""
    given = {
        "rows": [dict(row) for row in task.rows(0)],
        "instructions": task.instructions[0],
        "options": options,
        "calls": calls,
    }
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    environment["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # asks no network
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("compile_once.py"))],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        env=environment,
        cwd=checkout,
    )
    if done.returncode:
        raise SystemExit(f"the search of {checkout} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", type=Path, required=True, help="the older checkout")
    parser.add_argument("--data", type=Path, nargs="*", default=[], help="folders of tasks")
    parser.add_argument("--tasks", help="names, with commas between them; all by default")
    parser.add_argument("--calls", type=int, default=400)
    parser.add_argument("--searches", nargs="*", choices=SEARCHES, default=list(SEARCHES))
    parser.add_argument("--json", type=Path, required=True, help="a line is added for each search")
    options = parser.parse_args()

    from induction import demo_task, load_tasks

    tasks = [demo_task(), *(load_tasks(options.data, asked=options.tasks) if options.data else ())]
    print("| Task | Search | Seconds | CPU seconds | Runs | Passes | Score |")
    print("|---|---|---|---|---|---|---|")
    for task in tasks:
        arms = [(OLDER, options.against.resolve(), {})]
        arms += [(name, HERE, dict(SEARCHES[name])) for name in options.searches]
        for name, checkout, given in arms:
            one = run(checkout, task, given, options.calls)
            with options.json.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"task": task.name, "search": name, **one}) + "\n")
            print(
                f"| {task.name} | {name} | {one['seconds']:.1f} | {one['cpu']:.1f} "
                f"| {one['calls']} | {one['passes']} | {one['before']:.2f} → {one['after']:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
