"""``dspy-infill hover-corpus``: HoVer's pages as an index on disk."""

import sys
from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Adds the command to the root."""
    app.command("hover-corpus")(hover_corpus_command)


def hover_corpus_command(
    dump: Annotated[
        Path, typer.Argument(help="HotpotQA's enwiki-20171001-…-withlinks-abstracts.tar.bz2.")
    ],
    out: Annotated[Path, typer.Argument(help="A new folder for the index.")],
) -> None:
    """Indexes the Wikipedia abstracts that HoVer searches, for reproduce table7 --corpus OUT."""
    from rich.console import Console
    from rich.progress import track

    from dspy_diffusion_infill.evaluation.hover_dump import PUBLISHED_PAGES, dump_pages
    from dspy_diffusion_infill.evaluation.stored_index import write_index

    pages = track(
        dump_pages(dump),
        description="Reading",
        total=PUBLISHED_PAGES,
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
    num_pages = write_index(pages, out)
    typer.echo(
        f"{num_pages:,} pages are indexed in {out} (the published dump has {PUBLISHED_PAGES:,}): "
        f"dspy-infill reproduce table7 --corpus {out}"
    )
