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
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import dspy

from dspy_diffusion_infill.accounting import Accountant, Accounts, RunRefusedError
from dspy_diffusion_infill.outcomes import Evaluation, Failure, Outcome, Trace
from dspy_diffusion_infill.shortening import in_short
from dspy_diffusion_infill.time_limits import within

ScoreFunction = Callable[[dspy.Example, Any], float]


class TooManyFailuresError(Exception):
    """More than ``max_errors`` rows of one evaluation raised.

    Attributes:
        failures: all that were raised until then, in words.
    """

    def __init__(self, message: str, failures: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.failures = failures


class _OverError(BaseException):
    """The evaluation has ended. No ``Exception``: DSPy would log one for each row that is left."""


def evaluate(
    program: dspy.Module,
    examples: Sequence[dspy.Example],
    score: ScoreFunction,
    *,
    num_threads: int | None = None,
    max_errors: int | None = None,
    failure_score: float = 0.0,
    run_timeout: float | None = None,
    accountant: Accountant | None = None,
    known: Mapping[int, Outcome] | None = None,
    on_end: Callable[[int, Outcome], None] | None = None,
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
        run_timeout: seconds that the program may take on a row, and the score after it; a row on
            which one of them takes longer is a failure. None is no limit.
        accountant: may refuse runs; None allows all.
        known: how rows ended, by number, that need no run.
        on_end: is called with the number and outcome of each run as it ends, by several threads,
            before the accountant hears of it. What it raises ends the evaluation.

    Raises:
        RunRefusedError: the accountant refused a run; those that were under way have ended.
        TooManyFailuresError: more than ``max_errors`` rows raised.
    """
    runs = _Runs(
        program, score, failure_score, max_errors, run_timeout, Accounts(accountant), on_end
    )
    runs.take(examples, known or {})
    runs.check_failures()
    if runs.rows:
        _run_all(runs, num_threads)
    return runs.evaluation()


def _run_all(runs: "_Runs", num_threads: int | None) -> None:
    """Has Evaluate run the rows; raises as ``evaluate``."""
    evaluator = dspy.Evaluate(
        devset=runs.rows,
        metric=runs.score,
        num_threads=num_threads,
        display_progress=False,
        max_errors=1,
        provide_traceback=False,
    )
    try:
        # What it returns is rounded; the runs hold what is exact.
        with _quiet_evaluate(), dspy.context(usage_tracker=None):
            evaluator(runs.recorded_program())
    except Exception as error:
        if runs.accounts.is_refused:
            runs.accounts.wait()
            raise RunRefusedError("a run was refused") from error
        if runs.broken is not None:
            raise runs.broken from error
        runs.check_failures()
        raise
    finally:
        runs.is_over = True  # also where a signal ended it, of which DSPy's threads may not know


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


@dataclass(frozen=True, slots=True)
class _Run:
    """One call of the program: what it returned and how, or what it raised."""

    prediction: Any
    trace: Trace | None
    error: Exception | None


class _Runs:
    """The calls and scores of one evaluation.

    Attributes:
        rows: the examples that must be run, each an object of its own even where one is given
            twice.
        accounts: what each run takes.
        broken: what ``on_end`` raised; None where nothing was.
        is_over: no run begins any more.
    """

    def __init__(
        self,
        program: dspy.Module,
        score: ScoreFunction,
        failure_score: float,
        max_errors: int | None,
        run_timeout: float | None,
        accounts: Accounts,
        on_end: Callable[[int, Outcome], None] | None,
    ) -> None:
        self.rows: list[dspy.Example] = []
        self.accounts = accounts
        self.broken: Exception | None = None
        self.is_over = False
        self._program, self._score, self._on_end = program, score, on_end
        self._failure_score, self._max_errors = failure_score, max_errors
        self._run_timeout = run_timeout
        self._cause: Exception | None = None
        self._lock = threading.Lock()
        self._this_thread = threading.local()
        self._numbers: dict[int, int] = {}
        self._outcomes: list[Future[Outcome]] = []
        self._scored: set[int] = set()
        # Rows with the very same inputs are one to the program, and may have different labels.
        self._num_alike: dict[tuple[Any, ...], int] = defaultdict(int)
        self._calls: dict[tuple[Any, ...], list[Future[_Run]]] = defaultdict(list)

    def take(self, examples: Sequence[dspy.Example], known: Mapping[int, Outcome]) -> None:
        """Takes the rows, of which those that are known need no run."""
        self._outcomes = [Future() for _ in examples]
        for number, example in enumerate(examples):
            if number in known:
                self._outcomes[number].set_result(known[number])
                continue
            self.rows.append(row := example.copy())
            self._numbers[id(row)] = number
            self._num_alike[_identity(dict(row.inputs().items()))] += 1

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
            is_first = number not in self._scored
            self._scored.add(number)
        ended = self._outcomes[number]
        try:
            if is_first:
                _settle(ended, lambda: self._ended(number, example, run))
        finally:
            self.accounts.close()
        score = ended.result().score
        self.check_failures()
        return self._failure_score if score is None else score

    def check_failures(self) -> None:
        """Raises TooManyFailuresError if too many rows have raised by now."""
        ended = [one.result() for one in self._outcomes if one.done() and not one.exception()]
        failures = [one.failure for one in ended if one.failure is not None]
        serious = [failure for failure in failures if failure.kind != "unread"]
        if self._max_errors is not None and len(serious) > self._max_errors:
            raise TooManyFailuresError(
                f"{len(serious)} of {len(self._outcomes)} examples raised, more than "
                f"max_errors={self._max_errors}; the last: {serious[-1].text}",
                tuple(failure.text for failure in failures),
            ) from self._cause

    def evaluation(self) -> Evaluation:
        """The scores of all rows, in order."""
        return Evaluation.of([one.result() for one in self._outcomes], self._failure_score)

    def _ended(self, number: int, example: dspy.Example, run: _Run) -> Outcome:
        outcome = replace(self._outcome(example, run), usage=self.accounts.here)
        if self._on_end is not None:
            try:
                self._on_end(number, outcome)
            except Exception as error:
                self.broken = error
                raise
        return outcome

    def _outcome(self, example: dspy.Example, run: _Run) -> Outcome:
        error = run.error
        if error is None:
            try:
                with self.accounts.tracked():
                    score = within(self._run_timeout, lambda: self._score(example, run.prediction))
                    return Outcome(score, run.trace, answer=in_short(run.prediction))
            except Exception as raised:
                error = raised
        self._cause = error
        return Outcome(None, failure=Failure.of(error))

    def _accounted_run(
        self, kind: type[dspy.Module], program: dspy.Module, inputs: dict[str, Any]
    ) -> _Run:
        """One call, if the accountant allows it; it is settled when it has been scored."""
        if self.is_over:
            raise _OverError
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
                prediction = within(self._run_timeout, lambda: kind.__call__(program, **inputs))
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
