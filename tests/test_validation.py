"""A budget of runs, and failures that never outrank answers."""

from functools import partial

import dspy
import pytest
from dspy.utils.exceptions import (
    ContextWindowExceededError,
    LMInvalidRequestError,
    LMServerError,
)

from dspy_diffusion_infill.journal import Journal
from dspy_diffusion_infill.optimizer.budget import Caps
from dspy_diffusion_infill.optimizer.options import Scoring
from dspy_diffusion_infill.optimizer.validation import BudgetSpentError, Validator
from dspy_diffusion_infill.runs import TooManyFailuresError

ROWS = [dspy.Example(number=k).with_inputs("number") for k in range(4)]


class Numbers(dspy.Module):
    def __init__(self, raises=()):
        super().__init__()
        self.raises = raises

    def forward(self, number):
        if number in self.raises:
            raise RuntimeError("no answer")
        return dspy.Prediction(number=number)


def loss(example, prediction, trace=None):
    return -float(prediction.number)


def test_the_budget_is_never_passed():
    validator = Validator(Scoring(metric=loss, caps=Caps(max_metric_calls=6)))
    validator.evaluate(Numbers(), ROWS)
    with pytest.raises(BudgetSpentError, match="4 of 6 metric calls are spent"):
        validator.evaluate(Numbers(), ROWS)
    assert validator.metric_calls == 4


def test_a_failure_counts_as_the_worst_answer_under_a_metric_whose_best_is_0():
    validator = Validator(Scoring(metric=loss))
    assert validator.evaluate(Numbers(), ROWS).scores == (0, -1, -2, -3)
    assert validator.evaluate(Numbers(raises=(1,)), ROWS).scores == (0, -3, -2, -3)
    assert validator.evaluate(Numbers(raises=(0, 3)), ROWS).scores == (-3, -1, -2, -3)


def test_a_failure_score_of_the_users_is_what_a_failure_counts():
    validator = Validator(Scoring(metric=loss, failure_score=-1.5))
    assert validator.evaluate(Numbers(raises=(2,)), ROWS).scores == (0, -1, -1.5, -3)


def test_a_failure_counts_0_under_a_metric_of_shares():
    validator = Validator(Scoring(metric=lambda example, prediction: 0.5))
    assert validator.evaluate(Numbers(raises=(2,)), ROWS).scores == (0.5, 0.5, 0, 0.5)


@pytest.mark.parametrize("num_required", [2, 3])
def test_a_metric_that_requires_a_trace_gets_none(num_required):
    def two(example, prediction):
        return 1

    def three(example, prediction, trace):
        assert trace is None
        return 1

    validator = Validator(Scoring(metric={2: two, 3: three}[num_required]))
    assert validator.evaluate(Numbers(), ROWS).scores == (1, 1, 1, 1)


class Raises(dspy.Module):
    """Raises in every run."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def forward(self, number):
        raise self.error


def test_an_lm_that_answers_no_run_ends_a_search_of_few_rows():
    validator = Validator(Scoring(metric=loss, max_errors=7))
    dead = Raises(LMServerError("gone"))
    validator.evaluate(dead, ROWS)
    validator.evaluate(Numbers(raises=(0, 1, 2)), ROWS)  # one answer in between
    validator.evaluate(dead, ROWS)
    with pytest.raises(TooManyFailuresError, match=r"no LM answered in 8 .*max_errors=7; .*gone"):
        validator.evaluate(dead, ROWS)


@pytest.mark.parametrize(
    "error", [RuntimeError("a bug"), ContextWindowExceededError(), LMInvalidRequestError("so long")]
)
def test_failures_that_other_instructions_may_mend_end_no_search(error):
    validator = Validator(Scoring(metric=loss, max_errors=7))
    for _ in range(3):
        assert validator.evaluate(Raises(error), ROWS).num_failures == 4


def test_a_race_has_as_many_failures_as_one_evaluation():
    validator = Validator(Scoring(metric=loss, max_errors=4))
    block = partial(validator.evaluate_once, Numbers(raises=(0, 1, 2)), ROWS, Journal(None))
    first = block("a", about="trial")
    block("b", about="trial")  # of another program
    with pytest.raises(TooManyFailuresError, match=r"6 examples raised.*max_errors=4"):
        block("c", about="trial", before=first)
