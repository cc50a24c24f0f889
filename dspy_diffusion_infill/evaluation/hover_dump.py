"""HoVer's pages: the Wikipedia abstracts that HotpotQA publishes, read as a stream.

``enwiki-20171001-pages-meta-current-withlinks-abstracts.tar.bz2`` (1.6 GB, hotpotqa.github.io/
wiki-readme.html) holds bzip2 files of JSON lines: ``id``, ``url``, ``title``, ``text`` (a list of
sentences) and, not used here, links and offsets.
"""

import bz2
import tarfile
from collections.abc import Iterator
from pathlib import Path

from dspy_diffusion_infill.errors import DataError
from dspy_diffusion_infill.evaluation.retrieval import Page, page_of
from dspy_diffusion_infill.evaluation.rows import Record
from dspy_diffusion_infill.jsonl import lines_in, objects_in

PUBLISHED_PAGES = 5_233_329
"""Pages of the published dump."""


def dump_pages(dump: str | Path) -> Iterator[Page]:
    """The pages of the dump, in its order; nothing is unpacked to disk, one line is in memory.

    Raises:
        DataError: the dump is missing, no tar file in bzip2, damaged or cut off, has no pages, or a
            line has another form; the message names the dump, the file in it and the line.
    """
    place, num_pages = str(dump), 0
    try:
        # bz2 notices where a dump is cut off; tarfile alone would not between two files.
        with bz2.open(dump) as plain, tarfile.open(fileobj=plain, mode="r|") as archive:
            for member in archive:
                packed = archive.extractfile(member) if member.name.endswith(".bz2") else None
                if packed is None:
                    continue
                place = name = f"{dump}: {member.name}"
                with bz2.open(packed) as file:
                    for line, values in objects_in(lines_in(file, name)):
                        place, num_pages = line.origin, num_pages + 1
                        yield page_of(Record(values, name, line.number))
            while plain.read(2**20):  # to the checksum
                pass
    except FileNotFoundError:
        raise DataError(f"{dump} does not exist") from None
    except (OSError, EOFError, tarfile.TarError) as error:
        raise DataError(
            f"{place}: the dump is damaged, cut off, or no .tar.bz2 as HotpotQA publishes it "
            f"({error}): download it again"
        ) from error
    if not num_pages:
        raise DataError(f"{dump} holds no .bz2 files of pages, as HotpotQA's dump does")
