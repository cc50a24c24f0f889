"""Rows that take no part in a search: what its result is worth on others than it was chosen on."""

import logging
import random
from collections.abc import Sequence
from typing import Any

import dspy

from dspy_diffusion_infill.optimizer.budget import BudgetSpentError
from dspy_diffusion_infill.optimizer.checks import check_examples
from dspy_diffusion_infill.optimizer.options import Holdout
from dspy_diffusion_infill.optimizer.row_checks import check_rows, place_of
from dspy_diffusion_infill.optimizer.search import Search
from dspy_diffusion_infill.programs import with_instructions
from dspy_diffusion_infill.value_checks import check_number

logger = logging.getLogger(__name__)

_FEWEST_LEFT = 2
_SHARE, _FEWEST_ROWS = 0.25, 40  # by default: ten rows or more, since fewer say little


def check_holdout(holdout: Any) -> Holdout:
    """Raises unless it is None, a number from 0 to a half, or a list of rows, which are copied."""
    if isinstance(holdout, Sequence) and not isinstance(holdout, str | bytes):
        if not holdout:
            raise ValueError("holdout is an empty list: give rows, or leave it out")
        return list(holdout)
    if holdout is None:
        return None
    allowed = "a list of dspy.Example or a number from 0 to 0.5"
    check_number("holdout", holdout, allowed, lambda given: 0 <= given <= 0.5)
    return float(holdout)


def check_held_out(
    holdout: Holdout, student: dspy.Module, **taking_part: Sequence[dspy.Example]
) -> None:
    """Raises TypeError or ValueError if one of such rows is wrong, or takes part after all."""
    if not isinstance(holdout, Sequence):
        return
    check_rows(check_examples(holdout, student, name="holdout"), student, name="holdout")
    for name, rows in taking_part.items():
        for number, row in enumerate(holdout):
            if (place := place_of(row, rows)) is not None:
                raise ValueError(
                    f"holdout[{number}] is {name}[{place}] too: a row of the search says "
                    "nothing of others, so leave it out of one of them"
                )


def split_holdout(
    rows: Sequence[dspy.Example], holdout: Holdout, *, seed: int
) -> tuple[list[dspy.Example], list[dspy.Example]]:
    """(the rows that stay, in order; those that are held out): other rows, or a share of these.

    A share is drawn by the seed; None is a quarter of 40 rows or more. All stay where fewer than
    one row would be held out, or fewer than two would stay.
    """
    if isinstance(holdout, Sequence):
        return list(rows), list(holdout)
    share = holdout
    if share is None:
        share = _SHARE if len(rows) >= _FEWEST_ROWS else 0.0
    count = int(len(rows) * share)
    if count < 1 or len(rows) - count < _FEWEST_LEFT:
        if share > 0:
            logger.warning("holdout=%s of %d rows holds none out", share, len(rows))
        return list(rows), []
    held = set(random.Random(f"{seed}/holdout").sample(range(len(rows)), count))
    kept = [row for number, row in enumerate(rows) if number not in held]
    return kept, [rows[number] for number in sorted(held)]


def score_holdout(search: Search) -> None:
    """Scores the student and the best program once on the rows that were held out.

    What these runs may take was kept back from the caps. Where the time is over, or runs took more
    than was expected, the result says nothing of these rows.

    Raises:
        TooManyFailuresError: too many rows raised.
    """
    plan, validator = search.plan, search.validator
    if not plan.holdout or search.first is None:
        return
    validator.budget.reopen(plan.scoring.caps)
    programs = {"holdout, before": plan.base}
    if any(trial.accepted for trial in search.trials):
        programs["holdout, after"] = with_instructions(plan.base, search.instructions())
    try:
        found = [
            validator.evaluate_once(program, plan.holdout, search.journal, key, about="holdout")
            for key, program in programs.items()
        ]
    except BudgetSpentError as error:
        logger.warning("the rows that were held out are not scored: %s", error)
        return
    search.holdout = (found[0], found[-1])
