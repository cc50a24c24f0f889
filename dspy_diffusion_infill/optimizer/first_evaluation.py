"""What is paid for before the first trial: the student's scores, and traced runs."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import dspy

from dspy_diffusion_infill.journal import Journal
from dspy_diffusion_infill.optimizer.prepare import Plan
from dspy_diffusion_infill.optimizer.traces import (
    Worked,
    work_examples,
    worked_from_json,
    worked_to_json,
)
from dspy_diffusion_infill.optimizer.validation import (
    Validator,
    evaluation_from_json,
    evaluation_to_json,
)
from dspy_diffusion_infill.programs import all_predictors
from dspy_diffusion_infill.runs import Evaluation

logger = logging.getLogger(__name__)

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
    if not plan.traces_wanted:
        baseline = _evaluate("baseline", plan.base, plan.valset, validator, journal)
        return FirstEvaluation(baseline, plan.labelled, is_traced=False)
    known = journal.get(_WORKED)
    again = known is None
    baseline = _evaluate("baseline", plan.base, plan.valset, validator, journal, anew=again)
    runner, traced = plan.teacher or plan.base, baseline
    if not plan.baseline_is_traced:
        traced = _evaluate("traced runs", runner, plan.trainset, validator, journal, anew=again)
    if known is not None:
        return FirstEvaluation(
            baseline, worked_from_json(known, plan.base, plan.trainset), is_traced=True
        )
    names = {id(predictor): name for name, predictor in all_predictors(runner).items()}
    worked = work_examples(plan.base, plan.names, plan.trainset, traced, names)
    plain = worked_to_json(worked, plan.base, plan.trainset)
    if plain is not None:
        journal.put(_WORKED, plain, about=_WORKED)
    elif journal.path is not None:
        logger.warning("a step's values cannot be journaled: a resumed search runs them again")
    return FirstEvaluation(baseline, worked, is_traced=True)


def _evaluate(
    key: str,
    program: dspy.Module,
    rows: Sequence[dspy.Example],
    validator: Validator,
    journal: Journal,
    *,
    anew: bool = False,
) -> Evaluation:
    """From the journal where it has it, without traces; else, or ``anew``, by running."""
    known = journal.get(key)
    if known is not None and not anew:
        evaluation = evaluation_from_json(known)
        validator.replay(evaluation)
        return evaluation
    evaluation = validator.evaluate(program, rows)
    journal.put(key, evaluation_to_json(evaluation), about=key)
    return evaluation
