"""Prompt transfer: one program's instructions under several LMs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import dspy

from dspy_diffusion_infill.evaluation.statistics import Comparison, compare_means


@dataclass(frozen=True, slots=True)
class TransferRow:
    """The program under one LM.

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
            lines.append("| " + " | ".join(cells) + " |")
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

    The program's own LMs are set aside for the duration of each measurement, and put back.

    Args:
        program: any DSPy program.
        lms: LMs by the name that the table shall show, or LMs, shown by their model's name.
        evalset: examples with inputs set.
        metric: metric(example, prediction, trace=None); higher is better.
        num_threads: of ``dspy.Evaluate``.
        failure_score: what an example that raised counts.

    Raises:
        ValueError: no LMs or no examples.
    """
    named = lms if isinstance(lms, Mapping) else {lm.model: lm for lm in lms}
    if not named or not evalset:
        raise ValueError(
            f"transfer needs LMs and examples, got {len(named)} LMs and {len(evalset)} examples"
        )
    measured = {
        name: _measure(program, lm, evalset, metric, num_threads, failure_score)
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


def _measure(
    program: dspy.Module,
    lm: dspy.LM,
    evalset: Sequence[dspy.Example],
    metric: Callable[..., Any],
    num_threads: int | None,
    failure_score: float,
) -> tuple[tuple[float, ...], int]:
    """Scores in order, and how many examples raised."""

    def run(**inputs: Any) -> dspy.Prediction:
        try:
            return dspy.Prediction(outcome=program(**inputs))
        except Exception as error:
            return dspy.Prediction(outcome=None, error=error)

    def score(example: dspy.Example, run: dspy.Prediction) -> float:
        if "error" in run:
            failures.append(run.error)
            return failure_score
        try:
            value = metric(example, run.outcome)
        except Exception as error:
            failures.append(error)
            return failure_score
        return float(value.score if isinstance(value, dspy.Prediction) else value)

    failures: list[Exception] = []
    evaluate = dspy.Evaluate(
        devset=list(evalset), metric=score, num_threads=num_threads, display_progress=False
    )
    with _bound_to(program, lm), dspy.context(lm=lm):
        results = evaluate(run).results  # pyright: ignore[reportArgumentType] - any callable will do
    return tuple(float(value) for *_, value in results), len(failures)


@contextmanager
def _bound_to(program: dspy.Module, lm: dspy.LM) -> Iterator[None]:
    """Binds every predictor to the LM, and puts the old ones back."""
    before = [(predictor, predictor.lm) for predictor in program.predictors()]
    try:
        for predictor, _ in before:
            predictor.lm = lm
        yield
    finally:
        for predictor, old in before:
            predictor.lm = old
