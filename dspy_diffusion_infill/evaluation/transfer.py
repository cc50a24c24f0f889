"""Prompt transfer: one program's instructions under several LMs."""

import inspect
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import dspy

from dspy_diffusion_infill.evaluation.statistics import Comparison, compare_means
from dspy_diffusion_infill.runs import ScoreFunction, as_float, evaluate

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TransferRow:
    """The scores of a program under one LM.

    Attributes:
        lm: its name.
        mean: of the metric; higher is better.
        scores: of each example, in order; one that raised counts with ``failure_score``.
        num_failures: examples on which the program or the metric raised.
        against_first: compared with the first LM of the table, example by example.
    """

    lm: str
    mean: float
    scores: tuple[float, ...]
    num_failures: int
    against_first: Comparison


@dataclass(frozen=True, slots=True)
class TransferTable:
    """A program under several LMs, in the order in which they were given."""

    rows: tuple[TransferRow, ...]

    def __str__(self) -> str:
        """The table as Markdown."""
        lines = [
            "| LM | mean | against the first | 95 % interval | failures |",
            "| --- | --- | --- | --- | --- |",
        ]
        for row in self.rows:
            found = row.against_first
            ends = found.interval and f"{found.interval.low:+.3f} to {found.interval.high:+.3f}"
            difference = "" if found.difference is None else f"{found.difference:+.3f}"
            cells = [row.lm, f"{row.mean:.3f}", difference, ends or "", str(row.num_failures)]
            lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
        return "\n".join(lines)


def transfer(
    program: dspy.Module,
    lms: Mapping[str, dspy.LM] | Sequence[dspy.LM],
    evalset: Sequence[dspy.Example],
    metric: Callable[..., Any],
    *,
    num_threads: int | None = None,
    failure_score: float = 0.0,
) -> TransferTable:
    """Measures a program's instructions under other LMs than the one that they were found with.

    During each measurement the LM replaces the program's own LMs, those of its frozen parts
    included; afterwards they are restored. The program must not be used elsewhere meanwhile.

    Args:
        program: any DSPy program.
        lms: LMs by the name that the table shows, or a list, named by their models.
        evalset: examples with inputs set.
        metric: metric(example, prediction, trace=None); higher is better.
        num_threads: of ``dspy.Evaluate``.
        failure_score: what an example counts on which the program or the metric raised.

    Raises:
        TypeError: the metric does not take these arguments.
        ValueError: no LMs, two of one name, no examples, or an example without inputs.
    """
    named = _named(lms)
    if not named or not evalset:
        raise ValueError(
            f"transfer needs LMs and examples, got {len(named)} LMs and {len(evalset)} examples"
        )
    for example in evalset:
        example.inputs()  # raises where they are not set
    score = _as_score(metric)
    measured = {
        name: _measure(program, name, lm, evalset, score, num_threads, failure_score)
        for name, lm in named.items()
    }
    first, _ = next(iter(measured.values()))
    return TransferTable(
        tuple(
            TransferRow(
                name, sum(scores) / len(scores), scores, failures, compare_means(first, scores)
            )
            for name, (scores, failures) in measured.items()
        )
    )


def _named(lms: Mapping[str, dspy.LM] | Sequence[dspy.LM]) -> dict[str, dspy.LM]:
    if isinstance(lms, Mapping):
        return dict(lms)
    twice = [name for name, count in Counter(lm.model for lm in lms).items() if count > 1]
    if twice:
        raise ValueError(
            f"several LMs are called {twice[0]!r}: tell them apart, transfer(program, "
            "{'cold': lm, 'warm': other}, …)"
        )
    return {lm.model: lm for lm in lms}


def _as_score(metric: Callable[..., Any]) -> ScoreFunction:
    """The metric as a function of example and prediction.

    One that requires a trace gets None for it.
    """
    for trace in ((), (None,)):
        try:
            inspect.signature(metric).bind(None, None, *trace)
        except TypeError:
            continue
        except ValueError:  # some callables written in C have no signature
            pass
        return lambda example, prediction: as_float(metric(example, prediction, *trace))
    raise TypeError(
        "metric must be callable as metric(example, prediction, trace=None), got "
        f"{getattr(metric, '__name__', type(metric).__name__)}{inspect.signature(metric)}"
    )


def _measure(
    program: dspy.Module,
    name: str,
    lm: dspy.LM,
    evalset: Sequence[dspy.Example],
    score: ScoreFunction,
    num_threads: int | None,
    failure_score: float,
) -> tuple[tuple[float, ...], int]:
    """Scores in order, and how many examples raised."""
    with _bound_to(program, lm), dspy.context(lm=lm):
        found = evaluate(
            program, evalset, score, num_threads=num_threads, failure_score=failure_score
        )
    if found.failures:
        logger.warning(
            "%s: %d of %d raised, one with %s",
            name,
            found.num_failures,
            len(evalset),
            found.failures[-1],
        )
    return found.scores, found.num_failures


@contextmanager
def _bound_to(program: dspy.Module, lm: dspy.LM) -> Iterator[None]:
    """Binds every predictor to the LM while the block runs."""
    # program.predictors() leaves out frozen parts.
    found = [cast(dspy.Predict, one) for _, one in program.named_sub_modules(dspy.Predict)]
    before = [(predictor, predictor.lm) for predictor in found]
    try:
        for predictor, _ in before:
            predictor.lm = lm
        yield
    finally:
        for predictor, old in before:
            predictor.lm = old
