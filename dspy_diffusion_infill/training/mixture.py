"""From the sources of a recipe to one stream of tokenised rows."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

from dspy_diffusion_infill.chat_spans import turn_markers
from dspy_diffusion_infill.errors import DataError
from dspy_diffusion_infill.training.options import DataOptions, SourceOptions, TooLong
from dspy_diffusion_infill.training.rows import (
    Group,
    Row,
    TextCoder,
    TokenizedRow,
    group_by_instructions,
    pair,
    tokenize_row,
    with_adapter,
    with_eos_padding,
    with_worked_examples,
)
from dspy_diffusion_infill.training.sources import Item, Source, Tally, read_source


@dataclass(frozen=True, slots=True)
class RowPool:
    """Rows or groups of one source in one shape.

    Attributes:
        elements: what is drawn from, each alike.
        render: an element and a generator -> a row.
        weight: share of the sequences, beside the other pools' weights.
        max_length: tokens of a row, padding included.
        too_long: what happens to a row of more: ``cut`` at the end, ``drop``: another one is drawn,
            or ``raise``.
    """

    elements: tuple[Row, ...] | tuple[Group, ...]
    render: Callable[..., Row]
    weight: float
    max_length: int
    too_long: TooLong = "cut"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """Draws tokenised rows; a ``RowDraw`` of ``dataset.MaskedSequences``.

    Attributes:
        pools: what rows are made of.
        coder: the denoiser, or what renders and encodes text as it does.
        in_order: every element once an epoch, in an order that the seed decides; else by weight.
        seed: of the epochs' orders.
        needs_response: give no row whose response was cut off.
        eos_id: the end-of-text token, for the padding.
        eos_padding: pad responses to a multiple of so many tokens; 0 does not.
    """

    pools: tuple[RowPool, ...]
    coder: TextCoder
    in_order: bool
    seed: int = 0
    needs_response: bool = False
    eos_id: int = 0
    eos_padding: int = 0

    def __len__(self) -> int:
        """Elements of one epoch."""
        return sum(len(pool.elements) for pool in self.pools)

    def __call__(self, rng: random.Random, index: int) -> TokenizedRow:
        """The row of sequence ``index``; where nothing of one can be masked, the next.

        Raises:
            DataError: if none of a thousand is of use, or one is too long where that is an error.
        """
        for attempt in range(1000):
            pool, element = self._pick(rng, index + attempt)
            row = pool.render(element, rng)
            tokens = tokenize_row(row, self.coder, max_length=pool.max_length)
            if tokens.is_cut and pool.too_long == "raise":
                raise DataError(_too_long_message(row, pool.max_length))
            if tokens.is_cut and pool.too_long == "drop":
                continue
            if not any(tokens.maskable):
                continue
            if self.needs_response and not any(tokens.is_response):
                continue
            return self._padded(tokens, pool.max_length)
        raise DataError("none of 1000 rows has a text, or a response, that fits in max_length")

    def _pick(self, rng: random.Random, index: int) -> tuple[RowPool, Row | Group]:
        if not self.in_order:
            pool = rng.choices(self.pools, [pool.weight for pool in self.pools])[0]
            return pool, rng.choice(pool.elements)
        epoch, place = divmod(index, len(self))
        place = _epoch_order(self.seed, epoch, len(self))[place]
        for pool in self.pools:
            if place < len(pool.elements):
                return pool, pool.elements[place]
            place -= len(pool.elements)
        raise AssertionError("the place is inside one of the pools")

    def _padded(self, tokens: TokenizedRow, max_length: int) -> TokenizedRow:
        room = max_length - len(tokens.input_ids)
        if not self.eos_padding or -len(tokens.input_ids) % self.eos_padding > room:
            return tokens
        return with_eos_padding(tokens, eos_id=self.eos_id, multiple=self.eos_padding)


@lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, length: int) -> list[int]:
    return random.Random(f"{seed}/epoch/{epoch}").sample(range(length), length)


def read_sources(data: DataOptions) -> list[Source]:
    """Reads every source of a recipe; a file that several of them name is read once.

    Raises:
        DataError: a bad record (file, line and what is wrong), a missing file, or no record left.
    """
    read: dict[tuple[object, ...], Source] = {}
    sources = []
    for options in data.sources:
        where, how = (options.path, options.split), (options.prompt_only, options.remove)
        key = (*where, *how, options.max_field_chars)
        if key not in read:
            read[key] = read_source(options, skip_bad=data.on_error == "skip")
        sources.append(replace(read[key], options=options))
    return sources


def make_pools(
    sources: Sequence[Source], data: DataOptions, coder: TextCoder
) -> tuple[tuple[RowPool, ...], list[Tally]]:
    """Applies the rule for long rows, and puts the rows into shape.

    Returns the pools, and what became of each file's records.

    Raises:
        DataError: a row that is too long where the rule is ``raise``, or a source with nothing of
            the shape that it asks for.
    """
    fitting: dict[tuple[int, int], Source] = {}
    pools = []
    for source in sources:
        limit = source.options.max_length or data.max_length
        key = (id(source.items), limit)
        if key not in fitting:
            fitting[key] = _fitting(source, limit, data.too_long, coder)
        pools.append(_pool(fitting[key], source.options, limit, data.too_long, coder))
    return tuple(pools), [source.tally for source in fitting.values()]


def _pool(
    source: Source, options: SourceOptions, max_length: int, rule: TooLong, coder: TextCoder
) -> RowPool:
    elements: Sequence[Row] | Sequence[Group]
    if options.shape == "rows":
        if source.groups:
            raise DataError(
                f"{options.path} holds instructions with examples, which need the shape "
                "worked_examples or chat_adapter, got rows"
            )
        elements, render = source.rows, _as_it_is
    else:
        groups, ungrouped = group_by_instructions(source.rows)
        if options.shape == "ungrouped":
            elements, render = ungrouped, _as_it_is
        else:
            # Under ``drop``, a row loses as many of its examples as do not fit.
            fits = partial(row_fits, coder=coder, limit=max_length) if rule == "drop" else None
            elements, render = [*source.groups, *groups], _render_of(options, fits)
    if not elements:
        raise DataError(f"{options.path} holds nothing of the shape {options.shape!r}")
    together: tuple[Row, ...] | tuple[Group, ...] = tuple(elements)  # pyright: ignore
    return RowPool(together, render, options.weight, max_length, rule)


def _as_it_is(row: Row, _rng: random.Random) -> Row:
    return row


def _render_of(options: SourceOptions, fits: Callable[[Row], bool] | None) -> Callable[..., Row]:
    """What makes a row of a group."""
    given: dict[str, Any] = {"fits": fits}
    if options.max_examples is not None:
        given["max_examples"] = options.max_examples
    if options.shape == "chat_adapter":
        return partial(with_adapter, **given)
    return partial(with_worked_examples, examples_first=options.examples == "before", **given)


def _fitting(source: Source, limit: int, rule: TooLong, coder: TextCoder) -> Source:
    """The source without the items that are too long, which a tally of its own counts."""
    tally = replace(source.tally)
    kept = [item for item in source.items if _fits(item, tally, limit, rule, coder)]
    if not kept:
        raise DataError(f"every row of {source.options.path} is longer than {limit} tokens")
    return Source(source.options, kept, tally)


def _fits(item: Item, tally: Tally, limit: int, rule: TooLong, coder: TextCoder) -> bool:
    row = item.content if isinstance(item.content, Row) else _longest_example(item.content)
    if _num_bytes(row, coder) <= limit:  # a token is at least a byte
        return True
    tokens = tokenize_row(row, coder)
    if len(tokens.input_ids) <= limit:
        return True
    if rule == "raise":
        raise DataError(
            f"{item.origin}: the row has {len(tokens.input_ids)} tokens, more than "
            f"max_length={limit}; shorten it, or set data.too_long to cut or drop"
        )
    if rule == "drop" or (row.response and not any(tokens.is_response[:limit])):
        tally.num_dropped += 1
        return False
    tally.num_cut += 1
    return True


def row_fits(row: Row, *, coder: TextCoder, limit: int) -> bool:
    """Whether a row has at most ``limit`` tokens; most are seen to without counting them."""
    return _num_bytes(row, coder) <= limit or len(tokenize_row(row, coder).input_ids) <= limit


def _too_long_message(row: Row, limit: int) -> str:
    beginning = " ".join(row.turns[0][1].split())[:60]
    return (
        f"a row that begins with {beginning!r} has more than max_length={limit} tokens with its "
        "worked examples: raise data.max_length, lower the source's max_examples, or set "
        "data.too_long to cut or drop"
    )


def _longest_example(group: Group) -> Row:
    question, answer = max(group.examples, key=lambda example: sum(map(len, example)))
    return pair(f"{group.instructions}\n\n{question}", answer)


def _num_bytes(row: Row, coder: TextCoder) -> int:
    markers = turn_markers(coder, tuple(role for role, _ in row.turns))
    contents = [content for _, content in row.turns]
    return sum(len(text.encode("utf-8", "replace")) for text in [*markers, *contents])
