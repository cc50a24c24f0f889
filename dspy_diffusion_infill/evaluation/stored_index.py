"""A BM25 index in a folder: built from a stream of pages, searched through memory maps.

Pages and their token ids go to disk as they come. In memory, while an index is built, are bm25s's
arrays, 2.4 kB for a page of 60 words (``tests/benchmarks/hover_corpus.py``), and the vocabulary.
"""

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, overload

import numpy as np

from dspy_diffusion_infill.errors import DataError
from dspy_diffusion_infill.evaluation.retrieval import (
    Bm25Index,
    Page,
    PageIndex,
    best_pages,
    bytes_of,
    fingerprint_of,
    load_bm25s,
)

_ABOUT, _PAGES, _ENDS = "corpus.json", "pages.jsonl", "page_ends.npy"


def open_index(path: str | Path) -> PageIndex:
    """The index in a folder that ``write_index`` made, or one in memory over a file of pages.

    Raises:
        DataError: the folder holds no index, or the file has another form.
        MissingDependencyError: ``bm25s`` is not installed.
    """
    return StoredIndex(Path(path)) if Path(path).is_dir() else Bm25Index.from_file(path)


class StoredIndex:
    """A ``PageIndex`` on disk; finds what ``Bm25Index`` finds over the same pages."""

    def __init__(self, folder: Path) -> None:
        """Opens the folder; the vocabulary is read, the rest stays on disk.

        Raises:
            DataError: it holds no index.
            MissingDependencyError: ``bm25s`` is not installed.
        """
        try:
            about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
            self.fingerprint = str(about["fingerprint"])
            self.page_chars = float(about["page_chars"])
            self.pages: Sequence[Page] = StoredPages(folder)
            self._engine = load_bm25s().BM25.load(folder, mmap=True, show_progress=False)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{folder} holds no index of pages ({error}): make one with dspy-infill "
                "hover-corpus"
            ) from error

    def search(self, query: str, *, num_pages: int) -> list[Page]:
        """At most ``num_pages`` pages that share a word with the query, the best first."""
        return best_pages(self._engine, self.pages, query, num_pages)


class StoredPages(Sequence[Page]):
    """The pages of a stored index, each read when it is asked for; safe in several threads."""

    def __init__(self, folder: Path) -> None:
        self._content = np.memmap(folder / _PAGES, dtype=np.uint8, mode="r")
        self._ends = np.load(folder / _ENDS, mmap_mode="r")

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, number: int) -> Page: ...
    @overload
    def __getitem__(self, number: slice) -> list[Page]: ...
    def __getitem__(self, number: int | slice) -> Page | list[Page]:
        if isinstance(number, slice):
            return [self[k] for k in range(*number.indices(len(self)))]
        number = range(len(self))[number]
        start = int(self._ends[number - 1]) if number else 0
        return Page(*json.loads(self._content[start : int(self._ends[number])].tobytes()))


def write_index(pages: Iterable[Page], folder: Path) -> int:
    """Indexes pages in a new folder and returns how many there are.

    The folder has its name only once all of it is written.

    Raises:
        DataError: there are no pages, or no word in them; or as ``pages`` raises.
        MissingDependencyError: ``bm25s`` is not installed.
        ValueError: there is a file or folder of that name.
    """
    bm25s = load_bm25s()
    if folder.exists():
        raise ValueError(f"the index must be a new folder, got {folder}, which exists")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        built = Path(scratch, "index")
        built.mkdir()
        # 1. Stream: pages and their token ids go to disk.
        stored = _store(pages, bm25s.tokenization.Tokenizer(), built, Path(scratch, "tokens"))
        # 2. Index the ids.
        engine = bm25s.BM25()
        engine.index(stored, show_progress=False)
        engine.save(built, show_progress=False)
        # 3. Give the folder its name.
        built.rename(folder)
    return len(stored.ids)


@dataclass(frozen=True, slots=True)
class _Stored:
    """Token ids on disk with their vocabulary: what bm25s takes as a tokenized corpus."""

    ids: "_TokenIds"
    vocab: dict[str, int]


class _TokenIds:
    """The token ids of each page, read from one file of 32-bit numbers."""

    def __init__(self, file: Path, ends: Sequence[int]) -> None:
        self._ids, self._ends = np.asarray(np.memmap(file, dtype=np.uint32, mode="r")), ends

    def __len__(self) -> int:
        return len(self._ends)

    def __iter__(self) -> Iterator[list[int]]:
        for start, end in pairwise(chain((0,), self._ends)):
            yield self._ids[start:end].tolist()


def _store(pages: Iterable[Page], tokenizer: Any, folder: Path, ids: Path) -> _Stored:
    """Writes pages into the folder and their token ids into a file, one page at a time."""
    digest, num_chars = hashlib.sha256(), 0
    page_ends, token_ends = array("q"), array("q")
    with (folder / _PAGES).open("wb") as content, ids.open("wb") as tokens:
        for page in pages:
            digest.update(bytes_of(page))
            num_chars += len(str(page))
            content.write(json.dumps([page.title, page.text]).encode() + b"\n")
            page_ends.append(content.tell())
            (found,) = tokenizer.streaming_tokenize([str(page)], allow_empty=False)
            array("I", found).tofile(tokens)
            token_ends.append((token_ends[-1] if token_ends else 0) + len(found))
    if not tokenizer.word_to_id:
        raise DataError("an index needs a page with a word in it, got none")
    np.save(folder / _ENDS, np.array(page_ends))
    about = {"fingerprint": fingerprint_of(digest), "page_chars": num_chars / len(page_ends)}
    (folder / _ABOUT).write_text(json.dumps(about), encoding="utf-8")
    return _Stored(_TokenIds(ids, token_ends), tokenizer.word_to_id)
