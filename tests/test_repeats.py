"""Rows that are run several times, for LMs with a temperature."""

import json

import dspy
import pytest
from doubles import LEFT_TO_RIGHT, WordDenoiser, rule_lm
from test_diffusion_infill import ROWS, answer_if_told_briefly, compile_with, program

from dspy_diffusion_infill.journal import Journal
from dspy_diffusion_infill.optimizer.budget import Budget, BudgetSpentError, Caps
from dspy_diffusion_infill.optimizer.diffusion_infill import DiffusionInfill
from dspy_diffusion_infill.optimizer.options import Scoring
from dspy_diffusion_infill.optimizer.repeats import repeat
from dspy_diffusion_infill.optimizer.validation import Validator
from dspy_diffusion_infill.outcomes import Evaluation
from dspy_diffusion_infill.template_adapter import TemplateAdapter

TABLE = {0: (1.0, 0.0, 1.0), 1: (0.0, 0.0, 0.5)}  # the score of each row's runs
TWO = [dspy.Example(row=row).with_inputs("row") for row in TABLE]


class Drawn(dspy.Module):
    """Answers by the rollout that its LM is asked for, and raises where the table has None."""

    def __init__(self, table=TABLE):
        super().__init__()
        self.step, self.table, self.calls = dspy.Predict("row -> answer"), table, []

    def forward(self, row):
        lm = self.step.lm or dspy.settings.lm
        self.calls.append((row, rollout := lm.kwargs.get("rollout_id", 0)))
        if (answer := self.table[row][rollout]) is None:
            raise KeyError(row)
        return dspy.Prediction(answer=answer)


def validator(num_repeats=3, **caps) -> Validator:
    scoring = Scoring(
        metric=lambda row, found: found.answer, num_repeats=num_repeats, num_threads=1, max_errors=9
    )
    return Validator(scoring, Budget(Caps(**caps)))


@pytest.fixture
def noisy_lm():
    with dspy.context(lm=rule_lm(str)[0]):
        yield


def test_a_row_scores_the_mean_of_its_runs_each_with_a_rollout_id_of_its_own(noisy_lm):
    drawn, scores = Drawn(), validator()
    found = scores.evaluate(drawn, TWO)
    assert found.scores == (pytest.approx(2 / 3), pytest.approx(1 / 6))
    assert drawn.calls == [(row, rollout) for rollout in range(3) for row in TABLE]
    assert scores.metric_calls == 6
    assert drawn.step.lm is None, "the program is as it was"


def test_the_answer_of_a_row_is_that_of_the_run_nearest_to_the_mean():
    one, two, three = (
        Evaluation((s, 0.0), (((s, {}, {}),), None), answers=(f"{s}", "KeyError"), **failed)
        for s, failed in [
            (1.0, {"failures": ("a",), "failed": (1,), "kinds": ("unread",)}),
            (0.0, {"failures": ("b",), "failed": (1,), "kinds": ("raised",)}),
            (0.0, {"failures": ("c",), "failed": (1,), "kinds": ("raised",)}),
        ]
    )
    merged = Evaluation.mean_of([one, two, three])
    assert merged.scores == (pytest.approx(1 / 3), 0.0)
    assert merged.answers == ("0.0", "a")
    assert merged.traces == (((0.0, {}, {}),), None)
    assert (merged.failures, merged.failed, merged.num_unread) == (("a",), (1,), 1)


def test_a_row_that_failed_in_some_of_its_runs_has_not_failed(noisy_lm):
    found = validator().evaluate(Drawn({0: (None, 0.5, None), 1: (None,) * 3}), TWO)
    assert found.scores == (pytest.approx(0.5 / 3), 0.0)
    assert found.failed == (1,)


def test_runs_come_back_from_the_journal_each_under_its_repeat(noisy_lm, tmp_path):
    path, whole = tmp_path / "journal", Drawn()
    found = validator().evaluate_once(whole, TWO, Journal(path), "k", about="trial")
    lines = path.read_text().splitlines(keepends=True)
    assert [json.loads(line)["key"] for line in lines if '"key"' in line] == [
        "k 0",
        "k 1",
        "k repeat 1 0",
        "k repeat 1 1",
        "k repeat 2 0",
        "k repeat 2 1",
    ]
    path.write_text("".join(lines[:-3]))
    again, scores = Drawn(), validator()
    resumed = scores.evaluate_once(again, TWO, Journal(path), "k", about="trial")
    assert resumed.scores == found.scores
    assert again.calls == whole.calls[-3:] and scores.metric_calls == 6


def test_an_evaluation_is_not_begun_where_its_repeats_have_no_room(noisy_lm):
    drawn, scores = Drawn(), validator(max_metric_calls=5)
    assert not scores.room_for(len(TWO)) and scores.room_for(1)
    with pytest.raises(BudgetSpentError):
        scores.evaluate(drawn, TWO)
    assert drawn.calls == []


def test_a_repeat_is_no_answer_of_the_cache_and_a_second_search_pays_nothing():
    lm, engine = rule_lm(answer_if_told_briefly)
    step = program()
    with dspy.context(lm=lm.copy(cache=True, rollout_id=7), adapter=TemplateAdapter()):
        for number in (0, 1, 2, 1):
            with repeat(step, number):
                step(text="number 0 is red; repeated")
    assert len(engine.prompts) == 3


def test_an_lm_whose_temperature_is_0_is_left_as_it_is_and_repeats_of_it_alone_are_refused():
    lm, engine = rule_lm(str)
    step, calm = program(), lm.copy(temperature=0)
    step.lm = calm
    with repeat(step, 1):
        assert step.lm is calm
    optimizer = DiffusionInfill(None, WordDenoiser(), guidance=None, num_repeats=2)
    with dspy.context(lm=lm), pytest.raises(ValueError, match=r"num_repeats=2 needs an LM that"):
        optimizer.compile(step, ROWS)
    assert engine.prompts == []


@pytest.mark.parametrize("validation", ["full", "racing"])
def test_caps_and_estimate_count_every_repeat(validation):
    options = {"num_repeats": 2, "max_metric_calls": 41, "validation": validation}
    lm, engine = rule_lm(answer_if_told_briefly)
    results = compile_with(lm=lm, sweeps=1, **options).detailed_results
    runs = [2 * len(trial.rows) for trial in results.trials]
    assert results.metric_calls == len(engine.prompts) == 2 * len(ROWS) + sum(runs) <= 41
    assert results.end_reason == "max_metric_calls"


def test_an_estimate_is_the_number_of_rows_times_their_repeats():
    def runs(num_repeats: int) -> int:
        optimizer = DiffusionInfill(
            None,
            WordDenoiser(),
            guidance=None,
            num_repeats=num_repeats,
            holdout=0.25,
            **LEFT_TO_RIGHT,
        )
        with dspy.context(lm=rule_lm(str)[0], adapter=TemplateAdapter()):
            return optimizer.estimate(program(), ROWS).metric_calls

    assert runs(3) == 3 * runs(1)


@pytest.mark.parametrize("wrong", [0, 1.5, True, None])
def test_a_number_of_repeats_that_is_none_is_refused(wrong):
    with pytest.raises((TypeError, ValueError), match="num_repeats must be"):
        DiffusionInfill(num_repeats=wrong)
