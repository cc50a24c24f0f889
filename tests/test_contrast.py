"""Guidance that sets gold responses against the wrong answers that the program gave."""

import math
import re
from dataclasses import dataclass, field
from typing import Any

import dspy
import pytest
from doubles import WordCountScorer, WordDenoiser, rule_lm
from test_diffusion_infill import ROWS, TASK, compile_with, program

from dspy_diffusion_infill.contexts import Slot, WorkedExample
from dspy_diffusion_infill.optimizer.contrast import wrong_answers
from dspy_diffusion_infill.optimizer.diffusion_infill import DiffusionInfill
from dspy_diffusion_infill.optimizer.guidance import Guide, contrast
from dspy_diffusion_infill.outcomes import Evaluation
from dspy_diffusion_infill.template_adapter import TemplateAdapter


@dataclass
class Table(WordCountScorer):
    """Says what its table has for a response, times as often as "only" stands in the prompt."""

    table: dict[str, float] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def log_likelihoods(self, pairs):
        self.asked += [pair.response for pair in pairs]
        times = [1 + str(pair.messages).count("only") for pair in pairs]
        return [n * self.table[pair.response] for n, pair in zip(times, pairs, strict=True)]


def slot(*rows: tuple[str, str], name: str = "p") -> Slot:
    examples = tuple(
        WorkedExample({"text": text}, {"colour": colour}, row=number)
        for number, (text, colour) in enumerate(rows)
    )
    return Slot(name, dspy.Signature("text -> colour", TASK), TemplateAdapter(), examples)


def test_the_signal_is_gold_less_the_logarithm_of_the_mean_likelihood_of_the_wrong_answers():
    table = Table(table={"red": -2.0, "blue": -3.0, "pink": -1.0, "teal": -4.0})
    place = slot(("a", "red"), ("b", "blue"))
    found = Guide(table).log_likelihoods(place, [TASK, "only"], {0: ("pink", "teal")})
    mean = math.log((math.exp(-1) + math.exp(-4)) / 2)
    twice = math.log((math.exp(-2) + math.exp(-8)) / 2)
    assert found == [
        (pytest.approx(-2 - mean), -3.0),
        (pytest.approx(-4 - twice), -6.0),
    ]
    assert table.asked == ["red", "pink", "teal", "blue"] * 2


def test_a_row_without_a_wrong_answer_has_the_likelihood_of_its_gold_response():
    assert contrast(-2.5) == -2.5
    assert contrast(-2.5, -1.0) == -1.5
    assert contrast(-900.0, -1000.0, -1000.0) == 100.0


def test_a_wrong_answer_that_does_not_fit_the_scorer_is_left_out():
    class Bounded(Table):
        def room(self, pair):
            return 100 - len(pair.response)

    table = Bounded(table={"red": -2.0, "pink": -1.0})
    [scores] = Guide(table).log_likelihoods(slot(("a", "red")), [TASK], {0: ("x" * 101, "pink")})
    assert scores == (-1.0,)


def call(predictor, text, colour):
    return ((predictor, {"text": text}, dspy.Prediction(colour=colour)),)


def test_wrong_answers_are_those_to_the_rows_own_prompt_where_the_score_is_low():
    predictor = program()
    place = slot(("a", "red"), ("b", "blue"), ("c", "grey"), ("d", "pink"), ("e", "black"))
    traces = (
        call(predictor, "a", "pink"),
        call(predictor, "b", "teal"),  # the metric calls it right
        call(predictor, "other", "teal"),  # the answer to another step's mistake
        None,  # it raised
        call(predictor, "e", "black"),  # gold: something else was wrong
    )
    evaluation = Evaluation((0.0, 1.0, 0.0, 0.0, 0.0), traces)
    names = {id(predictor): "p"}
    found = wrong_answers(place, evaluation, names, (0.0, 1.0), {})
    assert found == {0: ("pink",)}
    again = wrong_answers(place, evaluation, names, (0.0, 1.0), {0: ("teal",), 1: ("green",)})
    assert again == {0: ("teal", "pink"), 1: ("green",)}
    many = wrong_answers(place, evaluation, names, (0.0, 1.0), {0: ("grey", "teal", "black")})
    assert many == {0: ("teal", "black", "pink")}


def says_pink(prompt: str) -> str:
    """Row k is right when the prompt says "only" at least k times, and else pink."""
    row, colour = re.findall(r"number (\d) is (\w+)", prompt)[-1]
    return colour if prompt.count("only") >= int(row) else "pink"


@dataclass
class OnlyAgainstPink(WordCountScorer):
    """Gold responses never change; "only" makes pink less likely."""

    def log_likelihoods(self, pairs):
        counts = super().log_likelihoods(pairs)
        return [-n if p.response == "pink" else -3.0 for n, p in zip(counts, pairs, strict=True)]


def test_contrast_tries_what_makes_wrong_answers_less_likely_where_likelihood_tries_nothing():
    options: dict[str, Any] = {"guidance": OnlyAgainstPink(), "sweeps": 1, "num_proposals": 4}
    alone = compile_with(says_pink, **options).detailed_results
    both = compile_with(says_pink, signal="contrast", **options).detailed_results
    # "pink" is the gold response of row 4, of which no run is wrong
    assert alone.trials == () or all("only" not in t.new_text for t in alone.trials)
    assert both.trials and all("only" in trial.new_text for trial in both.trials)
    assert both.score_after > both.score_before == pytest.approx(2 / 6)


def test_a_search_that_contrasts_goes_on_exactly_where_it_was_cut_off(tmp_path):
    options: dict[str, Any] = {
        "guidance": OnlyAgainstPink(),
        "signal": "contrast",
        "order": "adaptive",
        "num_proposals": 4,
        "max_metric_calls": 36,
    }
    whole = compile_with(says_pink, log_dir=tmp_path, **options).detailed_results
    journal = tmp_path / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[: len(lines) // 2]))
    lm, engine = rule_lm(says_pink)
    resumed = compile_with(lm=lm, log_dir=tmp_path, **options)
    assert resumed.detailed_results.trials == whole.trials
    assert any(trial.accepted for trial in whole.trials)
    assert 0 < len(engine.prompts) < whole.metric_calls


def test_contrast_without_guidance_or_with_other_rows_is_refused_before_any_call():
    with pytest.raises(ValueError, match=r"signal='contrast' is what guidance goes by"):
        DiffusionInfill(guidance=None, signal="contrast")
    lm, engine = rule_lm(says_pink)
    optimizer = DiffusionInfill(None, WordDenoiser(), guidance=WordCountScorer(), signal="contrast")
    with dspy.context(lm=lm), pytest.raises(ValueError, match="needs the trainset as the valset"):
        optimizer.compile(program(), ROWS, valset=ROWS[:2])
    assert engine.prompts == []
