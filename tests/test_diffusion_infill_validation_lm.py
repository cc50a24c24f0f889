"""A validating LM that is not the program's own, and the way from there to ``transfer``."""

import dspy
import pytest
from doubles import LEFT_TO_RIGHT, WordDenoiser, rule_lm
from test_diffusion_infill import ROWS, TASK, answer_if_told_briefly, program

from dspy_diffusion_infill.errors import TooManyErrors
from dspy_diffusion_infill.evaluation import transfer
from dspy_diffusion_infill.optimizer.diffusion_infill import DiffusionInfill
from dspy_diffusion_infill.template_adapter import TemplateAdapter


@pytest.fixture(autouse=True)
def plain_templates():
    with dspy.context(adapter=TemplateAdapter(), lm=None):
        yield


def optimizer(lm, **options) -> DiffusionInfill:
    quiet = {"guidance": None, "display_progress": False, "num_threads": 1}
    options = {**LEFT_TO_RIGHT, **quiet, **options}
    return DiffusionInfill(None, WordDenoiser(), validation_lm=lm, **options)


@pytest.mark.parametrize("is_bound", [True, False])
def test_trials_ask_the_validating_lm_alone_and_the_program_keeps_its_own(is_bound):
    validating, asked = rule_lm(answer_if_told_briefly)
    own, never = rule_lm(lambda _: "nothing")
    student = program()
    student.lm = own if is_bound else None
    with dspy.context(lm=None if is_bound else own):
        better = optimizer(validating, sweeps=2).compile(student, ROWS)
    results = better.detailed_results
    assert results.score_after > results.score_before
    assert len(asked.prompts) == results.metric_calls
    assert never.prompts == []
    programs = [better, student, *(row["program"] for row in better.candidate_programs)]
    assert [p.lm for p in programs] == [student.lm] * len(programs)
    assert student.lm is (own if is_bound else None)
    assert student.signature.instructions == TASK


def test_no_other_lm_is_needed():
    validating, _ = rule_lm(answer_if_told_briefly)
    found = optimizer(validating).estimate(program(), ROWS)
    assert found.metric_calls >= optimizer(validating).compile(program(), ROWS).total_calls


def test_the_best_program_on_an_exception_has_its_own_lm_too():
    def broken(_: str) -> str:
        raise RuntimeError("down")

    own, _ = rule_lm(answer_if_told_briefly)
    student = program()
    student.lm = own
    with pytest.raises(TooManyErrors) as raised:
        optimizer(rule_lm(broken)[0], max_errors=0).compile(student, ROWS)
    assert raised.value.best_program.lm is own


def test_the_name_of_an_lm_is_no_lm():
    with pytest.raises(TypeError, match=r"validation_lm must be an LM, as dspy\.LM.*got str"):
        optimizer("openai/gpt-4o-mini")


def test_instructions_found_with_one_lm_are_measured_under_others():
    def stubborn(prompt: str) -> str:
        """Wants one word more than the LM that the instructions were found with."""
        return answer_if_told_briefly(prompt.replace("only", "", 1))

    validating, _ = rule_lm(answer_if_told_briefly)
    better = optimizer(validating, sweeps=3).compile(program(), ROWS)
    lms = {"found with": validating, "another": rule_lm(stubborn)[0]}
    table = transfer(better, lms, ROWS, lambda row, answer: row.colour == answer.colour)
    first, second = table.rows
    assert first.mean == better.detailed_results.score_after
    assert 0 < second.mean <= first.mean
    assert second.against_first.difference == pytest.approx(second.mean - first.mean)
