import re
from collections.abc import Callable
from typing import Any

import dspy
import pytest
from doubles import LEFT_TO_RIGHT, WordDenoiser, rule_lm
from tqdm.auto import tqdm

from dspy_diffusion_infill.optimizer import progress
from dspy_diffusion_infill.optimizer.callbacks import SearchCallback
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


def test_the_bar_shows_calls_the_best_score_and_calls_left(capsys: pytest.CaptureFixture[str]):
    results = search(display_progress=True)
    line = r"(\d+)/20 .*?best ([\d.]+), (\d+) edits kept, (\d+) calls left"
    shown = re.findall(line, stderr(capsys))
    assert shown[0] == ("5", "0.000", "0", "15"), "before the first trial"
    kept = sum(trial.accepted for trial in results.trials)
    last = (str(results.metric_calls), f"{results.score_after:.3f}", str(kept), "0")
    assert shown[-1] == last == ("20", "1.000", str(kept), "0")
    assert all(int(calls) + int(left) == 20 for calls, _, _, left in shown)


def test_a_wide_terminal_shows_window_money_and_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "200")
    prices = {"test/rule": (1000.0, 1000.0)}
    compiled(max_metric_calls=20, max_seconds=600, prices=prices, display_progress=True)
    *_, last = stderr(capsys).strip().splitlines()
    words = r"0\.04\d\d USD, at most \d+ s more, in self: “[\w …]{8,24}”"
    assert re.search(words, last), last
    assert re.search(r"\d\d:\d\d<", last), "tqdm's own time left"


def test_the_rate_leaves_out_the_calls_that_were_made_before_the_bar(
    monkeypatch: pytest.MonkeyPatch,
):
    bars: list[tqdm[Any]] = []

    def kept(**options: Any) -> "tqdm[Any]":
        bars.append(tqdm(**options))
        return bars[-1]

    monkeypatch.setattr(progress, "tqdm", kept)
    search(display_progress=True)
    assert [(bar.initial, bar.n) for bar in bars] == [(5, 20)]


def test_without_display_progress_nothing_is_shown(capsys: pytest.CaptureFixture[str]):
    search(display_progress=False)
    assert "infilling" not in stderr(capsys)


def stderr(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.replace("\r", "\n")
