"""The infill probe: how well a denoiser fills a window of held-out text, in nats and in hits.

A probe row is a text and a character span in it. The text becomes one user turn, the span's tokens
(those wholly inside it) are masked, and the denoiser scores the true ones

- one at a time, left to right: each with the true earlier ones in place and the later ones masked,
  as sequential infilling would meet them;
- all at once;

and, for comparison, tokens at random places of the text at masking ratios 0.15 and 0.5.
"""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from dspy_diffusion_infill.chat_spans import render_chat, tokens_inside
from dspy_diffusion_infill.denoisers.forward import ForwardPasses
from dspy_diffusion_infill.denoisers.transformer import TransformerDenoiser
from dspy_diffusion_infill.errors import ContextTooLongError, DataError
from dspy_diffusion_infill.jsonl import Line, objects_of

RATIOS = (0.15, 0.5)


@dataclass(frozen=True, slots=True)
class ProbeRow:
    """A text, and the span of characters in it that is masked."""

    text: str
    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A mean over tokens.

    Attributes:
        nll: negative log-likelihood, nats a token; lower is better.
        accuracy: share of tokens that were the most likely one.
        standard_error: of ``nll``, over rows.
        num_tokens: tokens that were scored.
    """

    nll: float
    accuracy: float
    standard_error: float
    num_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """The figures of one denoiser on one set of windows.

    Attributes:
        sequential: the window's tokens one at a time, left to right.
        parallel: the window's tokens all at once.
        random: tokens at random places, by masking ratio.
        num_rows: windows.
    """

    sequential: Score
    parallel: Score
    random: dict[float, Score]
    num_rows: int

    def figures(self) -> dict[str, float]:
        """The figures by name, as ``dspy-infill probe --json`` and training logs have them."""
        named = {
            "nll_sequential": self.sequential.nll,
            "nll_sequential_standard_error": self.sequential.standard_error,
            "accuracy_sequential": self.sequential.accuracy,
            "nll_parallel": self.parallel.nll,
            "nll_parallel_standard_error": self.parallel.standard_error,
            "accuracy_parallel": self.parallel.accuracy,
        }
        for ratio, score in self.random.items():
            named[f"nll_random_{ratio:g}"] = score.nll
            named[f"accuracy_random_{ratio:g}"] = score.accuracy
        return {**named, "num_tokens": self.sequential.num_tokens, "num_rows": self.num_rows}


@dataclass(frozen=True, slots=True)
class TokenizedWindow:
    """A probe row's tokens.

    Attributes:
        input_ids: the true tokens, turn markers included.
        span: positions of the window's tokens.
        content: positions of the text's tokens.
    """

    input_ids: tuple[int, ...]
    span: tuple[int, ...]
    content: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Pass:
    """One sequence to run: its noised tokens, and the scores that are read off it."""

    input_ids: tuple[int, ...]
    row: int
    reads: tuple[tuple[str, int, int], ...] = field(repr=False)
    """(kind of score, position, true token)"""


def read_probe_rows(path: str | Path, *, limit: int | None = None) -> list[ProbeRow]:
    """Reads JSONL rows ``{"text", "start", "end"}``; ``start`` and ``end`` count characters.

    Raises:
        DataError: a missing file or field, a span outside the text, no row at all.
    """
    rows = [_probe_row(line, record) for line, record in islice(objects_of(path), limit)]
    if not rows:
        raise DataError(f"{path} holds no probe row")
    return rows


def tokenize_windows(
    denoiser: TransformerDenoiser, rows: Sequence[ProbeRow], *, start: str | None = None
) -> list[TokenizedWindow]:
    """The tokens of each row, rendered as one user turn.

    Args:
        denoiser: whose chat template and vocabulary are taken.
        rows: texts with spans.
        start: takes the place of the turn's markers: the texts alone, each behind this one.

    Raises:
        DataError: no token lies wholly inside a row's span.
        ContextTooLongError: a row does not fit the denoiser.
    """
    return [_window(denoiser, row, number, start) for number, row in enumerate(rows, start=1)]


def probe(
    denoiser: TransformerDenoiser,
    rows: Sequence[ProbeRow],
    *,
    seed: int = 0,
) -> Probe:
    """Runs the infill probe.

    Args:
        denoiser: whose figures are asked.
        rows: texts with spans.
        seed: of the random places.
    """
    windows = tokenize_windows(denoiser, rows)
    passes = [
        run
        for number, window in enumerate(windows)
        for run in _passes(window, number, denoiser.mask_id, seed)
    ]
    found: dict[str, dict[int, list[tuple[float, bool]]]] = {}
    for kind, row, nll, hit in _run(denoiser, passes):
        found.setdefault(kind, {}).setdefault(row, []).append((nll, hit))
    scores = {kind: _score(list(by_row.values())) for kind, by_row in found.items()}
    return Probe(
        sequential=scores["sequential"],
        parallel=scores["parallel"],
        random={ratio: scores[f"random {ratio}"] for ratio in RATIOS},
        num_rows=len(rows),
    )


@torch.no_grad()
def causal_probe(model: torch.nn.Module, windows: Sequence[TokenizedWindow]) -> Score:
    """The same windows under a causal LM: each token given all true tokens before it, none after.

    The first token of a text with nothing before it has no score, and is left out.

    Args:
        model: a causal LM with the denoiser's vocabulary.
        windows: as ``tokenize_windows`` gives them.
    """
    device = next(model.parameters()).device
    by_row = []
    for window in windows:
        span = [place for place in window.span if place > 0]
        ids = torch.tensor([window.input_ids[: window.span[-1] + 1]], device=device)
        rows = model(input_ids=ids, use_cache=False).logits[0, [place - 1 for place in span]]
        targets = ids[0, span]
        nll = torch.nn.functional.cross_entropy(rows.float(), targets, reduction="none")
        hits = rows.argmax(-1) == targets
        by_row.append(list(zip(nll.tolist(), hits.tolist(), strict=True)))
    return _score(by_row)


def _probe_row(line: Line, record: Mapping[str, Any]) -> ProbeRow:
    origin = line.origin
    text, start, end = (record.get(name) for name in ("text", "start", "end"))
    if not isinstance(text, str) or type(start) is not int or type(end) is not int:
        raise DataError(
            f'{origin}: a probe row must be {{"text": text, "start": whole number, "end": whole '
            f"number}}, got {' '.join(line.content.decode('utf-8').split())[:120]}"
        )
    if not 0 <= start < end <= len(text):
        raise DataError(
            f"{origin}: the span must be 0 <= start < end <= {len(text)}, "
            f"got start={start}, end={end}"
        )
    return ProbeRow(text, start, end)


def _window(
    denoiser: TransformerDenoiser, row: ProbeRow, number: int, start: str | None
) -> TokenizedWindow:
    if start is None:
        chat = render_chat(denoiser, [("user", row.text)])
        text, at = chat.text, chat.spans[0].start - (len(row.text) - len(row.text.lstrip()))
    else:
        text, at = start + row.text, len(start)
    encoding = denoiser.encode(text)
    if len(encoding.input_ids) > denoiser.context_length:
        raise ContextTooLongError(
            f"probe row {number} has {len(encoding.input_ids)} tokens, more than the "
            f"context_length={denoiser.context_length} of {denoiser.name}"
        )

    span = tokens_inside(encoding.offsets, at + row.start, at + row.end)
    if not span:
        raise DataError(
            f"probe row {number}: no token of {denoiser.name} lies wholly inside "
            f"{row.text[row.start : row.end]!r}"
        )
    content = tokens_inside(encoding.offsets, at, at + len(row.text))
    return TokenizedWindow(encoding.input_ids, tuple(span), tuple(content))


def _passes(window: TokenizedWindow, number: int, mask_id: int, seed: int) -> Iterator[_Pass]:
    ids = window.input_ids

    def masked(places: Sequence[int]) -> tuple[int, ...]:
        hidden = set(places)
        return tuple(mask_id if k in hidden else i for k, i in enumerate(ids))

    for k, place in enumerate(window.span):
        reads = [("sequential", place, ids[place])]
        if k == 0:  # with the whole window masked, the first step is the parallel one
            reads += [("parallel", place, ids[place]) for place in window.span]
        yield _Pass(masked(window.span[k:]), number, tuple(reads))
    for ratio in RATIOS:
        rng = random.Random(f"{seed}/{number}/{ratio}")
        places = rng.sample(window.content, max(1, math.floor(ratio * len(window.content))))
        reads = [(f"random {ratio}", place, ids[place]) for place in places]
        yield _Pass(masked(places), number, tuple(reads))


def _run(
    denoiser: TransformerDenoiser, passes: Sequence[_Pass]
) -> Iterator[tuple[str, int, float, bool]]:
    """(kind, row, negative log-likelihood, whether it was the most likely token) of each read."""
    forward = ForwardPasses(
        denoiser.model, shift=denoiser.checkpoint.shift, pad_id=denoiser.mask_id
    )
    texts = [torch.tensor(run.input_ids) for run in passes]
    places = [torch.tensor([place for _, place, _ in run.reads]) for run in passes]
    for k, logits in forward.at(texts, places):
        targets = torch.tensor([target for *_, target in passes[k].reads], device=logits.device)
        nll = torch.nn.functional.cross_entropy(logits, targets, reduction="none").tolist()
        hits = (logits.argmax(-1) == targets).tolist()
        for (kind, _, _), value, hit in zip(passes[k].reads, nll, hits, strict=True):
            yield kind, passes[k].row, value, hit


def _score(by_row: Sequence[Sequence[tuple[float, bool]]]) -> Score:
    """The mean over all tokens, and its standard error with rows as the units."""
    num_tokens = sum(map(len, by_row))
    mean = math.fsum(nll for row in by_row for nll, _ in row) / num_tokens
    residuals = [math.fsum(nll - mean for nll, _ in row) for row in by_row]
    num_rows = len(by_row)
    variance = math.fsum(r * r for r in residuals) * num_rows / max(1, num_rows - 1)
    return Score(
        nll=mean,
        accuracy=sum(hit for row in by_row for _, hit in row) / num_tokens,
        standard_error=math.sqrt(variance) / num_tokens,
        num_tokens=num_tokens,
    )
