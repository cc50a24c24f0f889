"""Running a program over rows: each once, real objects for DSPy's callbacks, failures apart."""

import math
import os
import signal
import threading
import time

import dspy
import pytest
from dspy.utils.callback import BaseCallback

from dspy_diffusion_infill.optimizer.endings import sigterm_as_interrupt
from dspy_diffusion_infill.outcomes import Failure, Outcome
from dspy_diffusion_infill.runs import TooManyFailuresError, as_float, evaluate

ROWS = [dspy.Example(text=f"row {k}", label=k % 2).with_inputs("text") for k in range(6)]


class Parity(dspy.Module):
    """Answers the number's parity, and raises where it is told to."""

    def __init__(self, raises=()):
        super().__init__()
        self.step = dspy.Predict("text -> label")
        self.raises, self.calls = set(raises), []

    def forward(self, text):
        self.calls.append(text)
        number = int(text.split()[-1])
        if number in self.raises:
            raise RuntimeError(f"no answer for {number}")
        return dspy.Prediction(label=number % 2)


def is_right(example, prediction):
    return float(prediction.label == example.label)


def test_scores_stand_in_the_order_of_the_rows():
    found = evaluate(Parity(), ROWS, lambda example, prediction: int(example.text[-1]))
    assert found.scores == (0, 1, 2, 3, 4, 5)
    assert found.failures == () and all(trace == () for trace in found.traces)


def test_failures_are_counted_apart_and_score_what_is_asked():
    found = evaluate(Parity(raises=(1, 4)), ROWS, is_right, failure_score=-2.0, num_threads=2)
    assert found.scores == (1, -2, 1, 1, -2, 1)
    assert found.failed == (1, 4) and found.num_unread == 0
    assert found.failures == ("RuntimeError: no answer for 1", "RuntimeError: no answer for 4")
    assert [number for number, trace in enumerate(found.traces) if trace is None] == [1, 4]


def test_past_max_errors_an_evaluation_ends_with_what_was_raised():
    with pytest.raises(TooManyFailuresError, match="more than max_errors=1") as caught:
        evaluate(Parity(raises=range(6)), ROWS, is_right, max_errors=1, num_threads=1)
    assert caught.value.failures == tuple(f"RuntimeError: no answer for {k}" for k in range(2))


def test_a_row_whose_run_or_score_takes_too_long_is_a_failure():
    go_on = threading.Event()

    class Slow(Parity):
        def forward(self, text):
            return go_on.wait() if text == "row 1" else super().forward(text)

    def score(example, prediction):
        return go_on.wait() if example.text == "row 4" else is_right(example, prediction)

    found = evaluate(Slow(), ROWS, score, num_threads=3, run_timeout=1)
    go_on.set()
    assert found.scores == (1, 0, 1, 1, 0, 1)
    assert found.failures == ("OutOfTimeError: no answer within 1 s",) * 2
    assert found.num_unanswered == 2


def test_equal_rows_are_each_run_and_scored_with_their_own_label():
    text = "row 3"
    rows = [dspy.Example(text=text, label=label).with_inputs("text") for label in (1, 0, 1)]
    program = Parity()
    assert evaluate(program, [*rows, rows[0]], is_right).scores == (1, 0, 1, 1)
    assert len(program.calls) == 4


def test_a_row_that_is_sent_again_is_run_once(monkeypatch):
    started, go_on, scored = threading.Event(), threading.Event(), []

    class Slow(Parity):
        def forward(self, text):
            started.set()
            assert go_on.wait(20)
            return super().forward(text)

    class SendsTwice(dspy.Evaluate):
        def __call__(self, program):
            row = self.devset[0]

            def send():
                self.metric(row, program(**row.inputs()))

            first = threading.Thread(target=send)
            first.start()
            assert started.wait(20)
            threading.Timer(0.1, go_on.set).start()
            results = super().__call__(program)
            first.join()
            return results

    monkeypatch.setattr(dspy, "Evaluate", SendsTwice)
    program = Slow()
    found = evaluate(program, ROWS[:1], lambda *pair: scored.append(pair) or 1.0, num_threads=1)
    assert found.scores == (1.0,)
    assert len(program.calls) == len(scored) == 1


def test_callbacks_get_the_program_its_rows_and_its_exceptions():
    seen = []

    class Tracker(BaseCallback):
        def on_evaluate_start(self, call_id, instance, inputs):
            seen.append((inputs["program"], list(instance.devset)))

        def on_evaluate_end(self, call_id, outputs, exception=None):
            seen.append(outputs.results)

        def on_module_end(self, call_id, outputs, exception=None):
            seen.append(exception or outputs)

    program = Parity(raises=(1,))
    with dspy.context(callbacks=[Tracker()]):
        evaluate(program, ROWS[:2], is_right, num_threads=1)
    (given, rows), *ended, results = seen
    assert isinstance(given, Parity) and given.step is program.step
    assert rows == ROWS[:2]
    assert ended[0].label == 0 and str(ended[1]) == "no answer for 1"
    assert [score for *_, score in results] == [1.0, 0.0]


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_finite_number_is_refused(score):
    with pytest.raises(ValueError, match="must return a finite number"):
        as_float(score)


@pytest.mark.parametrize("score", [None, "1", dspy.Prediction(score=None)])
def test_a_score_that_is_no_number_is_refused(score):
    with pytest.raises(TypeError, match="must return a number"):
        as_float(score)


def test_ctrl_c_in_a_run_ends_the_evaluation():
    class Interrupted(Parity):
        def forward(self, text):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(Interrupted(), ROWS, is_right, num_threads=1)


class Slow(Parity):
    """Sends this process a signal in its sixth run."""

    def __init__(self, number):
        super().__init__()
        self.signal = number

    def forward(self, text):
        time.sleep(0.05)
        prediction = super().forward(text)
        if len(self.calls) == 6:
            os.kill(os.getpid(), self.signal)
        return prediction


@pytest.mark.skipif(
    threading.current_thread() is not threading.main_thread(),
    reason="only the main thread gets signals",
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("num_threads", [1, 4])
def test_after_a_signal_no_row_is_run_any_more(number, num_threads, caplog):
    rows = [dspy.Example(text=f"row {k}", label=k % 2).with_inputs("text") for k in range(60)]
    program = Slow(number)
    with pytest.raises(KeyboardInterrupt), sigterm_as_interrupt():
        evaluate(program, rows, is_right, num_threads=num_threads)
    time.sleep(0.3)  # runs that were under way end
    before = len(program.calls)
    assert before < 20
    time.sleep(0.5)
    assert len(program.calls) == before
    assert "Error for" not in caplog.text


def test_evaluations_are_joined_with_the_failures_of_both():
    first = evaluate(Parity(raises=(1,)), ROWS[:2], is_right, num_threads=1)
    both = first.followed_by(first)
    assert both.scores == (1.0, 0.0, 1.0, 0.0) and len(both.traces) == 4
    assert both.failed == (1, 3)
    assert both.failures == ("RuntimeError: no answer for 1",) * 2


@pytest.mark.parametrize("num_threads", [1, 3])
def test_known_outcomes_are_not_run_and_each_other_one_is_told_as_it_ends(num_threads):
    program, told = Parity(raises=(4,)), {}
    known = {1: Outcome(0.25), 2: Outcome(None, failure=Failure("gone", "unanswered"))}
    found = evaluate(
        program, ROWS, is_right, num_threads=num_threads, known=known, on_end=told.__setitem__
    )
    assert found.scores == (1.0, 0.25, 0.0, 1.0, 0.0, 1.0)
    assert (found.failed, found.num_unanswered) == ((2, 4), 1)
    assert sorted(program.calls) == ["row 0", "row 3", "row 4", "row 5"]
    assert {number: outcome.score for number, outcome in told.items()} == {
        0: 1.0,
        3: 1.0,
        4: None,
        5: 1.0,
    }


@pytest.mark.parametrize("num_threads", [1, 3])
def test_what_on_end_raises_ends_the_evaluation(num_threads):
    def full(number, outcome):
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="disk is full"):
        evaluate(Parity(), ROWS, is_right, num_threads=num_threads, on_end=full)


def test_known_failures_count_before_any_run():
    program = Parity()
    known = {number: Outcome(None, failure=Failure("gone")) for number in range(2)}
    with pytest.raises(TooManyFailuresError, match=r"2 of 6 .*max_errors=1; the last: gone"):
        evaluate(program, ROWS, is_right, max_errors=1, known=known)
    assert program.calls == []
