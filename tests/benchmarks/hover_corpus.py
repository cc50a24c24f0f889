"""Peak memory of ``dspy-infill hover-corpus`` and of a search, on synthetic dumps of two sizes.

Pages have 60 words, about as many as the abstracts of HotpotQA's dump, drawn from 50,000 words by
Zipf's law: both dumps have nearly all of them, so that the difference of the two peaks is what
pages take, and the published 5,233,329 pages would take. Its vocabulary comes on top::

    python tests/benchmarks/hover_corpus.py --pages 20000 60000
"""

import argparse
import bz2
import io
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np

from dspy_diffusion_infill.evaluation.hover_dump import PUBLISHED_PAGES

WORDS_A_PAGE, WORDS_A_SENTENCE, VOCABULARY, PAGES_A_FILE = 60, 20, 50_000, 1000
BUILD = """
import sys
from pathlib import Path
from dspy_diffusion_infill.cli.corpus_command import hover_corpus_command
hover_corpus_command(Path(sys.argv[1]), Path(sys.argv[2]))
"""
SEARCH = """
import sys
from dspy_diffusion_infill.evaluation.stored_index import open_index
assert open_index(sys.argv[1]).search("w1 w7 w99", num_pages=7)
"""


def write_dump(path: Path, num_pages: int) -> None:
    """A dump in the published form."""
    rng = np.random.default_rng(0)
    with tarfile.open(path, "w:bz2", compresslevel=1) as archive:
        for first in range(0, num_pages, PAGES_A_FILE):
            numbers = range(first, min(first + PAGES_A_FILE, num_pages))
            content = bz2.compress("".join(map(_line, numbers, [rng] * len(numbers))).encode(), 1)
            info = tarfile.TarInfo(f"enwiki/AA/wiki_{first // PAGES_A_FILE:05}.bz2")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def _line(number: int, rng: np.random.Generator) -> str:
    words = [f"w{int(VOCABULARY**share)}" for share in rng.random(WORDS_A_PAGE)]
    starts = range(0, WORDS_A_PAGE, WORDS_A_SENTENCE)
    text = [" ".join(words[k : k + WORDS_A_SENTENCE]) + ". " for k in starts]
    return json.dumps({"id": number, "title": f"Page {number}", "text": text}) + "\n"


def peak(script: str, *arguments: str) -> int:
    """The most bytes that a fresh process has had resident."""
    shown = "import resource\nprint(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    command = [sys.executable, "-c", f"{script}\n{shown}", *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return int(done.stdout.split()[-1]) * 1024  # Linux counts kB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pages", type=int, nargs=2, default=[20000, 60000])
    sizes = parser.parse_args().pages
    found: dict[str, list[int]] = {"build": [], "search": [], "disk": []}
    for num_pages in sizes:
        with tempfile.TemporaryDirectory() as scratch:
            dump, out = Path(scratch, "dump.tar.bz2"), Path(scratch, "index")
            write_dump(dump, num_pages)
            found["build"].append(peak(BUILD, str(dump), str(out)))
            found["search"].append(peak(SEARCH, str(out)))
            found["disk"].append(sum(file.stat().st_size for file in out.iterdir()))
    for name, (small, large) in found.items():
        each = (large - small) / (sizes[1] - sizes[0])
        whole = small + each * (PUBLISHED_PAGES - sizes[0])
        print(
            f"{name:8} {small / 1e6:6.0f} MB, {large / 1e6:6.0f} MB: {each:6.0f} bytes a page, "
            f"{whole / 1e9:.1f} GB for {PUBLISHED_PAGES:,} pages",
            flush=True,
        )


if __name__ == "__main__":
    main()
