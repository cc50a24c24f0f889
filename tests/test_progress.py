import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pytest
from doubles import LEFT_TO_RIGHT, WordDenoiser, rule_lm
from tqdm.auto import tqdm

from dspy_diffusion_infill.optimizer import progress
from dspy_diffusion_infill.optimizer.callbacks import RunEvent, SearchCallback
from dspy_diffusion_infill.optimizer.diffusion_infill import DiffusionInfill
from dspy_diffusion_infill.optimizer.results import DetailedResults
from dspy_diffusion_infill.template_adapter import TemplateAdapter

TASK = "Read what the customer wrote and then tell us the colour that is meant"
ROWS = [
    dspy.Example(text=f"it is {colour}", colour=colour).with_inputs("text")
    for colour in ("red", "blue", "green", "grey", "pink")
]


def right_if_told_briefly(prompt: str) -> str:
    colour = re.findall(r"it is (\w+)", prompt)[-1]
    return colour if re.search(r"\b(?:only|word)\b", prompt) else "no idea"


def compiled(
    *callbacks: SearchCallback, rule: Callable[[str], str] = right_if_told_briefly, **options: Any
) -> dspy.Module:
    quiet = dict(guidance=None, num_threads=1, max_metric_calls=30, display_progress=False, seed=3)
    with dspy.context(lm=rule_lm(rule)[0], adapter=TemplateAdapter()):
        optimizer = DiffusionInfill(
            None, WordDenoiser(), callbacks=callbacks, **{**LEFT_TO_RIGHT, **quiet, **options}
        )
        return optimizer.compile(dspy.Predict(dspy.Signature("text -> colour", TASK)), ROWS)


def search(*, display_progress: bool) -> DetailedResults:
    better = compiled(max_metric_calls=20, seed=0, display_progress=display_progress)
    return better.detailed_results


def test_the_bar_shows_the_first_evaluation_calls_the_best_score_and_edits(
    capsys: pytest.CaptureFixture[str],
):
    results = search(display_progress=True)
    text = stderr(capsys)
    first = re.findall(r"(\d)/20 \[.*?, first evaluation, (\d) of 5\]", text)
    assert ("0", "0") in first and ("4", "4") in first
    shown = re.findall(r"(\d+)/20 .*?best ([\d.]+), (\d+) kept", text)
    assert shown[0] == ("5", "0.000", "0"), "before the first trial"
    kept = sum(trial.accepted for trial in results.trials)
    assert shown[-1] == (str(results.metric_calls), f"{results.score_after:.3f}", str(kept))
    assert shown[-1][:2] == ("20", "1.000")


@pytest.mark.parametrize(
    ("columns", "caps", "words"),
    [
        (200, {"max_seconds": 600}, r"\$0\.\d{4}, \d+ s left, \d kept, self: “[\w …]{8,24}”"),
        (80, {}, r"\$0\.\d{4}, \d kept, self: “[\w …]{8,20}”"),
        (80, {"max_seconds": 600}, r"\$0\.\d{4}, \d+ s left, \d kept, “[\w …]{8,12}”"),
        (75, {"max_seconds": 600}, r"\$0\.\d{4}, \d+ s left, “[\w …]{8,12}”"),
    ],
)
def test_a_line_has_window_money_and_time_left_and_fits(
    columns: int,
    caps: dict[str, float],
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("COLUMNS", str(columns))
    prices = {"test/rule": (1000.0, 1000.0)}
    compiled(max_metric_calls=20, prices=prices, display_progress=True, **caps)
    lines = stderr(capsys).strip().splitlines()
    assert any(re.search(rf"best \d\.\d+, {words}\]", line) for line in lines), lines[-5:]
    # Without a terminal tqdm's bar itself has ten columns; there it has those that are left.
    assert max(len(line) for line in lines) <= columns + 9
    assert re.search(r"20/20 \[\d\d:\d\d<\d\d:\d\d, best", lines[-1]), "tqdm's own time left"


def test_the_rate_leaves_out_the_runs_that_the_journal_had(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    bars: list[tqdm[Any]] = []

    def kept(**options: Any) -> "tqdm[Any]":
        bars.append(tqdm(**options))
        return bars[-1]

    monkeypatch.setattr(progress, "tqdm", kept)
    for _ in range(2):
        compiled(max_metric_calls=20, log_dir=tmp_path, display_progress=True)
    assert [(bar.initial, bar.n) for bar in bars] == [(0, 20), (20, 20)]


def test_a_run_event_tells_how_far_which_evaluation_is():
    events: list[RunEvent] = []

    class Noting(SearchCallback):
        def on_run(self, event: RunEvent) -> None:
            events.append(event)

    results = compiled(Noting(), max_metric_calls=30, num_threads=4).detailed_results
    baseline = [one for one in events if one.about == "baseline"]
    ended = [one.ended for one in baseline]  # of two runs that end at once, both count twice
    assert ended == sorted(ended) and (ended[0], ended[-1], len(ended)) == (0, 5, 6)
    assert {(one.rows, one.replayed, one.most_metric_calls) for one in events} == {(5, 0, 30)}
    begun = [one for one in events if one.ended == 0]
    assert [one.about for one in begun] == ["baseline", *["trial"] * len(results.trials)]
    assert [one.spent.metric_calls for one in begun] == list(range(0, results.metric_calls, 5))


def test_without_display_progress_nothing_is_shown(capsys: pytest.CaptureFixture[str]):
    search(display_progress=False)
    assert "first evaluation" not in stderr(capsys)


def stderr(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.replace("\r", "\n")
