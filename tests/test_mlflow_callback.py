"""A compile under MLflow's autolog, against a store in a folder."""

from pathlib import Path

import dspy
import pytest
from test_cross_validation import validated
from test_progress import TASK, compiled

from dspy_diffusion_infill import DiffusionInfill, Sampling, TemplateAdapter, embedded_lm
from dspy_diffusion_infill.optimizer.callbacks import SearchCallback
from dspy_diffusion_infill.optimizer.mlflow_callback import MLflowCallback

mlflow = pytest.importorskip("mlflow", reason="needs mlflow-skinny, of the extra dev")
pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow's own, of its types and its stores


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A store of its own, and DSPy as it was."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    before = {name: dspy.settings.get(name) for name in ("callbacks", "track_usage")}
    mlflow.set_tracking_uri(tmp_path.joinpath("mlruns").as_uri())
    mlflow.set_experiment("infill")
    yield mlflow.MlflowClient()
    mlflow.dspy.autolog(disable=True, silent=True)
    dspy.settings.configure(**before)


def runs(client) -> list:
    experiment = client.get_experiment_by_name("infill")
    return client.search_runs([experiment.experiment_id])


def check(client, run, better: dspy.Module) -> None:
    results = better.detailed_results
    assert run.info.status == "FINISHED"
    assert run.data.params["infill.seed"] == "3" and run.data.params["infill.window"] == "8"
    assert run.data.tags["infill.end_reason"] == results.end_reason
    history = client.get_metric_history(run.info.run_id, "infill.trial_score")
    assert [one.value for one in history] == [trial.score for trial in results.trials]
    best = client.get_metric_history(run.info.run_id, "infill.best_score")
    assert (best[0].step, best[0].value) == (0, results.score_before)
    assert (best[-1].step, best[-1].value) == (len(results.trials), results.score_after)
    program = dspy.Predict(dspy.Signature("text -> colour", TASK))
    program.load(client.download_artifacts(run.info.run_id, "program.json"))
    assert program.signature.instructions == better.signature.instructions
    assert "report.html" in {one.path for one in client.list_artifacts(run.info.run_id)}


@pytest.mark.parametrize("given", [(), (MLflowCallback,)])
def test_autolog_writes_parameters_curves_and_the_program_into_one_run(store, given):
    mlflow.dspy.autolog(log_compiles=True, log_evals=True, log_traces=False, silent=True)
    better = compiled(*[one() for one in given], max_metric_calls=20)
    (parent,) = [run for run in runs(store) if "mlflow.parentRunId" not in run.data.tags]
    check(store, parent, better)
    assert "best_model.json" in {one.path for one in store.list_artifacts(parent.info.run_id)}
    evaluations = store.get_metric_history(parent.info.run_id, "eval")
    assert len(evaluations) == 1 + len(better.detailed_results.trials)


def test_autolog_of_traces_alone_makes_no_run(store):
    mlflow.dspy.autolog(silent=True)
    compiled(max_metric_calls=20)
    assert runs(store) == []


def test_a_search_on_the_embedded_pair_under_autolog(store):
    mlflow.dspy.autolog(log_compiles=True, log_traces=False, silent=True)
    rows = [
        dspy.Example(text=text, label=label).with_inputs("text")
        for text, label in [("A lovely film.", "good"), ("The soup was cold.", "bad")]
    ]
    student = dspy.Predict(dspy.Signature("text -> label", "Say what you think of the text."))
    with dspy.context(lm=embedded_lm(), adapter=TemplateAdapter()):
        small = {"window": 4, "mask": 4, "num_proposals": 2, "display_progress": False}
        optimizer = DiffusionInfill(max_metric_calls=6, sampling=Sampling(cache="context"), **small)
        better = optimizer.compile(student, rows)
    (run,) = [run for run in runs(store) if "mlflow.parentRunId" not in run.data.tags]
    assert run.info.status == "FINISHED" and run.data.params["infill.window"] == "4"
    best = store.get_metric_history(run.info.run_id, "infill.best_score")
    assert len(best) > 1 and best[-1].value == better.detailed_results.score_after
    student.load(store.download_artifacts(run.info.run_id, "program.json"))
    assert student.signature.instructions == better.signature.instructions


def test_without_an_active_run_the_callback_has_one_of_its_own(store):
    better = compiled(MLflowCallback(), max_metric_calls=20)
    (run,) = runs(store)
    check(store, run, better)
    assert mlflow.active_run() is None


def test_a_run_that_was_cut_off_is_closed_and_says_so(store):
    class Stops(SearchCallback):
        def on_trial(self, event) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compiled(MLflowCallback(), Stops(), max_metric_calls=20)
    (run,) = runs(store)
    assert (run.info.status, run.data.tags["infill.end_reason"]) == ("KILLED", "interrupted")
    assert mlflow.active_run() is None


@pytest.mark.parametrize("has_autolog", [True, False])
def test_each_fold_has_a_run_of_its_own_within_the_active_one(store, has_autolog):
    if has_autolog:
        mlflow.dspy.autolog(log_compiles=True, log_traces=False, silent=True)
    given = {} if has_autolog else {"callbacks": [MLflowCallback()]}
    with mlflow.start_run() as parent:
        better = validated(max_metric_calls=120, **given)
    folds = [run for run in runs(store) if "mlflow.parentRunId" in run.data.tags]
    names = [f"fold {number} of 3" for number in (1, 2, 3)]
    assert sorted(run.info.run_name for run in folds) == names
    for run in folds:
        record = better.fold_scores.folds[names.index(run.info.run_name)]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.params["infill.holdout"] == f"{record.num_holdout} examples"
        best = store.get_metric_history(run.info.run_id, "infill.best_score")
        assert [one.step for one in best] == list(range(len(record.trials) + 1))
        assert best[-1].value == record.score_after
    assert not store.get_metric_history(parent.info.run_id, "infill.best_score")
    at_parent = {one.path for one in store.list_artifacts(parent.info.run_id)}
    assert ("best_model.json" in at_parent) == has_autolog


def test_a_fold_that_is_cut_off_before_its_run_leaves_the_active_one_alone(store):
    def breaks(prompt: str) -> str:
        raise KeyboardInterrupt

    with mlflow.start_run() as parent, pytest.raises(KeyboardInterrupt):
        validated(breaks, max_metric_calls=120, callbacks=[MLflowCallback()])
    assert "infill.end_reason" not in store.get_run(parent.info.run_id).data.tags
    assert store.list_artifacts(parent.info.run_id) == []
