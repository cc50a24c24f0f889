"""The paper's data sets as lists of ``dspy.Example``, from the hub or from local files."""

import logging
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import dspy

from dspy_diffusion_infill.errors import DataError, MissingDependencyError
from dspy_diffusion_infill.evaluation import examples as make
from dspy_diffusion_infill.evaluation.rows import INSTALL, Record, read_rows

logger = logging.getLogger(__name__)

_SPLIT = re.compile(r"(?P<name>[a-z]+)(?:\[(?P<start>\d*):(?P<stop>\d*)\])?")
_SUMMEVAL_DEV_ARTICLES = 10
_FEEDBACK_TRAIN_ROWS = 95_000  # those that the recipes train on
_GSM8K_DEV_ROWS = 374
_HOVER_PAGES = 3


class Examples(list[dspy.Example]):
    """The examples of a split.

    Attributes:
        source: the file or hub id that they are from.
        num_dropped: rows left out by the data set's rule: a BiGGen-Bench score of -1, a HoVer claim
            with other than three pages.
    """

    def __init__(
        self, rows: Iterable[dspy.Example] = (), *, source: str, num_dropped: int = 0
    ) -> None:
        super().__init__(rows)
        self.source, self.num_dropped = source, num_dropped


@dataclass(frozen=True, slots=True)
class _Files:
    """The places of the rows of a split.

    Attributes:
        names: local file names, the first that exists counts.
        hub_split: the hub's split.
    """

    names: tuple[str, ...]
    hub_split: str


@dataclass(frozen=True, slots=True)
class _DataSet:
    """A data set's places and rules.

    Attributes:
        hub_id: the data set on the hub.
        hub_config: its configuration there.
        folders: names of the folder that may hold it inside ``data``.
        files: the files that make up the whole, in order.
        splits: each split as its file (the place in ``files``; None is all) and the part of it.
        examples: makes examples of rows; None stands for a dropped row.
    """

    hub_id: str
    hub_config: str | None
    folders: tuple[str, ...]
    files: tuple[_Files, ...]
    splits: dict[str, "_Split"]
    examples: Callable[[list[Record]], Iterable[dspy.Example | None]]


@dataclass(frozen=True, slots=True)
class _Split:
    """One of a data set's splits: which file, and which of its examples."""

    file: int | None = None
    part: Callable[[Sequence[dspy.Example]], Sequence[dspy.Example]] = lambda rows: rows


def load_dataset(
    name: str, *, data: str | Path | None = None, split: str | None = None
) -> Examples:
    """Loads one of the paper's data sets.

    Args:
        name: ``feedback_collection``, ``summeval``, ``biggen``, ``gsm8k`` or ``hover``. For trying
            things out: ``biggen_tasks``, BiGGen-Bench's tasks with constructed responses and
            scores, and ``hover_mini``, HoVer claims whatever the number of their pages.
        data: a file, or a folder that holds the data set's files or a folder of its name; None is
            the hub.
        split: ``train``, ``dev`` (or ``validation``), ``test``, as far as the data set has them, or
            ``all``; perhaps with a slice, such as ``dev[:32]``. None is ``all``.

    Returns:
        A list of examples with their inputs set, which knows its ``source`` and ``num_dropped``.

    Raises:
        ValueError: unknown name or split.
        DataError: a file is missing, a row does not have the data set's form (the message names
            file, row and field), or the hub cannot be reached.
        MissingDependencyError: the package ``datasets`` is needed and not installed.
    """
    kind, asked, wanted = _parsed(name, split)
    rows = [row for files in wanted for row in _rows(kind, files, data)]
    made = list(kind.examples(rows))
    kept = [example for example in made if example is not None]
    source = ", ".join(dict.fromkeys(row.source for row in rows))
    found = asked.part(kept)
    if not found:
        raise DataError(f"{source}: split {split or 'all'!r} of {name} holds no example")
    loaded = Examples(found, source=source, num_dropped=len(made) - len(kept))
    logger.info("%s: %d examples of %s, %d dropped", name, len(found), source, loaded.num_dropped)
    return loaded


def _parsed(name: str, split: str | None) -> tuple[_DataSet, _Split, tuple[_Files, ...]]:
    """The data set, the part of its examples that is asked for, and the files of it."""
    if name not in _DATA_SETS:
        raise ValueError(f"name must be one of {', '.join(_DATA_SETS)}, got {name!r}")
    kind = _DATA_SETS[name]
    parsed = _SPLIT.fullmatch(split or "all")
    part = {"validation": "dev"}.get(parsed["name"], parsed["name"]) if parsed else ""
    if parsed is None or part not in (*kind.splits, "all"):
        known = ", ".join((*kind.splits, "all"))
        raise ValueError(f"split of {name} must be one of {known}, as in 'all[:32]', got {split!r}")
    chosen = kind.splits.get(part, _Split())
    start, stop = (int(text) if text else None for text in (parsed["start"], parsed["stop"]))
    wanted = kind.files if chosen.file is None else (kind.files[chosen.file],)
    return kind, _Split(chosen.file, lambda rows: chosen.part(rows)[start:stop]), wanted


@dataclass(frozen=True, slots=True)
class MissingFile:
    """A file of a data set that a folder lacks, and where its rows are.

    Attributes:
        path: where ``load_dataset`` looks for it.
        hub_id: the data set on the hub.
        hub_config: its configuration there.
        hub_split: its split there.
    """

    path: Path
    hub_id: str
    hub_config: str | None
    hub_split: str


def missing_files(
    name: str, *, data: str | Path | None = None, split: str | None = None
) -> list[MissingFile]:
    """The files that ``load_dataset`` would not find; with None, all of them for ``data/``.

    Raises:
        ValueError: as ``load_dataset``.
    """
    kind, _, wanted = _parsed(name, split)
    folder = Path("data" if data is None else data)
    if data is not None and folder.is_file():
        return []
    return [
        MissingFile(
            folder / kind.folders[0] / _name_to_write(files),
            kind.hub_id,
            kind.hub_config,
            files.hub_split,
        )
        for files in wanted
        if data is None or _local_file(kind, files, folder) is None
    ]


def _name_to_write(files: _Files) -> str:
    """A JSON Lines file of the hub's own form, where the data set knows one."""
    lines = [name for name in files.names if name == f"{files.hub_split}.jsonl"]
    return [*lines, *files.names][0]


def _rows(kind: _DataSet, files: _Files, data: str | Path | None) -> list[Record]:
    if data is None:
        return _hub_rows(kind, files.hub_split)
    path = Path(data)
    if path.is_file():
        return read_rows(path)
    found = _local_file(kind, files, path)
    if found is None:
        raise DataError(
            f"{path} holds none of {', '.join(files.names)}, nor does a folder "
            f"{' or '.join(kind.folders)} in it"
        )
    return read_rows(found)


def _local_file(kind: _DataSet, files: _Files, path: Path) -> Path | None:
    folders = [path, *(path / name for name in kind.folders)]
    candidates = [folder / name for folder in folders for name in files.names]
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _hub_rows(kind: _DataSet, split: str) -> list[Record]:
    try:
        from datasets import load_dataset as load
    except ImportError:
        raise MissingDependencyError(f"the hub's {kind.hub_id} needs datasets: {INSTALL}") from None
    source = f"{kind.hub_id} ({split})"
    try:
        table = load(kind.hub_id, kind.hub_config, split=split)
    except Exception as error:  # the hub's client raises a dozen kinds
        raise DataError(
            f"{source} cannot be had from the hub ({type(error).__name__}: {error}): "
            "download it and give its folder as data= (--data)"
        ) from error
    return [Record(dict(values), source, number) for number, values in enumerate(table, start=1)]


def _summeval(rows: list[Record]) -> Iterable[dspy.Example]:
    """Rows of the hub's form (an article each), or outputs beside a file of articles."""
    if "machine_summaries" in rows[0].values:
        return [example for row in rows for example in make.article_examples(row)]
    documents = read_rows(Path(rows[0].source).with_name("docs.jsonl"))
    return make.summary_examples(documents, rows)


def _by_article(rows: Sequence[dspy.Example], first: int | None, last: int | None) -> list:
    """The examples of the articles ``first:last``, in order of appearance."""
    names = list(dict.fromkeys(row.doc_id for row in rows))[first:last]
    chosen = set(names)
    return [row for row in rows if row.doc_id in chosen]


def _num_feedback_train(rows: Sequence[dspy.Example]) -> int:
    """What the recipes train on; of a file that is not that long all but its last twentieth."""
    if len(rows) > _FEEDBACK_TRAIN_ROWS:
        return _FEEDBACK_TRAIN_ROWS
    return len(rows) - max(1, len(rows) // 20)


def _hover(rows: list[Record]) -> Iterable[dspy.Example | None]:
    made = map(make.hover_example, rows)
    return [example if len(example.titles) == _HOVER_PAGES else None for example in made]


_GSM8K = (
    _Files(("train.jsonl", "train.parquet"), "train"),
    _Files(("test.jsonl", "test.parquet"), "test"),
)
_HOVER = (
    _Files(("train.json", "hoverBench_train.json", "hover_train_release_v1.1.json"), "train"),
    _Files(("dev.json", "hoverBench_dev.json", "hover_dev_release_v1.1.json"), "validation"),
)
_DATA_SETS = {
    "feedback_collection": _DataSet(
        "prometheus-eval/Feedback-Collection",
        None,
        ("feedback_collection", "feedback_format"),
        (_Files(("new_feedback_collection.json", "train.jsonl", "vicuna_320.jsonl"), "train"),),
        {
            "train": _Split(None, lambda rows: rows[: _num_feedback_train(rows)]),
            "dev": _Split(None, lambda rows: rows[_num_feedback_train(rows) :]),
        },
        lambda rows: map(make.feedback_example, rows),
    ),
    "summeval": _DataSet(
        "mteb/summeval",
        None,
        ("summeval", "summeval_dev"),
        (_Files(("outputs.jsonl", "test.jsonl", "test.parquet"), "test"),),
        {
            "dev": _Split(None, lambda rows: _by_article(rows, None, _SUMMEVAL_DEV_ARTICLES)),
            "test": _Split(None, lambda rows: _by_article(rows, _SUMMEVAL_DEV_ARTICLES, None)),
        },
        _summeval,
    ),
    "biggen": _DataSet(
        "prometheus-eval/BiGGen-Bench-Results",
        None,
        ("biggen", "biggen_tasks"),
        (_Files(("human_eval.jsonl", "human_eval.parquet", "tasks_100.jsonl"), "human_eval"),),
        {"test": _Split()},
        lambda rows: map(make.biggen_example, rows),
    ),
    "biggen_tasks": _DataSet(
        "prometheus-eval/BiGGen-Bench",
        None,
        ("biggen_tasks",),
        (_Files(("tasks_100.jsonl", "test.jsonl", "test.parquet"), "test"),),
        {"test": _Split()},
        make.constructed_examples,
    ),
    "gsm8k": _DataSet(
        "openai/gsm8k",
        "main",
        ("gsm8k",),
        _GSM8K,
        {
            "train": _Split(0, lambda rows: rows[: len(rows) - _GSM8K_DEV_ROWS]),
            "dev": _Split(0, lambda rows: rows[-_GSM8K_DEV_ROWS:]),
            "test": _Split(1),
        },
        lambda rows: map(make.gsm8k_example, rows),
    ),
    # hover-nlp/hover itself is a loading script, which datasets no longer runs and this project
    # never would; this is a copy of its rows.
    "hover": _DataSet(
        "vincentkoc/hover-parquet",
        None,
        ("hover",),
        _HOVER,
        {"train": _Split(0), "dev": _Split(1)},
        _hover,
    ),
    "hover_mini": _DataSet(
        "vincentkoc/hover-parquet",
        None,
        ("hover/hotpot_mini", "hotpot_mini"),
        (_Files(("hover_dev_covered_claims.json",), "validation"),),
        {"dev": _Split()},
        lambda rows: map(make.hover_example, rows),
    ),
}
