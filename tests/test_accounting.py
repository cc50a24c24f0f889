"""What runs take: by run, for the caller's tracker, and never twice."""

import dspy
import pytest
from doubles import rule_lm

from dspy_diffusion_infill.accounting import RunRefusedError
from dspy_diffusion_infill.runs import evaluate
from dspy_diffusion_infill.template_adapter import TemplateAdapter
from dspy_diffusion_infill.usage import ModelUsage, added, num_tokens, usage_of

ROWS = [dspy.Example(text=f"row {k}", label="a").with_inputs("text") for k in range(12)]


class Ledger:
    """Allows so many runs, and notes what it is told."""

    def __init__(self, num_allowed=100):
        self.num_allowed, self.settled = num_allowed, []

    def reserve(self):
        self.num_allowed -= 1
        return None if self.num_allowed < 0 else object()

    def settle(self, reservation, usage):
        self.settled.append((reservation, usage))


def is_right(example, prediction):
    return float(prediction.label == example.label)


def run(lm, *, rows=ROWS, score=is_right, **options):
    with dspy.context(lm=lm, adapter=TemplateAdapter()):
        return evaluate(dspy.Predict("text -> label"), rows, score, **options)


@pytest.mark.parametrize("num_threads", [1, 4])
def test_the_callers_tracker_sees_every_call_of_every_thread_once(num_threads):
    lm, engine = rule_lm(lambda prompt: "a")
    with dspy.track_usage() as outer:
        found = run(lm, num_threads=num_threads)
        run(lm, num_threads=num_threads)
    assert len(engine.prompts) == 2 * len(ROWS)
    assert len(outer.usage_data["test/rule"]) == 2 * len(ROWS)
    assert num_tokens(usage_of(outer)) == 2 * num_tokens(found.usage) == 4 * len(ROWS)


def test_threads_inside_a_run_count_for_it():
    class Votes(dspy.Module):
        def __init__(self):
            super().__init__()
            self.vote = dspy.Predict("text -> label")

        def forward(self, text):
            pairs = [(self.vote, {"text": text})] * 5
            return dspy.Parallel(num_threads=3, disable_progress_bar=True)(pairs)[0]

    ledger, (lm, engine) = Ledger(), rule_lm(lambda prompt: "a")
    with dspy.context(lm=lm, adapter=TemplateAdapter()), dspy.track_usage() as outer:
        found = evaluate(Votes(), ROWS[:4], is_right, num_threads=2, accountant=ledger)
    assert len(engine.prompts) == 20
    assert [usage for _, usage in ledger.settled] == [(ModelUsage("test/rule", 5, 5),)] * 4
    assert num_tokens(found.usage) == num_tokens(usage_of(outer)) == 40


def test_each_run_is_settled_once_with_what_it_took():
    ledger, (lm, _) = Ledger(), rule_lm(lambda prompt: "a")
    found = run(lm, num_threads=3, accountant=ledger)
    assert [usage for _, usage in ledger.settled] == [(ModelUsage("test/rule", 1, 1),)] * len(ROWS)
    assert len({id(reservation) for reservation, _ in ledger.settled}) == len(ROWS)
    assert found.usage == (ModelUsage("test/rule", len(ROWS), len(ROWS)),)


def test_a_run_that_raises_is_settled_with_what_it_took_until_then():
    class Raises(dspy.Module):
        def __init__(self):
            super().__init__()
            self.step = dspy.Predict("text -> label")

        def forward(self, text):
            self.step(text=text)
            raise RuntimeError("after the call")

    ledger, (lm, _) = Ledger(), rule_lm(lambda prompt: "a")
    with dspy.context(lm=lm, adapter=TemplateAdapter()):
        found = evaluate(Raises(), ROWS[:2], is_right, accountant=ledger, num_threads=1)
    assert found.num_failures == 2 and num_tokens(found.usage) == 4
    assert all(num_tokens(usage) == 2 for _, usage in ledger.settled)


@pytest.mark.parametrize("num_threads", [1, 4])
def test_a_refused_run_ends_the_evaluation_when_the_others_have_ended(num_threads):
    ledger, (lm, engine) = Ledger(num_allowed=5), rule_lm(lambda prompt: "a")
    with dspy.track_usage() as outer, pytest.raises(RunRefusedError):
        run(lm, num_threads=num_threads, accountant=ledger)
    assert len(engine.prompts) == len(ledger.settled) == 5
    assert num_tokens(usage_of(outer)) == 10


def test_ctrl_c_settles_the_run_that_it_ends():
    def interrupted(prompt: str) -> str:
        raise KeyboardInterrupt

    ledger = Ledger()
    with pytest.raises(KeyboardInterrupt):
        run(rule_lm(interrupted)[0], num_threads=1, accountant=ledger)
    assert len(ledger.settled) == 1


def test_equal_rows_are_settled_each():
    ledger, (lm, _) = Ledger(), rule_lm(lambda prompt: "a")
    run(lm, rows=[ROWS[0]] * 4, accountant=ledger, num_threads=2)
    assert len(ledger.settled) == 4


def test_a_metric_reads_the_usage_of_a_prediction_as_without_us():
    seen, (lm, _) = [], rule_lm(lambda prompt: "a")

    def score(example, prediction):
        seen.append(prediction.get_lm_usage())
        return 1.0

    with dspy.context(track_usage=True):
        run(lm, rows=ROWS[:1], score=score, num_threads=1)
    assert seen[0]["test/rule"]["total_tokens"] == 2


def test_usage_is_read_under_every_name_that_providers_give_it():
    with dspy.track_usage() as tracker:
        tracker.add_usage("a", {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7})
        tracker.add_usage("a", {"input_tokens": 1, "output_tokens": 2})
        tracker.add_usage("b", {"prompt_tokens": 1, "completion_tokens": None, "total_tokens": 9})
        tracker.add_usage("a", {})
    assert usage_of(tracker) == (ModelUsage("a", 4, 6), ModelUsage("b", 1, 8))
    assert added() == () and num_tokens(added(usage_of(tracker), usage_of(tracker))) == 38
