"""k-fold use of a small trainset: every row is held out once, and none is lost to the search."""

import asyncio
import logging
import random
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import dspy
from dspy.teleprompt import Teleprompter

from dspy_diffusion_infill.optimizer.acceptance import paired_p
from dspy_diffusion_infill.optimizer.awaitable import compile_awaitable
from dspy_diffusion_infill.optimizer.budget import Caps, Spent
from dspy_diffusion_infill.optimizer.callbacks import SearchCallback
from dspy_diffusion_infill.optimizer.checks import check_data
from dspy_diffusion_infill.optimizer.diffusion_infill import DiffusionInfill
from dspy_diffusion_infill.optimizer.estimate import CostEstimate
from dspy_diffusion_infill.optimizer.metrics import labelled_fields
from dspy_diffusion_infill.optimizer.mlflow_callback import MLflowCallback, for_autolog
from dspy_diffusion_infill.optimizer.options import Scoring, default_auto
from dspy_diffusion_infill.optimizer.progress import ProgressBar
from dspy_diffusion_infill.optimizer.results import DetailedResults, Scores, results_of
from dspy_diffusion_infill.optimizer.row_checks import place_of
from dspy_diffusion_infill.optimizer.spending import CapTooLowError
from dspy_diffusion_infill.programs import copy_program, output_fields
from dspy_diffusion_infill.value_checks import check_whole

logger = logging.getLogger(__name__)

_Split = tuple[list[dspy.Example], list[dspy.Example]]
_FEWEST_LEFT = 2  # rows of a search


@dataclass(frozen=True, slots=True)
class FoldScores:
    """What the searches of all folds came to.

    Attributes:
        folds: the record of each fold's search, in order. Its ``holdout_before`` and
            ``holdout_after`` are of the rows that this search did not see. The last folds are not
            there where those before them left too little of a cap.
        chosen: number of the fold, from 0, whose program is the result; None where the student
            scores as high on all rows.
    """

    folds: tuple[DetailedResults, ...]
    chosen: int | None

    @property
    def scores_before(self) -> Scores:
        """The student's metric of each row, fold after fold."""
        return tuple(score for one in self.folds for score in one.holdout_scores_before)

    @property
    def scores_after(self) -> Scores:
        """Each row's metric under the program whose search did not see it, in the same order."""
        return tuple(score for one in self.folds for score in one.holdout_scores_after)

    @property
    def gain(self) -> float:
        """Mean gain on rows that were not seen; 0 where a cap left no room to score any."""
        return sum(self.scores_after) / max(1, len(self.scores_after)) - (
            sum(self.scores_before) / max(1, len(self.scores_before))
        )

    @property
    def p_value(self) -> float:
        """The chance of such a gain if the search brought nothing (``acceptance.paired_p``)."""
        return paired_p(self.scores_after, self.scores_before)

    def __str__(self) -> str:
        gains = ", ".join(
            "not scored"
            if one.holdout_before is None or one.holdout_after is None
            else f"{one.holdout_before:.1%} → {one.holdout_after:.1%}"
            for one in self.folds
        )
        return (
            f"{100 * self.gain:+.1f} points on {len(self.scores_after)} rows that were not seen "
            f"(p = {self.p_value:.2g}); by fold: {gains}"
        )


class CrossValidation(Teleprompter):
    """Searches once a fold, each time on the rows of the others, and keeps the best program.

    For 10 to 40 rows, of which none can be spared for a ``holdout``. The rows of a fold take no
    part in its search and are scored at its end, so that all rows together tell what the search
    brings (``better.fold_scores``). That is an estimate of the search; the program that is returned
    was chosen among the folds' by the mean over all rows, most of which its own search saw.
    """

    def __init__(self, optimizer: DiffusionInfill, *, folds: int = 5) -> None:
        """Splits the budget of the optimizer.

        Args:
            optimizer: whose options each search has. Its caps are for all folds together: a fold
                may take an equal share of what is left. Each fold has a folder in its ``log_dir``,
                a progress bar and an MLflow run; callbacks hear of one search after another.
            folds: how many, at least 2.

        Raises:
            TypeError: the optimizer is none, or ``folds`` is no whole number.
            ValueError: ``folds`` is below 2, or the optimizer has a ``holdout`` of its own.
        """
        super().__init__()
        if not isinstance(optimizer, DiffusionInfill):
            raise TypeError(f"optimizer must be a DiffusionInfill, got {type(optimizer).__name__}")
        if optimizer.holdout not in (None, 0.0):
            raise ValueError(
                "each fold is held out in turn, and the optimizer has a holdout of its own: "
                "leave it out"
            )
        check_whole("folds", folds, least=2)
        self.optimizer, self.folds = optimizer, folds

    def get_params(self) -> dict[str, Any]:
        """The optimizer's options, and ``folds``."""
        return {**self.optimizer.get_params(), "folds": self.folds}

    # trainset also by position, as for ``DiffusionInfill``; no valset: each row is scored on.
    def compile(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        student: dspy.Module,
        trainset: Sequence[dspy.Example],
        *,
        teacher: dspy.Module | list[dspy.Module] | None = None,
    ) -> dspy.Module:
        """Searches on each fold's other rows; the student is never changed.

        Args:
            student: see ``DiffusionInfill.compile``.
            trainset: at least three rows, and as many as folds.
            teacher: see ``DiffusionInfill.compile``.

        Returns:
            The fold's program, or a copy of the student, with the highest mean over all rows, and
            ``fold_scores``. A fold's program carries ``detailed_results`` of its own search;
            ``total_calls`` counts the program runs of all.

        Raises:
            TypeError: see ``DiffusionInfill.compile``; so are the other errors. An error that ends
                a search carries the best program of all folds so far as ``best_program``, and its
                record as ``detailed_results``; where that is the student, that of the last search.
            ValueError: there are too few rows for the folds, two rows are the same, or a share of a
                cap does not cover what a fold must run: all before any call.
        """
        started = time.monotonic()
        splits = self._splits(student, trainset, teacher)
        left = self._caps(len(trainset))
        self._estimates(student, splits)  # what is wrong with any fold is an error here
        left = left.less(Spent(seconds=time.monotonic() - started))
        programs: list[dspy.Module] = []
        with _best_of_all(student, programs):
            for number, (kept, held) in enumerate(splits):
                name = self._name(number)
                logger.info("%s: %d rows held out", name, len(held))
                search = self._search(number, held, _share(left, self.folds - number))
                try:
                    programs.append(search.compile(student, kept, teacher=teacher))
                except CapTooLowError as error:  # the runs before took more than was foreseen
                    logger.warning("%s is the first that is left out: %s", name, error)
                    break
                left = left.less(results_of(programs[-1]).spent)
            return _chosen(student, programs)

    async def acompile(
        self,
        student: dspy.Module,
        trainset: Sequence[dspy.Example],
        *,
        teacher: dspy.Module | list[dspy.Module] | None = None,
    ) -> dspy.Module:
        """As ``compile``, in a thread: see ``DiffusionInfill.acompile``."""
        return await asyncio.to_thread(
            compile_awaitable, self.compile, student, trainset, teacher=teacher
        )

    def estimate(
        self, student: dspy.Module, trainset: Sequence[dspy.Example]
    ) -> list[CostEstimate]:
        """The most that each fold's search can cost; no LM is called."""
        return self._estimates(student, self._splits(student, trainset, None))

    def _estimates(self, student: dspy.Module, splits: Sequence[_Split]) -> list[CostEstimate]:
        """Of each fold with an equal share of the caps.

        Raises:
            ValueError: as ``DiffusionInfill.estimate``, for any of the folds.
        """
        share = _share(self._caps(sum(map(len, splits[0]))), self.folds)
        try:
            return [
                self._search(number, held, share).estimate(student, kept)
                for number, (kept, held) in enumerate(splits)
            ]
        except CapTooLowError as error:
            raise CapTooLowError(
                f"{self.folds} folds share the caps, and with an equal share {error}; or give "
                "fewer folds"
            ) from error

    def _name(self, number: int) -> str:
        """What people call a fold."""
        return f"fold {number + 1} of {self.folds}"

    def _search(self, number: int, held: list[dspy.Example], caps: Caps) -> DiffusionInfill:
        """The optimizer of a fold."""
        folder = self.optimizer.log_dir
        return self.optimizer.with_options(
            **asdict(caps),
            auto=None,
            holdout=held,
            log_dir=None if folder is None else Path(folder) / f"fold-{number + 1}",
            display_progress=False,  # its bar is a callback, which has its name
            search_callbacks=self._callbacks(self._name(number)),
        )

    def _callbacks(self, name: str) -> tuple[SearchCallback, ...]:
        """Those of the optimizer, and a bar; a fold's curves in MLflow are a run of their own."""
        given = self.optimizer.search_callbacks
        bar = (ProgressBar(name),) if self.optimizer.display_progress else ()
        every = (*bar, *given, *for_autolog(given))
        return tuple(one.named(name) if isinstance(one, MLflowCallback) else one for one in every)

    def _caps(self, num_rows: int) -> Caps:
        """What all folds together may spend."""
        optimizer = self.optimizer
        budget = Scoring(metric=None, caps=optimizer.caps, auto=optimizer.auto)
        return budget.for_rows(num_rows, default=default_auto(optimizer.order)).caps

    def _splits(
        self,
        student: dspy.Module,
        trainset: Sequence[dspy.Example],
        teacher: dspy.Module | list[dspy.Module] | None,
    ) -> list[_Split]:
        """For each fold the rows that its search has, and those that are held out from it."""
        has_lm = self.optimizer.validation_lm is not None
        rows, _, _ = check_data(student, trainset, None, teacher, has_lm=has_lm)
        if self.optimizer.metric is None:  # of a row that lacks labels, tells its number here
            labelled_fields(output_fields(student), {"trainset": rows})
        if len(rows) < (fewest := max(self.folds, _FEWEST_LEFT + 1)):
            raise ValueError(
                f"folds={self.folds} needs {fewest} rows or more, and the trainset has "
                f"{len(rows)}: give {'more rows' if fewest > self.folds else 'fewer folds'}"
            )
        for number, row in enumerate(rows):
            if (first := place_of(row, rows)) is not None and first < number:
                raise ValueError(
                    f"trainset[{first}] and trainset[{number}] are the same: one of them would be "
                    "in a search that the other is held out from, so leave it out"
                )
        fold_of = [number % self.folds for number in range(len(rows))]
        random.Random(f"{self.optimizer.seed}/folds").shuffle(fold_of)
        numbered = list(zip(rows, fold_of, strict=True))
        return [
            (
                [row for row, fold in numbered if fold != k],
                [row for row, fold in numbered if fold == k],
            )
            for k in range(self.folds)
        ]


def _share(left: Caps, folds: int) -> Caps:
    """An equal share of what is left for each of so many folds."""
    calls, tokens, cost, seconds = astuple(left)
    return Caps(
        max_metric_calls=None if calls is None else calls // folds,
        max_lm_tokens=None if tokens is None else tokens // folds,
        max_cost=None if cost is None else cost / folds,
        max_seconds=None if seconds is None else seconds / folds,
    )


@contextmanager
def _best_of_all(student: dspy.Module, programs: list[dspy.Module]) -> Generator[None]:
    """An exception that ends a fold's search carries the best program of those before it too."""
    try:
        yield
    except BaseException as error:
        if programs:
            found = [*programs, *filter(None, [vars(error).get("best_program")])]
            vars(error)["best_program"] = best = _chosen(student, found)
            vars(error)["detailed_results"] = vars(best).get(
                "detailed_results", results_of(found[-1])
            )
        raise


def _chosen(student: dspy.Module, programs: Sequence[dspy.Module]) -> dspy.Module:
    """The program with the highest mean over all rows, with the scores of all folds."""
    records = tuple(map(results_of, programs))
    gains = [_gain(one) for one in records]
    best = max(range(len(programs)), key=gains.__getitem__)
    chosen = best if gains[best] > 0 else None
    program = copy_program(student) if chosen is None else programs[chosen]
    vars(program).update(
        fold_scores=FoldScores(records, chosen),
        total_calls=sum(one.metric_calls for one in records),
    )
    return program


def _gain(one: DetailedResults) -> float:
    """The mean gain of a fold's program over all rows that it was scored on."""
    after = (*one.scores_after, *one.holdout_scores_after)
    before = (*one.scores_before, *one.holdout_scores_before)
    return (sum(after) - sum(before)) / max(1, len(after))
