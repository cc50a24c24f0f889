"""What an experiment cannot measure or draw is said when its file is read."""

import pytest
from test_reproduction_tables import experiment

from dspy_diffusion_infill.errors import DataError
from dspy_diffusion_infill.reproduction.experiment import MEASURES


@pytest.mark.parametrize("task", MEASURES)
def test_every_measure_of_a_task_is_taken(task: str) -> None:
    measures = list(MEASURES[task])
    spec = experiment(task=task, measures=measures, conditions=[{"label": {}, "model": "a"}])
    assert spec.measures == tuple(measures)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"measures": ["pearson", "spearmann"]}, "measures must be of .* got spearmann"),
        ({"measures": ["em"]}, "measures must be of pearson, .* got em"),
        ({"measures": []}, "measures must be of .* got none"),
        ({"task": "squad"}, "task must be one of summeval, biggen, gsm8k, hover; got 'squad'"),
        ({"plot": {"measures": ["kendall"]}}, "plot: 'kendall' is none of pearson, perplexity"),
        ({"plot": {"kind": "scatter"}}, "plot: None is none of"),
        ({"plot": {"kind": "scatter", "x": "tokens"}}, "plot: 'tokens' is none of"),
    ],
)
def test_a_measure_that_would_be_missing_is_named(change: dict, problem: str) -> None:
    bare = [{"label": {"Prompt": "plain"}, "model": "a"}]
    with pytest.raises(DataError, match=rf"small\.yaml.*{problem}"):
        experiment(conditions=bare, **change)
