"""BM25 over a file of pages that the user gives."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dspy_diffusion_infill.errors import MissingDependencyError
from dspy_diffusion_infill.evaluation.rows import INSTALL, Record, read_rows


@dataclass(frozen=True, slots=True)
class Page:
    """A page of the corpus."""

    title: str
    text: str

    def __str__(self) -> str:
        return f"{self.title} | {self.text}"


class Bm25Index:
    """Finds pages by their words (BM25 in Lucene's form, English stop words left out).

    Attributes:
        pages: what is searched, in order.
        fingerprint: hex digits that change with the pages: the corpus in the keys of journals.
    """

    def __init__(self, pages: Sequence[Page]) -> None:
        """Indexes the pages, titles included.

        Raises:
            ValueError: there are none.
            MissingDependencyError: ``bm25s`` is not installed.
        """
        if not pages:
            raise ValueError("an index needs at least one page, got none")
        try:
            import bm25s
        except ImportError:
            raise MissingDependencyError(f"searching a corpus needs bm25s: {INSTALL}") from None
        self.pages = tuple(pages)
        self.fingerprint = _fingerprint(self.pages)
        self._tokenize = bm25s.tokenize
        self._index = bm25s.BM25()
        self._index.index(self._tokens([str(page) for page in pages]), show_progress=False)

    @classmethod
    def from_file(cls, path: str | Path) -> "Bm25Index":
        """Reads a ``.jsonl``, ``.json`` or ``.parquet`` file of ``{title, text}``.

        ``text`` is one text or a list of sentences.

        Raises:
            DataError: the file is missing or a row has another form.
        """
        return cls([_page(row) for row in read_rows(Path(path))])

    def search(self, query: str, *, num_pages: int) -> list[Page]:
        """At most ``num_pages`` pages that share a word with the query, the best first."""
        tokens = self._tokens([query])
        if not tokens[0]:
            return []
        size = min(num_pages, len(self.pages))
        found, scores = self._index.retrieve(tokens, k=size, show_progress=False)
        pairs = zip(found[0], scores[0], strict=True)
        return [self.pages[int(number)] for number, score in pairs if score > 0]

    def _tokens(self, texts: list[str]) -> list[list[str]]:
        tokens = self._tokenize(texts, return_ids=False, show_progress=False)
        assert isinstance(tokens, list)
        return tokens


def _fingerprint(pages: Sequence[Page]) -> str:
    digest = hashlib.sha256()
    for page in pages:
        digest.update(repr((page.title, page.text)).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:16]


def _page(row: Record) -> Page:
    if isinstance(row.values.get("text"), list):
        sentences = row.items("text")
        if not all(isinstance(sentence, str) for sentence in sentences):
            raise row.error("text", "must hold sentences")
        return Page(row.text("title"), "".join(sentences).strip())
    return Page(row.text("title"), row.text("text", may_be_empty=True).strip())
