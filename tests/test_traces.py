"""What each predictor was given and should have answered: labels, and traced runs."""

import dspy
import pytest

from dspy_diffusion_infill.optimizer.traces import work_examples
from dspy_diffusion_infill.outcomes import Evaluation

ROWS = [dspy.Example(text=f"row {k}", label="a", number=k).with_inputs("text") for k in range(3)]


def traced(scores):
    predictor = dspy.Predict("text -> facts")
    traces = tuple(
        ((predictor, {"text": f"row {k}"}, dspy.Prediction(facts=str(k))),) for k in range(3)
    )
    return predictor, Evaluation(tuple(scores), traces)


@pytest.mark.parametrize(
    ("scores", "chosen"),
    [
        ((1.0, 0.0, 0.0), ["0"]),
        ((0.0, 0.0, 0.0), ["0", "1", "2"]),
        ((-3.0, 0.0, -1.0), ["1", "2"]),  # a metric whose best score is 0
        ((-3.0, -1.0, -9.0), ["0", "1"]),
        ((0.5, 0.5, 0.5), ["0", "1", "2"]),
    ],
)
def test_responses_come_from_the_runs_that_scored_at_least_the_average(scores, chosen):
    predictor, evaluation = traced(scores)
    names = {id(predictor): "self"}
    worked = work_examples(predictor, ["self"], ROWS, evaluation, names)["self"]
    assert [one.outputs["facts"] for one in worked] == chosen
