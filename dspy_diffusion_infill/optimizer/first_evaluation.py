"""What is paid for before the first trial: the student's scores, and traced runs."""

import logging
from dataclasses import dataclass
from functools import partial

from dspy_diffusion_infill.journal import Journal
from dspy_diffusion_infill.optimizer.plan import Plan
from dspy_diffusion_infill.optimizer.traces import (
    Worked,
    names_in_traces,
    work_examples,
    worked_from_json,
    worked_to_json,
)
from dspy_diffusion_infill.optimizer.validation import Validator
from dspy_diffusion_infill.runs import Evaluation

logger = logging.getLogger(__name__)

_BASELINE = "baseline"  # keys in the journal
_TRACED = "traced runs"
_WORKED = "worked examples"


@dataclass(frozen=True, slots=True)
class FirstEvaluation:
    """What is known before the first trial.

    Attributes:
        baseline: the student on the valset.
        worked: the worked examples of each predictor.
        is_traced: whether some of them come from runs.
    """

    baseline: Evaluation
    worked: Worked
    is_traced: bool

    @property
    def is_hopeless(self) -> bool:
        """Whether every run of the student failed before an LM had answered."""
        num_errors = self.baseline.num_failures - self.baseline.num_unread
        return num_errors == len(self.baseline.scores)


def first_evaluation(plan: Plan, validator: Validator, journal: Journal) -> FirstEvaluation:
    """Scores the student, and runs the trainset where responses must be traced.

    Raises:
        TooManyFailuresError: too many rows raised.
    """
    anew = plan.traces_wanted and journal.get(_WORKED) is None  # the journal has no traces
    baseline = validator.evaluate_once(
        plan.base, plan.valset, journal, _BASELINE, about=_BASELINE, anew=anew
    )
    if not plan.traces_wanted:
        return FirstEvaluation(baseline, plan.labelled, is_traced=False)
    runner, traced = plan.teacher or plan.base, baseline
    if not plan.baseline_is_traced:
        traced = validator.evaluate_once(
            runner, plan.trainset, journal, _TRACED, about=_TRACED, anew=anew
        )
    read = partial(worked_from_json, program=plan.base, rows=plan.trainset)
    if (worked := journal.read(_WORKED, read)) is not None:
        return FirstEvaluation(baseline, worked, is_traced=True)
    worked = work_examples(plan.base, plan.names, plan.trainset, traced, names_in_traces(runner))
    plain = worked_to_json(worked, plan.base, plan.trainset)
    if plain is not None:
        journal.put(_WORKED, plain, about=_WORKED)
    elif journal.path is not None:
        logger.warning("a step's values cannot be journaled: a resumed search runs them again")
    return FirstEvaluation(baseline, worked, is_traced=True)
