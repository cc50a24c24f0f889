"""From files and hub data sets to rows: what is read, what is refused, and what is only counted.

A record is one of

- ``{"prompt": …, "response": …}``
- ``{"messages": [{"role": …, "content": …}, …]}``, the last one the assistant's; with an optional
  ``"instructions"``: the text in them that an optimizer would rewrite, or several in their order
- Feedback Collection's fields (``orig_instruction``, …), put into the paper's template (App. J.1)
- ``{"instructions": …, "examples": [[input block, answer], …]}``: instructions with worked examples

Further fields are ignored. Records of the last form make groups, the others rows.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from dspy_diffusion_infill.errors import DataError, MissingDependencyError
from dspy_diffusion_infill.jsonl import lines_of
from dspy_diffusion_infill.training.options import SourceOptions
from dspy_diffusion_infill.training.rows import Group, Row, pair

FEEDBACK_TEMPLATE = (
    resources.files("dspy_diffusion_infill.training")
    .joinpath("data/feedback_collection.txt")
    .read_text(encoding="utf-8")
    .rstrip("\n")
)
_FEEDBACK_FIELDS = (
    "orig_instruction",
    "orig_response",
    "orig_reference_answer",
    "orig_criteria",
    *(f"orig_score{k}_description" for k in range(1, 6)),
)


@dataclass(slots=True)
class Tally:
    """What became of the records of one source; counts.

    Attributes:
        name: the file or data set.
        num_read: records found.
        num_bad: skipped because they could not be read.
        num_cut: shortened to the longest sequence.
        num_dropped: left out because they were too long.
        first_bad: the first error that was skipped, with file and line.
    """

    name: str
    num_read: int = 0
    num_bad: int = 0
    num_cut: int = 0
    num_dropped: int = 0
    first_bad: str = ""

    @property
    def num_kept(self) -> int:
        """Records that are trained on."""
        return self.num_read - self.num_bad - self.num_dropped

    def __str__(self) -> str:
        text = (
            f"{self.name}: {self.num_kept} of {self.num_read} rows"
            f" ({self.num_bad} bad, {self.num_cut} cut, {self.num_dropped} too long and dropped)"
        )
        return f"{text}; first bad one: {self.first_bad}" if self.first_bad else text


@dataclass(frozen=True, slots=True)
class Item:
    """One row or group, and where it stands (``file:line``)."""

    content: Row | Group
    origin: str


@dataclass(frozen=True, slots=True)
class Source:
    """What was read from one source."""

    options: SourceOptions
    items: list[Item]
    tally: Tally

    @property
    def rows(self) -> list[Row]:
        """The items that are rows."""
        return [item.content for item in self.items if isinstance(item.content, Row)]

    @property
    def groups(self) -> list[Group]:
        """The items that are groups."""
        return [item.content for item in self.items if isinstance(item.content, Group)]


def read_source(options: SourceOptions, *, skip_bad: bool = False) -> Source:
    """Reads a file or a hub data set.

    Args:
        options: what to read.
        skip_bad: count records that cannot be read instead of raising.

    Raises:
        DataError: a bad record (file, line and what is wrong), a missing file, or no record left.
    """
    records = _jsonl(Path(options.path)) if options.split is None else _hub(options)
    source = Source(options, [], Tally(options.path))
    for origin, read in records:
        source.tally.num_read += 1
        try:
            record = _without(read(), options.remove)
            source.items.append(Item(_content(record, options), origin))
        except DataError as error:
            message = f"{origin}: {error}"
            if not skip_bad:
                raise DataError(message) from error
            source.tally.num_bad += 1
            source.tally.first_bad = source.tally.first_bad or message
    if not source.items:
        raise DataError(f"{options.path} holds no row to train on; {source.tally}")
    return source


def read_pairs(path: str | Path, *, split: str | None = None) -> list[Row]:
    """The rows of a JSONL file, or of a split of a hub data set, that have a response.

    Raises:
        DataError: as ``read_source``, or it holds instructions with examples only.
    """
    rows = read_source(SourceOptions(path=str(path), split=split)).rows
    if not rows:
        raise DataError(f"{path} holds no row with a response")
    return rows


def write_rows(rows: Iterable[Row], path: str | Path) -> None:
    """Writes rows as the JSONL of ``{"messages": …, "instructions": …}`` that a recipe reads."""
    with Path(path).open("w", encoding="utf-8") as file:
        for row in rows:
            record: dict[str, Any] = {
                "messages": [{"role": role, "content": content} for role, content in row.turns]
            }
            if row.instructions:
                record["instructions"] = list(row.instructions)
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def _jsonl(path: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    """(origin, reader) of each line that is not blank."""
    if not path.exists():
        raise DataError(f"{path} does not exist; for a data set of the hub, name its split too")
    for line in lines_of(path):
        yield line.origin, line.parse


def _hub(options: SourceOptions) -> Iterator[tuple[str, Callable[[], Any]]]:
    try:
        import datasets
    except ImportError as error:
        raise MissingDependencyError(
            f"{options.path} is read with datasets: pip install 'dspy-diffusion-infill[train]'"
        ) from error
    try:
        rows = datasets.load_dataset(options.path, split=options.split)
    except Exception as error:
        raise DataError(
            f"the data set {options.path!r} (split {options.split!r}) cannot be loaded: {error}. "
            "With no network, save its rows as JSONL, and name that file in its place with null "
            "for the split"
        ) from error
    for number, record in enumerate(rows, start=1):
        yield f"{options.path}[{options.split}]:{number}", lambda record=record: record


def _without(value: Any, removed: tuple[str, ...]) -> Any:
    """The record with some texts taken out of every string in it."""
    if not removed:
        return value
    if isinstance(value, str):
        for text in removed:
            value = value.replace(text, "")
        return value
    if isinstance(value, list):
        return [_without(item, removed) for item in value]
    if isinstance(value, Mapping):
        return {name: _without(item, removed) for name, item in value.items()}
    return value


def _content(record: Any, options: SourceOptions) -> Row | Group:
    """The row or group of a record."""
    if not isinstance(record, Mapping):
        raise DataError(f"a row must be a JSON object, got {type(record).__name__}")
    if "examples" in record:
        return _group(record)
    if "messages" in record:
        row = _messages_row(record)
    elif "orig_criteria" in record:
        row = _feedback_row(record, options.max_field_chars)
    else:
        row = pair(_text(record, "prompt"), _text(record, "response", blank=True))
    if not row.response and not options.prompt_only:
        raise DataError(
            "the response is empty; fill it in, or set the source's prompt_only to true"
        )
    return row


def _messages_row(record: Mapping[str, Any]) -> Row:
    messages = record["messages"]
    if not isinstance(messages, list) or not messages:
        raise DataError(f"'messages' must be a list that is not empty, got {messages!r}")
    for message in messages:
        if not isinstance(message, Mapping):
            raise DataError(f"each of 'messages' must be an object, got {message!r}")
    turns = [(_text(m, "role"), _text(m, "content", blank=True)) for m in messages]
    if turns[-1] == ("assistant", "") or not turns[-1][1].strip():
        turns.pop()
    if not any(role == "user" and content.strip() for role, content in turns):
        raise DataError("'messages' hold no user turn with content")
    if turns[-1][0] == "assistant":
        turns[-1] = ("assistant", turns[-1][1].strip())  # the end of the turn follows its last word
    return Row(tuple(turns), _instructions(record, [content for _, content in turns]))


def _instructions(record: Mapping[str, Any], contents: Sequence[str]) -> tuple[str, ...]:
    """The parts of the messages that the record names; blanks around each are left out."""
    value = record.get("instructions", [])
    parts = [value] if isinstance(value, str) else value
    if not isinstance(parts, list) or not all(isinstance(p, str) and p.strip() for p in parts):
        raise DataError(f"'instructions' must be text, or a list of texts, got {value!r}")
    for part in parts:
        if not any(part.strip() in content for content in contents):
            raise DataError(
                f"the instructions {part.strip()[:60]!r} stand in none of the messages: give them "
                "as they stand there, or leave them out"
            )
    return tuple(part.strip() for part in parts)


def _feedback_row(record: Mapping[str, Any], max_chars: int | None) -> Row:
    fields = {name: _shortened(_text(record, name), max_chars) for name in _FEEDBACK_FIELDS}
    feedback = _shortened(_text(record, "orig_feedback"), max_chars)
    prompt = FEEDBACK_TEMPLATE.format(**fields)
    task, rubric = prompt.split("\n\n###", 1)[0], "###Score Rubrics: "
    rubric += prompt.split(rubric)[-1].removesuffix("\n\n###Feedback:")
    response = f"{feedback} [RESULT] {_score(record)}"
    return Row((("user", prompt), ("assistant", response)), (task, rubric))


def _score(record: Mapping[str, Any]) -> int:
    """The score as a number; some published rows hold it as text."""
    score = record.get("orig_score")
    try:
        return int(str(score))
    except ValueError:
        raise DataError(f"'orig_score' must be a whole number, got {score!r}") from None


def _group(record: Mapping[str, Any]) -> Group:
    examples = record["examples"]
    if not isinstance(examples, list) or not examples:
        raise DataError(f"'examples' must be a list that is not empty, got {examples!r}")
    for example in examples:
        is_pair = isinstance(example, list) and len(example) == 2
        if not is_pair or not all(isinstance(part, str) and part.strip() for part in example):
            raise DataError(f"each of 'examples' must be [input block, answer], got {example!r}")
    return Group(_text(record, "instructions"), tuple((q, a) for q, a in examples))


def _text(record: Mapping[str, Any], name: str, *, blank: bool = False) -> str:
    if name not in record:
        names = ", ".join(record) or "none"
        raise DataError(f"the field {name!r} is missing; the row has {names:.300}")
    value = record[name]
    if not isinstance(value, str):
        raise DataError(f"the field {name!r} must be text, got {value!r}")
    if not blank and not value.strip():
        raise DataError(f"the field {name!r} is empty")
    return value


def _shortened(text: str, max_chars: int | None) -> str:
    """The text, cut at a word where it is longer."""
    if max_chars is None or len(text) <= max_chars:
        return text
    return text[:max_chars].rsplit(" ", 1)[0] + " ..."
