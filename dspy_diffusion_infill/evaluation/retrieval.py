"""BM25 over pages that the user gives: in memory, or on disk (``stored_index``)."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dspy_diffusion_infill.errors import MissingDependencyError
from dspy_diffusion_infill.evaluation.rows import INSTALL, Record, read_rows


@dataclass(frozen=True, slots=True)
class Page:
    """A page of the corpus."""

    title: str
    text: str

    def __str__(self) -> str:
        return f"{self.title} | {self.text}"


class PageIndex(Protocol):
    """Finds pages by their words.

    Attributes:
        pages: what is searched, in order.
        fingerprint: hex digits that change with the pages: the corpus in the keys of journals.
        page_chars: characters of a page with its title, on average.
    """

    pages: Sequence[Page]
    fingerprint: str
    page_chars: float

    def search(self, query: str, *, num_pages: int) -> list[Page]:
        """At most ``num_pages`` pages that share a word with the query, the best first."""
        ...


class Bm25Index:
    """A ``PageIndex`` in memory: BM25 in Lucene's form, English stop words left out."""

    def __init__(self, pages: Sequence[Page]) -> None:
        """Indexes the pages, titles included.

        Raises:
            ValueError: there are none.
            MissingDependencyError: ``bm25s`` is not installed.
        """
        if not pages:
            raise ValueError("an index needs at least one page, got none")
        bm25s = load_bm25s()
        self.pages: Sequence[Page] = tuple(pages)
        self.fingerprint = fingerprint_of(hashlib.sha256(b"".join(map(bytes_of, pages))))
        self.page_chars = sum(len(str(page)) for page in pages) / len(pages)
        tokens = bm25s.tokenize(list(map(str, pages)), return_ids=False, show_progress=False)
        self._engine = bm25s.BM25()
        self._engine.index(tokens, show_progress=False)

    @classmethod
    def from_file(cls, path: str | Path) -> "Bm25Index":
        """Reads a ``.jsonl``, ``.json`` or ``.parquet`` file of ``{title, text}``.

        ``text`` is one text or a list of sentences.

        Raises:
            DataError: the file is missing or a row has another form.
        """
        return cls([page_of(row) for row in read_rows(Path(path))])

    def search(self, query: str, *, num_pages: int) -> list[Page]:
        """At most ``num_pages`` pages that share a word with the query, the best first."""
        return best_pages(self._engine, self.pages, query, num_pages)


def best_pages(engine: Any, pages: Sequence[Page], query: str, num_pages: int) -> list[Page]:
    """What ``search`` finds with an engine of bm25s over the pages."""
    tokens = load_bm25s().tokenize([query], return_ids=False, show_progress=False)
    if not tokens[0]:
        return []
    size = min(num_pages, len(pages))
    found, scores = engine.retrieve(tokens, k=size, show_progress=False)
    pairs = zip(found[0], scores[0], strict=True)
    return [pages[int(number)] for number, score in pairs if score > 0]


def load_bm25s() -> Any:
    """The module.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        import bm25s
    except ImportError:
        raise MissingDependencyError(f"searching a corpus needs bm25s: {INSTALL}") from None
    return bm25s


def fingerprint_of(digest: "hashlib._Hash") -> str:
    """The hex digits of a SHA-256 over the bytes of all pages, in order."""
    return digest.hexdigest()[:16]


def bytes_of(page: Page) -> bytes:
    """What a page adds to the fingerprint of its corpus."""
    return repr((page.title, page.text)).encode("utf-8", "surrogatepass")


def page_of(row: Record) -> Page:
    """The page in a row of ``{title, text}``; sentences are joined as they are.

    Raises:
        DataError: the row has another form.
    """
    if isinstance(row.values.get("text"), list):
        sentences = row.items("text")
        if not all(isinstance(sentence, str) for sentence in sentences):
            raise row.error("text", "must hold sentences")
        return Page(row.text("title"), "".join(sentences).strip())
    return Page(row.text("title"), row.text("text", may_be_empty=True).strip())
