"""How runs of a program over rows end: each one, and all together."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from dspy.utils.exceptions import (
    AdapterParseError,
    LMError,
    LMInvalidRequestError,
    LMRateLimitError,
)

from dspy_diffusion_infill.time_limits import OutOfTimeError
from dspy_diffusion_infill.usage import Usage, added

Trace = tuple[tuple[Any, Mapping[str, Any], Any], ...]
FailureKind = Literal["raised", "unread", "unanswered"]


@dataclass(frozen=True, slots=True)
class Failure:
    """What the program or the metric raised.

    Attributes:
        text: the exception's kind and the beginning of what it says, in one line.
        kind: ``"unread"`` where the LM answered, but not in a form that the adapter reads;
            ``"unanswered"`` where an LM gave no answer, whatever it was asked; else ``"raised"``.
        is_silent: whether this is what a server that is gone looks like: unanswered, and not
            because it is asked too often. No journal knows it.
    """

    text: str
    kind: FailureKind = "raised"
    is_silent: bool = field(default=False, compare=False)

    @classmethod
    def of(cls, error: Exception) -> "Failure":
        """An exception in words."""
        if isinstance(error, AdapterParseError):
            return cls(describe_error(error), "unread")
        is_unanswered = isinstance(error, LMError | OutOfTimeError)
        if not is_unanswered or isinstance(error, LMInvalidRequestError):
            return cls(describe_error(error))
        is_silent = not isinstance(error, LMRateLimitError)
        return cls(describe_error(error), "unanswered", is_silent)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the run of one row ended.

    Attributes:
        score: the metric's; None where the run failed.
        trace: the calls of the run; None where it failed.
        failure: what was raised; None where nothing was.
        usage: what the LMs of program and metric took; answers from DSPy's cache take nothing.
        answer: what the program returned, as short text; None where it failed, and in a journal.
    """

    score: float | None
    trace: Trace | None = None
    failure: Failure | None = None
    usage: Usage = ()
    answer: str | None = None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A program's scores.

    Attributes:
        scores: the metric of each row, in order.
        traces: for each row the calls of the run, or None where it raised.
        failures: what the program or the metric raised, in the order of ``failed``.
        failed: the numbers of these rows.
        kinds: of what kind each failure is.
        usage: what the LMs of program and metric took; answers from DSPy's cache take nothing.
        length: characters of the program's instructions under search; 0 where nobody asked.
        answers: what the program returned for each row, or what was raised, as short text; None
            where the run is from a journal.
    """

    scores: tuple[float, ...]
    traces: tuple[Trace | None, ...]
    failures: tuple[str, ...] = ()
    failed: tuple[int, ...] = ()
    kinds: tuple[FailureKind, ...] = ()
    usage: Usage = ()
    length: int = 0
    answers: tuple[str | None, ...] = ()

    @classmethod
    def of(cls, outcomes: Sequence[Outcome], failure_score: float) -> "Evaluation":
        """The outcomes of all rows, in order."""
        failures = {n: one.failure for n, one in enumerate(outcomes) if one.failure is not None}
        return cls(
            scores=tuple(failure_score if o.score is None else o.score for o in outcomes),
            traces=tuple(outcome.trace for outcome in outcomes),
            failures=tuple(failure.text for failure in failures.values()),
            failed=tuple(failures),
            kinds=tuple(failure.kind for failure in failures.values()),
            usage=added(*(outcome.usage for outcome in outcomes)),
            answers=tuple(o.answer if o.failure is None else o.failure.text for o in outcomes),
        )

    @classmethod
    def mean_of(cls, repeats: Sequence["Evaluation"]) -> "Evaluation":
        """Several evaluations of one program on the same rows as one, with the mean scores.

        A row's trace and answer are those of the run whose score is nearest to the mean. It failed
        where all of its runs did.
        """
        if len(repeats) == 1:
            return repeats[0]
        rows = zip(*(one._outcomes() for one in repeats), strict=True)
        merged = cls.of([_typical(*own) for own in rows], math.nan)
        return replace(merged, usage=added(*(one.usage for one in repeats)))

    @property
    def mean(self) -> float:
        """Mean score; higher is better. NaN where nothing was scored."""
        return sum(self.scores) / len(self.scores) if self.scores else math.nan

    @property
    def num_failures(self) -> int:
        """Rows on which the program or the metric raised."""
        return len(self.failures)

    @property
    def num_unread(self) -> int:
        """Failures where the LM answered, but not in a form that the adapter reads."""
        return self.kinds.count("unread")

    @property
    def num_unanswered(self) -> int:
        """Failures where an LM gave no answer."""
        return self.kinds.count("unanswered")

    def followed_by(self, more: "Evaluation") -> "Evaluation":
        """The scores of these rows and then of other ones."""
        shift = len(self.scores)
        return Evaluation(
            scores=self.scores + more.scores,
            traces=self.traces + more.traces,
            failures=self.failures + more.failures,
            failed=self.failed + tuple(shift + number for number in more.failed),
            kinds=self.kinds + more.kinds,
            usage=added(self.usage, more.usage),
            answers=self.answers + more.answers,
        )

    def in_order(self, numbers: Sequence[int]) -> "Evaluation":
        """The same rows by number: ``numbers[k]`` is the number, from 0, of the k-th row here."""
        order = sorted(range(len(numbers)), key=lambda k: numbers[k])
        places = {row: k for k, row in enumerate(self.failed)}
        failed = {place: places[k] for place, k in enumerate(order) if k in places}
        return replace(
            self,
            scores=tuple(self.scores[k] for k in order),
            traces=tuple(self.traces[k] for k in order),
            failures=tuple(self.failures[k] for k in failed.values()),
            failed=tuple(failed),
            kinds=tuple(self.kinds[k] for k in failed.values()),
            answers=tuple(self.answers[k] for k in order) if self.answers else (),
        )

    def _outcomes(self) -> list[Outcome]:
        """How each row ended, with the score that counts; without what it took."""
        told = zip(self.failed, map(Failure, self.failures, self.kinds), strict=True)
        failures, answers = dict(told), self.answers or (None,) * len(self.scores)
        rows = enumerate(zip(self.scores, self.traces, answers, strict=True))
        return [
            Outcome(score, trace, failures.get(number), answer=answer)
            for number, (score, trace, answer) in rows
        ]


def _typical(*runs: Outcome) -> Outcome:
    """Of a row's runs the one that is nearest to their mean score, which it is given."""
    mean = sum(run.score or 0.0 for run in runs) / len(runs)
    nearest = min(runs, key=lambda run: (run.failure is not None, abs((run.score or 0.0) - mean)))
    return replace(nearest, score=mean)


def describe_error(error: Exception) -> str:
    """The kind of an exception and the beginning of what it says, in one line."""
    first_line = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {first_line:.120}"
