"""Running a program over rows, each once and scored, through ``dspy.Evaluate``.

What Evaluate alone does not give: the trace of each run, failures apart from scores, and no second
call of a row. With several threads Evaluate sends a row again that has taken two minutes; here the
second call waits for the first one's outcome. Evaluate, and so every DSPy callback, gets the rows,
the program's predictions, and the program itself but for its ``__call__``.

An ``Accountant`` is asked before each run, and told what the LMs of the run took; the caller's
``dspy.track_usage()`` has it too.
"""

import copy
import logging
import math
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import dspy
from dspy.utils.exceptions import AdapterParseError

from dspy_diffusion_infill.accounting import Accountant, Accounts, RunRefusedError
from dspy_diffusion_infill.usage import Usage, added

Trace = tuple[tuple[Any, dict[str, Any], Any], ...]
Score = Callable[[dspy.Example, Any], float]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A program's scores.

    Attributes:
        scores: the metric of each row, in order.
        traces: for each row the calls of the run, or None where it raised.
        failures: what the program or the metric raised, in the order of ``failed``.
        failed: the numbers of these rows.
        num_unread: failures where the LM answered, but not in a form that the adapter reads.
        usage: what the LMs of program and metric took; answers from DSPy's cache take nothing.
        length: characters of the program's instructions under search; 0 where nobody asked.
    """

    scores: tuple[float, ...]
    traces: tuple[Trace | None, ...]
    failures: tuple[str, ...] = ()
    failed: tuple[int, ...] = ()
    num_unread: int = 0
    usage: Usage = ()
    length: int = 0

    @property
    def mean(self) -> float:
        """Mean score; higher is better. NaN where nothing was scored."""
        return sum(self.scores) / len(self.scores) if self.scores else math.nan

    @property
    def num_failures(self) -> int:
        """Rows on which the program or the metric raised."""
        return len(self.failures)

    def followed_by(self, more: "Evaluation") -> "Evaluation":
        """The scores of these rows and then of other ones."""
        shift = len(self.scores)
        return Evaluation(
            scores=self.scores + more.scores,
            traces=self.traces + more.traces,
            failures=self.failures + more.failures,
            failed=self.failed + tuple(shift + number for number in more.failed),
            num_unread=self.num_unread + more.num_unread,
            usage=added(self.usage, more.usage),
        )

    def in_order(self, numbers: Sequence[int]) -> "Evaluation":
        """The same rows by number: ``numbers[k]`` is the number, from 0, of the k-th row here."""
        order = sorted(range(len(numbers)), key=lambda k: numbers[k])
        failures = dict(zip(self.failed, self.failures, strict=True))
        failed = {place: k for place, k in enumerate(order) if k in failures}
        return replace(
            self,
            scores=tuple(self.scores[k] for k in order),
            traces=tuple(self.traces[k] for k in order),
            failures=tuple(failures[k] for k in failed.values()),
            failed=tuple(failed),
        )


class TooManyFailuresError(Exception):
    """More than ``max_errors`` rows of one evaluation raised.

    Attributes:
        failures: all that were raised until then, in words.
    """

    def __init__(self, message: str, failures: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.failures = failures


def evaluate(
    program: dspy.Module,
    examples: Sequence[dspy.Example],
    score: Score,
    *,
    num_threads: int | None = None,
    max_errors: int | None = None,
    failure_score: float = 0.0,
    accountant: Accountant | None = None,
) -> Evaluation:
    """Runs and scores the program on every row.

    Args:
        program: called with each row's inputs.
        examples: at least one row.
        score: of a row and a prediction; higher is better.
        num_threads: of ``dspy.Evaluate``; None is DSPy's setting.
        max_errors: rows that may raise; None is any number. Answers that the adapter cannot read
            do not count: they are what other instructions may mend.
        failure_score: what a row counts on which the program or the score raised.
        accountant: may refuse runs; None allows all.

    Raises:
        RunRefusedError: the accountant refused a run; those that were under way have ended.
        TooManyFailuresError: more than ``max_errors`` rows raised.
    """
    runs = _Runs(program, examples, score, failure_score, max_errors, accountant)
    evaluator = dspy.Evaluate(
        devset=runs.rows,
        metric=runs.score,
        num_threads=num_threads,
        display_progress=False,
        max_errors=1,
        provide_traceback=False,
    )
    try:
        with _quiet_evaluate(), dspy.context(usage_tracker=None):
            results = evaluator(runs.recorded_program())
    except Exception as error:
        if runs.accounts.is_refused:
            runs.accounts.wait()
            raise RunRefusedError("a run was refused") from error
        failures = runs.errors()
        serious = [one for one in failures if not is_unreadable(one)]
        if max_errors is None or len(serious) <= max_errors:
            raise
        raise TooManyFailuresError(
            f"{len(serious)} of {len(examples)} examples raised, more than "
            f"max_errors={max_errors}; the last: {describe_error(serious[-1])}",
            tuple(map(describe_error, failures)),
        ) from error
    del results  # rounded; the runs hold what is exact
    return runs.evaluation()


def as_float(score: Any) -> float:
    """A metric's answer (float, bool, or ``Prediction(score=…)``) as a number.

    Raises:
        TypeError: it is None or another thing that is no number.
        ValueError: it is NaN or infinite, with which programs cannot be compared.
    """
    value = score.score if isinstance(score, dspy.Prediction) else score
    if value is None or isinstance(value, str):
        raise TypeError(
            f"the metric must return a number, a bool or dspy.Prediction(score=…), got {score!r}"
        )
    if not math.isfinite(number := float(value)):
        raise ValueError(f"the metric must return a finite number, got {number}")
    return number


def is_unreadable(error: Exception) -> bool:
    """Whether an LM did answer, but not in the form that the adapter reads."""
    return isinstance(error, AdapterParseError)


def describe_error(error: Exception) -> str:
    """The kind of an exception and the beginning of what it says, in one line."""
    first_line = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {first_line:.120}"


@dataclass(frozen=True, slots=True)
class _Run:
    """One call of the program: what it returned and how, or what it raised."""

    prediction: Any
    trace: Trace | None
    error: Exception | None


@dataclass(frozen=True, slots=True)
class _Outcome:
    """One row's score, with the trace of its run, or with what was raised."""

    score: float
    trace: Trace | None
    error: Exception | None


class _Runs:
    """The calls and scores of one evaluation.

    Attributes:
        rows: the examples, each an object of its own even where one is given twice.
        accounts: what each run takes.
    """

    def __init__(
        self,
        program: dspy.Module,
        examples: Sequence[dspy.Example],
        score: Score,
        failure_score: float,
        max_errors: int | None,
        accountant: Accountant | None,
    ) -> None:
        self.rows = [example.copy() for example in examples]
        self._program, self._score = program, score
        self._failure_score, self._max_errors = failure_score, max_errors
        self.accounts = Accounts(accountant)
        self._lock = threading.Lock()
        self._this_thread = threading.local()
        self._numbers = {id(row): number for number, row in enumerate(self.rows)}
        self._outcomes: dict[int, Future[_Outcome]] = {}
        # Rows with the very same inputs are one to the program, and may have different labels.
        self._num_alike: dict[tuple[Any, ...], int] = defaultdict(int)
        for row in self.rows:
            self._num_alike[_identity(dict(row.inputs().items()))] += 1
        self._calls: dict[tuple[Any, ...], list[Future[_Run]]] = defaultdict(list)

    def recorded_program(self) -> dspy.Module:
        """The program, whose calls are made by ``call``."""
        recorded = copy.copy(self._program)
        kind = type(self._program)
        namespace: dict[str, Any] = {
            "__module__": kind.__module__,
            "__qualname__": kind.__qualname__,
            "__call__": lambda program, **inputs: self.call(kind, program, inputs),
        }
        # By ``type.__new__``: the metaclass of DSPy's modules has its own way to make instances.
        recorded.__class__ = type.__new__(type(kind), kind.__name__, (kind,), namespace)
        return recorded

    def call(self, kind: type[dspy.Module], program: dspy.Module, inputs: dict[str, Any]) -> Any:
        """What the program returns, from its one call; an empty prediction where it raised."""
        key = _identity(inputs)
        with self._lock:
            same = self._calls[key]
            is_new = len(same) < self._num_alike[key]
            if is_new:
                same.append(Future())
            ended = same[-1] if is_new else next((f for f in same if not f.done()), same[0])
        if is_new:
            _settle(ended, lambda: self._accounted_run(kind, program, inputs))
        self._this_thread.run = run = ended.result()
        return run.prediction

    def score(self, example: dspy.Example, prediction: Any) -> float:
        """The score of a row's run, which this thread has just made.

        Raises:
            TooManyFailuresError: too many rows have raised by now.
        """
        number, run = self._numbers[id(example)], self._this_thread.run
        with self._lock:
            is_first = number not in self._outcomes
            ended = self._outcomes.setdefault(number, Future())
        try:
            if is_first:
                _settle(ended, lambda: self._scored(example, run))
        finally:
            self.accounts.close()
        outcome = ended.result()
        if self._max_errors is not None:
            serious = [error for error in self.errors() if not is_unreadable(error)]
            if len(serious) > self._max_errors:
                raise TooManyFailuresError("too many rows raised") from serious[-1]
        return outcome.score

    def errors(self) -> list[Exception]:
        """What the rows that have ended raised."""
        with self._lock:
            ended = [future.result() for future in self._outcomes.values() if future.done()]
        return [outcome.error for outcome in ended if outcome.error is not None]

    def evaluation(self) -> Evaluation:
        """The scores of all rows, in order."""
        ended = [self._outcomes[number].result() for number in range(len(self.rows))]
        errors = {number: one.error for number, one in enumerate(ended) if one.error is not None}
        return Evaluation(
            scores=tuple(outcome.score for outcome in ended),
            traces=tuple(outcome.trace for outcome in ended),
            failures=tuple(map(describe_error, errors.values())),
            failed=tuple(errors),
            num_unread=sum(map(is_unreadable, errors.values())),
            usage=self.accounts.usage,
        )

    def _scored(self, example: dspy.Example, run: _Run) -> _Outcome:
        if run.error is not None:
            return _Outcome(self._failure_score, None, run.error)
        try:
            with self.accounts.tracked():
                return _Outcome(self._score(example, run.prediction), run.trace, None)
        except Exception as error:
            return _Outcome(self._failure_score, None, error)

    def _accounted_run(
        self, kind: type[dspy.Module], program: dspy.Module, inputs: dict[str, Any]
    ) -> _Run:
        """One call, if the accountant allows it; it is settled when it has been scored."""
        self.accounts.open()
        try:
            return self._run(kind, program, inputs)
        except BaseException:  # Ctrl-C: it is not going to be scored
            self.accounts.close()
            raise

    def _run(self, kind: type[dspy.Module], program: dspy.Module, inputs: dict[str, Any]) -> _Run:
        """One call under a trace of its own."""
        try:
            with dspy.context(trace=[]), self.accounts.tracked() as tracker:
                prediction = kind.__call__(program, **inputs)
                # DSPy does so itself where no tracker is set.
                if dspy.settings.track_usage and self.accounts.outer is None:
                    if isinstance(prediction, dspy.Prediction):
                        prediction.set_lm_usage(tracker.get_total_tokens())
                return _Run(prediction, tuple(dspy.settings.trace), None)
        except Exception as error:
            return _Run(dspy.Prediction(), None, error)


def _settle(future: Future[Any], make: Callable[[], Any]) -> None:
    """Sets the future's result; who waits for it must not wait for ever after a Ctrl-C."""
    try:
        future.set_result(make())
    except BaseException as error:
        future.set_exception(error)
        raise


def _identity(inputs: dict[str, Any]) -> tuple[Any, ...]:
    """The same for the very same values, as objects."""
    return tuple(sorted((name, id(value)) for name, value in inputs.items()))


@contextmanager
def _quiet_evaluate() -> Iterator[None]:
    """Without what Evaluate logs of each row: the progress bar, and our errors, say it better."""
    names = ("dspy.evaluate.evaluate", "dspy.utils.parallelizer")
    loggers = [logging.getLogger(name) for name in names]
    levels = [one.level for one in loggers]
    for one, level in zip(loggers, (logging.WARNING, logging.CRITICAL), strict=True):
        one.setLevel(level)
    try:
        yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)
