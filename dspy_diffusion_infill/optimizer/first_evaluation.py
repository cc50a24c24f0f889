"""What is paid for before the first trial: the student's scores, and traced runs."""

from dataclasses import dataclass

from dspy_diffusion_infill.journal import Journal
from dspy_diffusion_infill.optimizer.plan import Plan
from dspy_diffusion_infill.optimizer.traces import Worked, names_in_traces, work_examples
from dspy_diffusion_infill.optimizer.validation import Validator
from dspy_diffusion_infill.outcomes import Evaluation

_BASELINE = "baseline"  # keys in the journal
_TRACED = "traced runs"


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
    runner = plan.teacher or plan.base
    is_first_traced = plan.contrasts or (plan.traces_wanted and plan.baseline_is_traced)
    baseline = validator.evaluate_once(
        plan.base,
        plan.valset,
        journal,
        _BASELINE,
        about=_BASELINE,
        traces=plan.traces_of(plan.base) if is_first_traced else None,
    )
    if not plan.traces_wanted:
        return FirstEvaluation(baseline, plan.labelled, is_traced=False)
    traced = baseline
    if not plan.baseline_is_traced:
        traced = validator.evaluate_once(
            runner,
            plan.trainset,
            journal,
            _TRACED,
            about=_TRACED,
            traces=plan.traces_of(runner),
            is_repeated=False,
        )
    worked = work_examples(plan.base, plan.names, plan.trainset, traced, names_in_traces(runner))
    return FirstEvaluation(baseline, worked, is_traced=True)
