"""A budget of runs, and failures that never outrank answers."""

import dspy
import pytest

from dspy_diffusion_infill.optimizer.budget import Caps
from dspy_diffusion_infill.optimizer.options import Scoring
from dspy_diffusion_infill.optimizer.validation import BudgetSpentError, Validator

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
