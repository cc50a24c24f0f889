"""How large the report of many trials is, and how long a browser takes to draw it.

    PYTHONPATH=tests:. python tests/benchmarks/report_size.py [NUM_TRIALS]

`make browser` runs it; it needs Debian's chromium. The time is from the start of the navigation to
the first frame after the scripts have run, the median of five loads. It exits with 1 where the page
has 1 MB or more, or takes 1 s or longer to draw.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import sync_playwright
from synthetic_results import synthetic

from dspy_diffusion_infill.report.page import page

CHROMIUM = "/usr/bin/chromium"
DRAWN = """() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(
    () => done(performance.now()))))"""


MOST_BYTES = 1_000_000
MOST_SECONDS = 1.0


def main(num_trials: int) -> int:
    """Prints size and time; returns the exit status, 1 where one of them is too large."""
    results = synthetic(num_trials)
    page(results)  # the first call compiles the template
    started = time.perf_counter()
    text = page(results)
    rendering = time.perf_counter() - started
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        file = Path(folder) / "report.html"
        file.write_text(text, encoding="utf-8")
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab, times = browser.new_page(), list[float]()
        for _ in range(5):
            tab.goto(file.as_uri())
            times.append(tab.evaluate(DRAWN) / 1000)
        browser.close()
    size, drawing = len(text.encode()), statistics.median(times)
    print(
        f"{num_trials} trials: {size / 1e6:.3f} MB, written in {rendering:.2f} s, "
        f"drawn in {drawing:.2f} s (of {min(times):.2f} to {max(times):.2f})"
    )
    return exit_status(size, drawing)


def exit_status(size: int, drawing: float) -> int:
    """1 where the page has too many bytes or takes too many seconds to draw, else 0."""
    return int(size >= MOST_BYTES or drawing >= MOST_SECONDS)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000))
