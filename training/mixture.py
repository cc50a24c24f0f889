"""From the sources of a recipe to one stream of tokenised rows."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

from dspy_diffusion_infill.errors import DataError
from dspy_diffusion_infill.training.options import DataOptions, SourceOptions
from dspy_diffusion_infill.training.rows import (
    Group,
    Row,
    TokenizedRow,
    group_by_instructions,
    pair,
    tokenize_row,
    turn_markers,
    with_adapter,
    with_eos_padding,
    with_worked_examples,
)
from dspy_diffusion_infill.training.sources import Item, Source, Tally, read_source

MIN_TOKENS = 8  # a drawn row with fewer maskable tokens teaches nothing about its context


@dataclass(frozen=True, slots=True)
class Pool:
    """Rows or groups of one source in one shape.

    Attributes:
        elements: what is drawn from, each alike.
        render: an element and a generator -> a row.
        weight: share of the sequences, beside the other pools' weights.
    """

    elements: tuple[Row, ...] | tuple[Group, ...]
    render: Callable[..., Row]
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """Draws tokenised rows; a ``RowDraw`` of ``dataset.MaskedSequences``.

    Attributes:
        pools: what rows are made of.
        tokenizer: with its chat template.
        max_length: tokens of a row, padding included.
        in_order: every element once an epoch, in an order that the seed decides; else by weight.
        seed: of the epochs' orders.
        needs_response: give no row whose response was cut off.
        eos_id: the end-of-text token, for the padding.
        eos_padding: pad responses to a multiple of so many tokens; 0 does not.
    """

    pools: tuple[Pool, ...]
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    in_order: bool
    seed: int = 0
    needs_response: bool = False
    eos_id: int = 0
    eos_padding: int = 0

    def __len__(self) -> int:
        """Elements of one epoch."""
        return sum(len(pool.elements) for pool in self.pools)

    def __call__(self, rng: random.Random, index: int) -> TokenizedRow:
        """The row of sequence ``index``; where one teaches nothing, the next that does.

        Raises:
            DataError: if a thousand rows in a row are of no use.
        """
        for attempt in range(1000):
            row = self._pick(rng, index + attempt)
            tokens = tokenize_row(row, self.tokenizer, max_length=self.max_length)
            if sum(tokens.maskable) < (1 if self.in_order else MIN_TOKENS):
                continue
            if self.needs_response and not any(tokens.is_response):
                continue
            return self._padded(tokens)
        raise DataError(f"no row has a text that fits in max_length={self.max_length} tokens")

    def _pick(self, rng: random.Random, index: int) -> Row:
        if not self.in_order:
            pool = rng.choices(self.pools, [pool.weight for pool in self.pools])[0]
            return pool.render(rng.choice(pool.elements), rng)
        epoch, place = divmod(index, len(self))
        place = _epoch_order(self.seed, epoch, len(self))[place]
        for pool in self.pools:
            if place < len(pool.elements):
                return pool.render(pool.elements[place], rng)
            place -= len(pool.elements)
        raise AssertionError("the place is inside one of the pools")

    def _padded(self, tokens: TokenizedRow) -> TokenizedRow:
        room = self.max_length - len(tokens.input_ids)
        if not self.eos_padding or -len(tokens.input_ids) % self.eos_padding > room:
            return tokens
        return with_eos_padding(tokens, eos_id=self.eos_id, multiple=self.eos_padding)


@lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, length: int) -> list[int]:
    return random.Random(f"{seed}/epoch/{epoch}").sample(range(length), length)


def read_pools(
    data: DataOptions, tokenizer: PreTrainedTokenizerBase
) -> tuple[tuple[Pool, ...], list[Tally]]:
    """Reads every source, applies the rule for long rows, and puts the rows into shape.

    Returns the pools, and one tally a file: a file that several sources name is read once.

    Raises:
        DataError: a bad record, a row that is too long where the rule is ``raise``, or a source
            with nothing of the shape that it asks for.
    """
    read: dict[tuple[object, ...], Source] = {}
    pools = []
    for options in data.sources:
        key = (options.path, options.split, options.prompt_only, options.max_field_chars)
        if key not in read:
            source = read_source(options, skip_bad=data.on_error == "skip")
            read[key] = _fitting(source, data, tokenizer)
        pools.append(_pool(read[key], options))
    return tuple(pools), [source.tally for source in read.values()]


def _pool(source: Source, options: SourceOptions) -> Pool:
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
            elements = [*source.groups, *groups]
            render = with_adapter if options.shape == "chat_adapter" else with_worked_examples
    if not elements:
        raise DataError(f"{options.path} holds nothing of the shape {options.shape!r}")
    return Pool(tuple(elements), render, options.weight)  # pyright: ignore[reportArgumentType]


def _as_it_is(row: Row, _rng: random.Random) -> Row:
    return row


def _fitting(source: Source, data: DataOptions, tokenizer: PreTrainedTokenizerBase) -> Source:
    """The source without the items that are too long, which its tally then counts."""
    kept = [item for item in source.items if _fits(item, source.tally, data, tokenizer)]
    if not kept:
        raise DataError(
            f"every row of {source.options.path} is longer than max_length={data.max_length} tokens"
        )
    return Source(source.options, kept, source.tally)


def _fits(item: Item, tally: Tally, data: DataOptions, tokenizer: PreTrainedTokenizerBase) -> bool:
    row = item.content if isinstance(item.content, Row) else _longest_example(item.content)
    if _max_tokens(row, tokenizer) <= data.max_length:
        return True
    tokens = tokenize_row(row, tokenizer)
    if len(tokens.input_ids) <= data.max_length:
        return True
    if data.too_long == "raise":
        raise DataError(
            f"{item.origin}: the row has {len(tokens.input_ids)} tokens, more than "
            f"max_length={data.max_length}; shorten it, or set data.too_long to cut or drop"
        )
    if data.too_long == "drop" or (row.response and not any(tokens.is_response[: data.max_length])):
        tally.num_dropped += 1
        return False
    tally.num_cut += 1
    return True


def _longest_example(group: Group) -> Row:
    question, answer = max(group.examples, key=lambda example: sum(map(len, example)))
    return pair(f"{group.instructions}\n\n{question}", answer)


def _max_tokens(row: Row, tokenizer: PreTrainedTokenizerBase) -> int:
    """A cheap upper bound of the row's tokens: its bytes."""
    markers = turn_markers(tokenizer, tuple(role for role, _ in row.turns))
    contents = [content for _, content in row.turns]
    return sum(len(text.encode("utf-8", "replace")) for text in [*markers, *contents])
