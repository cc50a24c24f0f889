import copy
import logging
import re
from pathlib import Path

import pytest
from doubles import WordDenoiser
from test_progress import compiled

from dspy_diffusion_infill.optimizer.callbacks import SearchCallback
from dspy_diffusion_infill.optimizer.diffusion_infill import DiffusionInfill


class Recorder(SearchCallback):
    def __init__(self) -> None:
        self.events: list[tuple[str, object]] = []

    def of(self, kind: str) -> list:
        return [event for name, event in self.events if name == kind]

    def on_start(self, event) -> None:
        self.events.append(("start", event))

    def on_proposal(self, event) -> None:
        self.events.append(("proposal", event))

    def on_trial(self, event) -> None:
        self.events.append(("trial", event))

    def on_best(self, event) -> None:
        self.events.append(("best", event))

    def on_end(self, event) -> None:
        self.events.append(("end", event))


class Raises(SearchCallback):
    def __init__(self, error: BaseException) -> None:
        self.error, self.num_trials = error, 0

    def on_trial(self, event) -> None:
        self.num_trials += 1
        raise self.error


def test_every_event_is_told_in_order_with_what_is_known_then():
    seen = Recorder()
    better = compiled(seen)
    results, kinds = better.detailed_results, [kind for kind, _ in seen.events]
    assert (kinds[0], kinds[1], kinds[-1]) == ("start", "proposal", "end")
    assert kinds.count("start") == kinds.count("end") == 1
    (start,), (end,) = seen.of("start"), seen.of("end")
    assert start.results.trials == () and start.results.scores_before == results.scores_before
    assert (start.results.metric_calls, start.most_metric_calls) == (5, 30)
    assert end.program is better and end.results is results
    assert [event.trial for event in seen.of("trial")] == list(results.trials)
    assert [event.trial for event in seen.of("best")] == [t for t in results.trials if t.accepted]
    assert seen.of("best")[-1].results.instructions_after == results.instructions_after
    for number, event in enumerate(seen.of("trial"), start=1):
        assert len(event.results.trials) == number
        assert event.results.metric_calls == event.trial.spent.metric_calls
    assert sum(len(event.proposals) for event in seen.of("proposal")) == results.counts.proposed


def test_a_proposal_that_is_not_tried_is_told_with_the_reason():
    seen = Recorder()
    results = compiled(seen).detailed_results
    told = [one for event in seen.of("proposal") for one in event.refused()]
    assert tuple(told) == results.refused
    reasons = [one.reason for one in told]
    assert len(told) > 0
    for reason in set(reasons):
        assert reasons.count(reason) == getattr(results.counts, reason)


def test_callbacks_do_not_change_the_search():
    assert compiled(Recorder()).detailed_results == compiled().detailed_results


def test_a_callback_that_raises_is_logged_once_and_the_search_goes_on(caplog):
    broken, seen = Raises(RuntimeError("no disk")), Recorder()
    with caplog.at_level(logging.WARNING):
        better = compiled(broken, seen)
    assert better.detailed_results == compiled().detailed_results
    assert broken.num_trials == len(seen.of("trial")) > 1
    told = [record.getMessage() for record in caplog.records if "Raises.on_trial" in record.message]
    assert told == ["Raises.on_trial raised, and the search goes on: RuntimeError('no disk')"]


def test_ctrl_c_in_a_callback_ends_the_search_and_the_end_is_told():
    seen = Recorder()
    with pytest.raises(KeyboardInterrupt) as caught:
        compiled(Raises(KeyboardInterrupt()), seen)
    (end,) = seen.of("end")
    assert end.results.end_reason == "interrupted"
    assert end.program is vars(caught.value)["best_program"]


def test_a_search_whose_first_evaluation_is_cut_off_tells_the_end_alone():
    seen = Recorder()

    def interrupted(prompt: str) -> str:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compiled(seen, rule=interrupted)
    assert [kind for kind, _ in seen.events] == ["end"]


def test_a_resumed_search_tells_everything_again(tmp_path: Path):
    first, again = Recorder(), Recorder()
    results = compiled(first, log_dir=tmp_path).detailed_results
    resumed = compiled(again, log_dir=tmp_path).detailed_results
    assert (resumed.trials, resumed.refused) == (results.trials, results.refused)
    assert [kind for kind, _ in again.events] == [kind for kind, _ in first.events]


def test_copies_of_an_optimizer_share_its_callbacks():
    seen = Recorder()
    optimizer = DiffusionInfill(None, WordDenoiser(), callbacks=[seen])
    assert copy.deepcopy(optimizer).search_callbacks == (seen,)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (Recorder, "got <class"),
        ([Recorder], "got callbacks[0]=<class"),
        ([print], "got callbacks[0]=<built-in"),
        ("on_trial", "got 'on_trial'"),
        (None, "got None"),
    ],
)
def test_what_is_no_callback_is_refused(given, shown):
    with pytest.raises(TypeError, match="callbacks must be a list of SearchCallback") as caught:
        DiffusionInfill(callbacks=given)
    assert re.search(re.escape(shown), str(caught.value))
