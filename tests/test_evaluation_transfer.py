"""One program under several LMs: real servers on loopback, DSPy's own Evaluate."""

import logging
import time

import dspy
import pytest
from doubles import rule_lm
from dspy.utils.parallelizer import ParallelExecutor
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback import loopback, prompt_of

from dspy_diffusion_infill import TemplateAdapter
from dspy_diffusion_infill.evaluation import transfer

EXAMPLES = [dspy.Example(n=n, twice=str(2 * n)).with_inputs("n") for n in range(6)]
SIGNATURE = dspy.Signature("n -> twice", "Double the number {n}.")


@pytest.fixture(autouse=True)
def plain_templates():
    with dspy.context(adapter=TemplateAdapter(), lm=None):
        yield


def is_right(example, prediction, trace=None):
    return example.twice == prediction.twice


def doubled(prompt: str) -> str:
    return str(2 * int(prompt.split()[3].rstrip(".")))


class Chain(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = dspy.ChainOfThought(SIGNATURE)
        self.last = dspy.Predict(SIGNATURE)

    def forward(self, n):
        return self.last(n=n)


def test_each_lm_is_asked_every_example_and_none_of_the_others() -> None:
    with (
        loopback(lambda _, body: doubled(prompt_of(body))) as good,
        loopback(lambda *_: "4") as poor,
    ):
        program = dspy.Predict(SIGNATURE)
        lms = {"good": good.lm(), "poor": poor.lm()}
        table = transfer(program, lms, EXAMPLES, is_right, num_threads=3)
    assert [(row.lm, row.mean, row.num_failures) for row in table.rows] == [
        ("good", 1.0, 0),
        ("poor", 1 / 6, 0),
    ]
    assert table.rows[1].scores == (0, 0, 1, 0, 0, 0)
    wanted = {f"Double the number {n}." for n in range(6)}
    for server in (good, poor):
        assert len(server.bodies) == 6
        assert {prompt_of(body).splitlines()[0] for body in server.bodies} == wanted


def test_the_table_compares_each_lm_with_the_first() -> None:
    good, _ = rule_lm(doubled)
    poor, _ = rule_lm(lambda _: "4")
    table = transfer(dspy.Predict(SIGNATURE), {"a|b": good, "poor": poor}, EXAMPLES, is_right)
    first, second = (row.against_first for row in table.rows)
    assert first.difference == 0
    assert second.difference == pytest.approx(-5 / 6)
    assert second.interval is not None and second.interval.high < 0
    lines = str(table).splitlines()
    assert lines[2].startswith(r"| a\|b | 1.000 | +0.000 |")
    assert lines[3].startswith("| poor | 0.167 | -0.833 |")
    assert lines[3].endswith("| 0 |")


@pytest.mark.parametrize("raises", [False, True])
def test_the_programs_own_lms_are_back_afterwards(raises: bool) -> None:
    own, engine = rule_lm(lambda _: "own")
    other, _ = rule_lm(doubled)
    program = Chain()
    program.last.lm = own
    if raises:
        with pytest.raises(KeyboardInterrupt):
            transfer(program, {"other": other}, EXAMPLES, _interrupted, num_threads=1)
    else:
        assert transfer(program, {"other": other}, EXAMPLES, is_right).rows[0].mean == 1.0
    assert program.last.lm is own
    assert program.inner.predict.lm is None
    assert engine.prompts == []


def _interrupted(example, prediction, trace=None):
    raise KeyboardInterrupt


def test_a_frozen_part_is_measured_under_the_lm_too() -> None:
    own, engine = rule_lm(lambda _: "own")
    other, _ = rule_lm(doubled)

    class Outer(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = Chain()

        def forward(self, n):
            return self.part(n=n)

    program = Outer()
    program.set_lm(own)
    program.part._compiled = True  # as an optimizer leaves it: predictors() is empty now
    assert transfer(program, {"other": other}, EXAMPLES, is_right).rows[0].mean == 1.0
    assert engine.prompts == []
    assert program.part.last.lm is own


def test_what_raises_counts_with_the_failure_score_and_is_said(caplog) -> None:
    def sometimes(prompt: str) -> str:
        if "number 3" in prompt:
            raise RuntimeError("the LM is down")
        return doubled(prompt)

    def picky(example, prediction, trace=None):
        return None if example.n == 5 else is_right(example, prediction)

    lm, _ = rule_lm(sometimes)
    with caplog.at_level(logging.WARNING, logger="dspy_diffusion_infill"):
        table = transfer(
            dspy.Predict(SIGNATURE), {"lm": lm}, EXAMPLES, picky, failure_score=-1, num_threads=1
        )
    assert table.rows[0].scores == (1, 1, 1, -1, 1, -1)
    assert table.rows[0].num_failures == 2
    assert "lm: 2 of 6 raised, one with TypeError" in caplog.text


def test_more_failures_than_dspy_tolerates_do_not_end_the_measurement() -> None:
    def broken(_: str) -> str:
        raise RuntimeError("down")

    lm, _ = rule_lm(broken)
    many = EXAMPLES * 5
    (row,) = transfer(dspy.Predict(SIGNATURE), {"lm": lm}, many, is_right).rows
    assert (row.mean, row.num_failures) == (0, len(many))


def test_an_example_that_is_sent_again_is_run_scored_and_counted_once(monkeypatch) -> None:
    class Impatient(ParallelExecutor):
        """Sends again what has taken a tenth of a second, as DSPy does after two minutes."""

        def __init__(self, **options) -> None:
            super().__init__(**{**options, "timeout": 0.1})

    def slow(prompt: str) -> str:
        if "number 3" in prompt:
            time.sleep(2.5)
            raise RuntimeError("the LM is down")
        return doubled(prompt)

    monkeypatch.setattr("dspy.evaluate.evaluate.ParallelExecutor", Impatient)
    lm, engine = rule_lm(slow)
    (row,) = transfer(dspy.Predict(SIGNATURE), {"lm": lm}, EXAMPLES, is_right, num_threads=4).rows
    assert (row.mean, row.num_failures) == (5 / 6, 1)
    assert len(engine.prompts) == len(EXAMPLES)


def test_metrics_may_require_a_trace_or_answer_with_a_prediction() -> None:
    lm, _ = rule_lm(doubled)

    def with_trace(example, prediction, trace):
        assert trace is None
        return dspy.Prediction(score=0.25)

    (row,) = transfer(dspy.Predict(SIGNATURE), [lm], EXAMPLES, with_trace).rows
    assert (row.lm, row.mean) == ("test/rule", 0.25)


def test_wrong_arguments_are_refused_before_any_call() -> None:
    lm, engine = rule_lm(doubled)
    program = dspy.Predict(SIGNATURE)
    with pytest.raises(ValueError, match="got 0 LMs and 6 examples"):
        transfer(program, {}, EXAMPLES, is_right)
    with pytest.raises(ValueError, match="got 1 LMs and 0 examples"):
        transfer(program, [lm], [], is_right)
    with pytest.raises(ValueError, match=r"several LMs are called 'test/rule': tell them apart"):
        transfer(program, [lm, lm.copy()], EXAMPLES, is_right)
    with pytest.raises(ValueError, match="with_inputs"):
        transfer(program, [lm], [dspy.Example(n=1)], is_right)
    with pytest.raises(TypeError, match=r"metric must be callable as .* got <lambda>\(a, b, c, d"):
        transfer(program, [lm], EXAMPLES, lambda a, b, c, d, e: 1.0)
    assert engine.prompts == []


@settings(max_examples=15, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_scores_stand_in_the_order_of_the_examples(wanted: list[float]) -> None:
    lm, _ = rule_lm(lambda _: "any")
    examples = [dspy.Example(n=n, wanted=score).with_inputs("n") for n, score in enumerate(wanted)]
    with dspy.context(adapter=TemplateAdapter()):
        table = transfer(
            dspy.Predict(SIGNATURE), [lm], examples, lambda e, p: e.wanted, num_threads=2
        )
    assert table.rows[0].scores == tuple(wanted)
    assert table.rows[0].mean == pytest.approx(sum(wanted) / len(wanted))
