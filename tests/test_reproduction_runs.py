import json
import os
import re
import signal
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import forked
import pytest
from doubles import WordDenoiser
from forked import Program
from loopback import RATE_LIMITED, Loopback, loopback, prompt_of
from small_experiment import (
    CONTENT,
    NUM_ARTICLES,
    NUM_SYSTEMS,
    NUM_TEST,
    PLAIN,
    FilledIn,
    infilled_by,
    run_small,
    small_experiment,
    specs,
    write_summeval,
)

from dspy_diffusion_infill.errors import ExperimentError
from dspy_diffusion_infill.evaluation.agreement import agreement
from dspy_diffusion_infill.reproduction.experiment_run import run_experiment
from dspy_diffusion_infill.reproduction.journals import RunStopped
from dspy_diffusion_infill.reproduction.models import Models
from dspy_diffusion_infill.reproduction.tables import Table


def verdict(number: int, body: dict) -> str:
    """A score that depends on model, prompt and nothing else; the seed is another sample."""
    digest = zlib.crc32(f"{body['model']}{prompt_of(body)}".encode())
    return f"Well. [RESULT] {1 + digest % 5}"


@pytest.fixture(autouse=True)
def no_denoiser(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in for the optimizer never looks at it."""
    monkeypatch.setattr(Models, "denoiser", lambda self, name: WordDenoiser(name=name))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_summeval(tmp_path_factory.mktemp("rows") / "data")


@dataclass(frozen=True)
class Whole:
    """A run from start to end."""

    output: Path
    table: Table
    bodies: list[dict]
    infill: FilledIn


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    output, infill = tmp_path_factory.mktemp("whole"), FilledIn()
    with loopback(verdict) as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr(Models, "denoiser", lambda self, name: WordDenoiser(name=name))
        table = run_small(data, output, server.url, infill=infill)
        return Whole(output, table, server.bodies, infill)


def repeated(server: Loopback) -> dict:
    """What was asked more than once: each seed may ask the same prompt for another sample."""
    asked = Counter((body["model"], prompt_of(body)) for body in server.bodies)
    return {key: count for key, count in asked.items() if count > 2}


def test_a_run_writes_table_csv_plot_and_prompts(whole: Whole) -> None:
    output, table = whole.output, whole.table
    assert [row.num_rows for row in table.rows] == [2 * NUM_TEST] * 3
    plain, infilled, transferred = (row.ours["spearman"] for row in table.rows)
    assert plain.mean is not None and plain.num_runs == 2
    assert infilled.mean is not None and transferred.mean is not None
    text = (output / "small.md").read_text(encoding="utf-8")
    assert "| A | C-gen |" in text
    assert "0.100 ± 0.200" in text
    assert f"Verdicts: {6 * NUM_TEST} asked for, {6 * NUM_TEST} read, 0 unreadable" in text
    assert f"Measured on {NUM_TEST} of {NUM_TEST} rows of data/outputs.jsonl" in text
    assert "openai/a |" in text and "openai/b |" in text
    header, *lines = (output / "small.csv").read_text(encoding="utf-8").splitlines()
    assert header.startswith("Answers,Prompt,pearson,pearson_std,pearson_runs,paper_pearson,")
    assert len(lines) == 3
    assert (output / "small.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (output / "small.svg").read_bytes()
    assert "Judge with care (1.0)." in (output / "small_prompts.md").read_text(encoding="utf-8")


def test_a_prompt_is_searched_once_a_seed_and_handed_to_the_other_model(whole: Whole) -> None:
    assert whole.infill.num_searches == 2
    others = [body for body in whole.bodies if body["model"] == "b"]
    assert len(others) == 2 * NUM_TEST
    assert all("Judge with care" in prompt_of(body) for body in others)


def test_a_finished_run_costs_nothing_and_gives_the_same_table(
    data: Path, tmp_path: Path, whole: Whole
) -> None:
    infill = FilledIn()
    with loopback(verdict) as server:
        again = run_small(data, whole.output, server.url, infill=infill)
        assert (len(server.bodies), infill.num_searches) == (0, 0)
        elsewhere = run_small(data, tmp_path / "elsewhere", server.url)
    assert whole.table.markdown() == again.markdown() == elsewhere.markdown()
    assert whole.table.csv() == again.csv() == elsewhere.csv()


@pytest.mark.parametrize("num_answers", [3, 25])
def test_a_stopped_run_goes_on_to_the_same_table_and_asks_nothing_twice(
    data: Path, tmp_path: Path, whole: Whole, num_answers: int
) -> None:
    def stopping(number: int, body: dict) -> str:
        if number == num_answers:
            os.kill(os.getpid(), signal.SIGTERM)
        return verdict(number, body)

    num_calls = len(whole.bodies)
    with loopback(stopping) as server:
        with pytest.raises(RunStopped):
            run_small(data, tmp_path / "out", server.url)
        assert num_answers < len(server.bodies) < num_calls
        written = tmp_path / "out/small.md"
        assert written.is_file() == (num_answers > 2 * NUM_TEST)
        if written.is_file():  # the first row is measured, the others are not yet
            first, *others = written.read_text(encoding="utf-8").splitlines()[4:7]
            assert "| openai/a |" in first
            assert all(line.endswith("| not run yet |") for line in others)
        resumed = run_small(data, tmp_path / "out", server.url)
    assert resumed.markdown() == whole.table.markdown()
    assert len(server.bodies) == num_calls
    assert not repeated(server)


def test_a_killed_process_loses_no_answer(data: Path, tmp_path: Path) -> None:
    script = Path(__file__).with_name("small_experiment.py")
    programs: list[Program] = []

    def killing(number: int, body: dict) -> str:
        if number == 5 and programs:
            programs[0].process.kill()
        return verdict(number, body)

    with loopback(killing) as server:
        words = [str(script), str(data), str(tmp_path / "out"), server.url]
        programs.append(forked.start(words, tmp_path / "printed", cwd=tmp_path))
        assert programs[0].wait(120) == -signal.SIGKILL, programs[0].stderr
        num_lost = len(server.bodies)
        resumed = run_small(data, tmp_path / "out", server.url, conditions=PLAIN, threads=1)
        whole = run_small(data, tmp_path / "whole", server.url, conditions=PLAIN)
    assert resumed.markdown() == whole.markdown()
    # The kill came while the sixth call was under way: that one is asked again, and no other.
    assert num_lost == 6
    assert len(server.bodies) == 6 + (2 * NUM_TEST - 5) + 2 * NUM_TEST


ODD_ANSWERS = {
    "2, said 0": ["Fine."],
    "2, said 1": [""],
    "2, said 2": ["[RESULT] 7"],
    "3, said 0": [RATE_LIMITED, "[RESULT] 4.2"],
    "3, said 1": ["Well.", "[RESULT] 2"],
    "3, said 2": [503, RATE_LIMITED, "", "[RESULT] 1"],
}


def test_odd_answers_are_counted_in_the_footer_and_only_verdicts_are_scored(
    data: Path, tmp_path: Path
) -> None:
    seen: Counter[str] = Counter()

    def odd(number: int, body: dict) -> str | int:
        name = next((name for name in ODD_ANSWERS if name in prompt_of(body)), None)
        if name is None:
            return verdict(number, body)
        seen[name] += 1
        return ODD_ANSWERS[name][min(seen[name], len(ODD_ANSWERS[name])) - 1]

    options = {"conditions": PLAIN, "seeds": [0], "threads": 1}
    with loopback(odd) as server:
        table = run_small(data, tmp_path / "out", server.url, **options)
    footer = table.markdown()
    assert (
        "Verdicts: 12 asked for, 9 read, 3 unreadable and not scored, 5 retries; "
        "unreadable answers: empty 3, no score 3, out of range 2." in footer
    )
    assert "error of the LM's server: 3 (HTTP 429: 2, HTTP 503: 1)." in footer
    assert "asked for again by the next run: 0." in footer
    lines = (tmp_path / "out/rows.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line)["value"] for line in lines]
    scores = [row["score"] for row in rows]
    assert (scores.count(None), scores.count(4.2)) == (3, 1)
    scored = [row for row in rows if row["score"] is not None]
    alone = agreement([row["score"] for row in scored], [row["human"] for row in scored])
    assert table.rows[0].ours["pearson"].mean == pytest.approx(alone.pearson)


def test_the_estimate_is_said_before_any_call_and_the_time_at_the_end(
    data: Path, tmp_path: Path
) -> None:
    with loopback(verdict) as server:
        for _ in range(2):
            before, said = len(server.bodies), []
            with infilled_by(FilledIn()):
                run_experiment(
                    small_experiment(),
                    specs(server.url),
                    data=data,
                    output=tmp_path / "out",
                    echo=lambda line, to=said: to.append((line, len(server.bodies))),
                )
            lines = [line for line, _ in said]
            assert [calls for _, calls in said[:3]] == [before] * 3
            assert lines[0] == "Small (full scale): 6 cells, at most:"
            assert re.search(
                r"^small: \d+ s; \d+ calls made, \d+ answered from the jour", lines[-1]
            )
            made = re.search(r"(\d+) calls made", lines[-1])
            assert made is not None
            assert int(made[1]) == len(server.bodies) - before
            if before == 0:
                assert re.search(r"^  a: \d+ calls, .* prompt tokens, .* denoiser passes", lines[1])
            else:
                assert lines[1:3] == ["  a: nothing left to do", "  b: nothing left to do"]


def test_a_failed_call_is_left_out_and_asked_for_again(data: Path, tmp_path: Path) -> None:
    broken = True

    def sometimes(number: int, body: dict) -> str | int:
        return 400 if broken and "said 1" in prompt_of(body) else verdict(number, body)

    options = {"conditions": PLAIN, "seeds": [0]}
    num_bad = NUM_TEST // NUM_SYSTEMS
    with loopback(sometimes) as server:
        table = run_small(data, tmp_path / "out", server.url, **options)
        assert (table.rows[0].num_rows, table.rows[0].num_failed) == (NUM_TEST - num_bad, num_bad)
        assert f"asked for again by the next run: {num_bad}." in table.markdown()
        broken, before = False, len(server.bodies)
        table = run_small(data, tmp_path / "out", server.url, **options)
        assert (table.rows[0].num_rows, table.rows[0].num_failed) == (NUM_TEST, 0)
        assert len(server.bodies) == before + num_bad


def test_too_many_failed_calls_end_the_run(data: Path, tmp_path: Path) -> None:
    with loopback(lambda *_: 400) as server:
        with pytest.raises(ExperimentError, match=r"more than max_errors=3 calls failed.*go on"):
            run_small(data, tmp_path / "out", server.url, max_errors=3, threads=1)
        assert len(server.bodies) == 4


def test_a_row_that_is_not_run_stays_in_the_table_and_asks_nothing(
    data: Path, tmp_path: Path, whole: Whole
) -> None:
    conditions = [CONTENT["conditions"][0], CONTENT["conditions"][2] | {"not_run": "no server"}]
    with loopback(verdict) as server:
        table = run_small(data, tmp_path / "out", server.url, conditions=conditions)
        assert {body["model"] for body in server.bodies} == {"a"}
    lines = table.markdown().splitlines()
    assert lines[4] in whole.table.markdown()
    assert (
        lines[5] == "| B | C-gen Infill (transfer) | – | – | – | – | – | – | not run: no server |"
    )
    assert table.csv().splitlines()[2].endswith(",0,0,0,not run: no server")


def test_equal_rows_are_asked_for_once(tmp_path: Path) -> None:
    data = write_summeval(tmp_path / "data")
    path = data / "outputs.jsonl"
    path.write_text(path.read_text(encoding="utf-8") * 2, encoding="utf-8")
    test = {"name": "summeval", "split": "all"}
    with loopback(verdict) as server:
        table = run_small(
            data, tmp_path / "out", server.url, test=test, conditions=PLAIN, seeds=[0]
        )
    assert table.rows[0].num_rows == 2 * NUM_ARTICLES * NUM_SYSTEMS
    assert len(server.bodies) == NUM_ARTICLES * NUM_SYSTEMS
