"""``dspy-infill demo`` from its options to its figures; denoiser and LM obey rules."""

import json
import locale
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from doubles import RuleEngine, WordDenoiser, rule_lm
from loopback import loopback, prompt_of
from typer.testing import CliRunner, Result

from dspy_diffusion_infill.cli import app as cli
from dspy_diffusion_infill.cli import demo_run
from dspy_diffusion_infill.errors import DataError, DiffusionInfillError, TooManyErrors
from dspy_diffusion_infill.lms import embedded
from dspy_diffusion_infill.optimizer import diffusion_infill

FIRST = "Read what the customer wrote and then tell us the colour that is meant"
COLOURS = ("red", "blue", "green")


def rows_of(number: int) -> list[dict[str, str]]:
    colours = [COLOURS[k % len(COLOURS)] for k in range(number)]
    return [{"note": f"thing {k} is {c}", "colour": c} for k, c in enumerate(colours)]


def colour_of(prompt: str) -> str:
    return re.findall(r"thing \d+ is (\w+)", prompt)[-1]


def right_if_told_briefly(prompt: str) -> str:
    return colour_of(prompt) if re.search(r"\b(?:only|word)\b", prompt) else "I cannot say."


def write_task(folder: Path) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows_of(60)))
    return path


@pytest.fixture
def task(tmp_path: Path) -> Path:
    return write_task(tmp_path)


@pytest.fixture
def denoiser(monkeypatch: pytest.MonkeyPatch) -> WordDenoiser:
    """What every name of a denoiser loads; it finds responses likelier where "only" is said."""
    double = WordDenoiser()

    def score(requests) -> list[tuple[float, ...]]:
        texts = [double.decode(list(request.input_ids)) for request in requests]
        likely = [text.count("only") - 10.0 for text in texts]
        pairs = zip(likely, requests, strict=True)
        return [tuple(one for _ in request.targets) for one, request in pairs]

    monkeypatch.setattr(double, "score", score)
    monkeypatch.setattr(diffusion_infill, "load_denoiser", lambda name: double)
    return double


@pytest.fixture
def obey(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str], str]], RuleEngine]:
    """Puts an LM that obeys a rule in the embedded one's place."""

    def put(rule: Callable[[str], str]) -> RuleEngine:
        lm, engine = rule_lm(rule)
        monkeypatch.setattr(embedded, "embedded_lm", lambda: lm)
        return engine

    return put


def run(task: Path, *options: str, **settings) -> Result:
    fields = ["--input", "note", "--output", "colour", "--instructions", FIRST]
    command = ["demo", "--task", str(task), *fields, *options]
    return CliRunner().invoke(cli.app, command, **settings)


def words(text: str) -> str:
    """The text without line breaks, which depend on the terminal."""
    return " ".join(text.split())


# A whole run


def test_figures_say_what_the_run_did(task, denoiser, obey, tmp_path):
    engine, path = obey(right_if_told_briefly), tmp_path / "figures.json"
    result = run(task, "--max-metric-calls", "150", "--json", str(path))
    assert result.exit_code == 0, result.exception
    figures = json.loads(path.read_bytes())
    assert (figures["heldout_before"], figures["heldout_after"]) == (0.0, 1.0)
    assert (figures["validation_before"], figures["validation_after"]) == (0.0, 1.0)
    calls, best = zip(*figures["curve"], strict=True)
    assert calls[-1] == figures["metric_calls"] <= 150 and sorted(calls) == list(calls)
    assert (best[0], best[-1]) == (0.0, 1.0) and sorted(best) == list(best)
    assert (figures["heldout_rows"], figures["heldout_calls"]) == (30, 60)
    assert len(engine.prompts) == figures["metric_calls"] + figures["heldout_calls"]
    assert figures["denoiser_passes"] == denoiser.num_passes > 0
    assert 0 < figures["compile_seconds"] <= figures["seconds"] < 60
    assert figures["instructions_before"] == FIRST
    assert engine.prompts[-1].strip().startswith(figures["instructions_after"] + "\n\nNote: ")
    assert f"figures written to {path}" in words(result.output)


def test_the_report_shows_scores_costs_and_the_diff_in_colour(task, denoiser, obey):
    obey(right_if_told_briefly)
    colour = {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "300", "NO_COLOR": None}
    output = run(task, "--max-metric-calls", "120", env=colour).output
    assert re.search(r"\x1b\[9;31mRead", output), "what was taken out: red, struck through"
    assert re.search(r"\x1b\[1;32m[^\x1b]*(only|word)", output), "what was put in: bold green"
    plain = re.sub(r"\x1b\[[\d;]*m", "", output)
    assert re.search(r"validation\W+0\.0%\W+100\.0%\W+\+100\.0", plain)
    assert re.search(r"held-out\W+0\.0%\W+100\.0%\W+\+100\.0", plain)
    assert "60 program runs on held-out rows, 30 failed, most often (30): AdapterParseEr" in plain


def test_the_bundled_rows_need_no_option(denoiser, obey, tmp_path):
    obey(lambda prompt: "positive")
    path = tmp_path / "figures.json"
    command = ["demo", "--max-metric-calls", "32", "--json", str(path)]
    result = CliRunner().invoke(cli.app, command)
    assert result.exit_code == 0, result.exception
    figures = json.loads(path.read_bytes())
    assert figures["heldout_before"] == figures["heldout_after"] == 0.5
    assert figures["heldout_rows"] == 64
    assert figures["instructions_before"] == demo_run.BUNDLED_INSTRUCTIONS


def test_another_lm_is_reached_through_dspys_own_adapter(task, denoiser, monkeypatch, tmp_path):
    def answer(_: int, body: dict) -> str:
        colour = colour_of(prompt_of(body)) if "only" in prompt_of(body) else "red"
        return f"[[ ## colour ## ]]\n{colour}\n\n[[ ## completed ## ]]"

    path = tmp_path / "figures.json"
    with loopback(answer) as server:
        reach(monkeypatch, server.url)
        lm = ["--lm", "openai/loopback", "--max-heldout", "9"]
        result = run(task, *lm, "--max-metric-calls", "120", "--json", str(path))
    assert result.exit_code == 0, result.exception
    assert all("[[ ## colour ## ]]" in prompt_of(body) for body in server.bodies)
    figures = json.loads(path.read_bytes())
    assert (figures["heldout_rows"], figures["heldout_calls"]) == (9, 18)
    assert figures["heldout_before"] < figures["heldout_after"] == 1.0


def reach(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Lets the names of OpenAI's LMs mean a server on loopback."""
    for name in ("OPENAI_API_BASE", "OPENAI_BASE_URL"):
        monkeypatch.setenv(name, url)
    monkeypatch.setenv("OPENAI_API_KEY", "wrong")


# What it costs


def test_held_out_runs_are_bounded_and_announced_before_the_first_call(denoiser, obey, tmp_path):
    task = tmp_path / "rows.jsonl"
    task.write_text("".join(json.dumps(row) + "\n" for row in rows_of(1000)))
    engine = obey(colour_of)
    result = run(task, "--max-metric-calls", "32")
    assert result.exit_code == 0, result.exception
    output = words(result.output)
    assert "16 train, 32 validation, 200 of 952 held-out rows" in output
    announced = "held-out rows, before and after it: 400 program runs more, about "
    assert announced in output
    assert output.index(announced) < output.index("first evaluation")
    assert len(engine.prompts) == 432
    assert "400 program runs on held-out rows" in output


def test_how_many_held_out_rows_are_run_is_an_option(task, denoiser, obey):
    engine = obey(colour_of)
    result = run(task, "--max-metric-calls", "15", "--max-heldout", "10")
    assert "10 of 30 held-out rows" in words(result.output)
    assert len(engine.prompts) == 15 + 2 * 10


def test_a_budget_below_the_first_evaluation_is_refused_before_any_call(task, denoiser, obey):
    engine = obey(colour_of)
    result = run(task, "--max-metric-calls", "14")
    assert_refused(result, ValueError, "--max-metric-calls must be at least 15")
    assert engine.prompts == []


def assert_refused(result: Result, kind: type[Exception], message: str) -> None:
    assert result.exit_code != 0
    assert isinstance(result.exception, kind), result.exception
    assert message in str(result.exception)


# An LM that fails


def test_an_lm_that_fails_on_every_row_ends_the_demo_before_the_search(task, denoiser, obey):
    def no_key(prompt: str) -> str:
        raise RuntimeError("the key is wrong")

    engine = obey(no_key)
    result = run(task)
    assert_refused(result, DiffusionInfillError, "failed on all of the first 8 rows")
    assert "the key is wrong" in str(result.exception)
    assert len(engine.prompts) == 8
    assert denoiser.num_passes == 0


def test_a_servers_refusal_is_quoted(task, denoiser, monkeypatch):
    with loopback(lambda number, body: 401) as server:
        reach(monkeypatch, server.url)
        result = run(task, "--lm", "openai/loopback-401")
    assert_refused(result, DiffusionInfillError, "slow down")
    assert len(server.bodies) == 8


def test_unreadable_answers_do_not_end_the_demo(task, denoiser, obey):
    obey(lambda prompt: "I cannot say.")
    result = run(task, "--max-metric-calls", "15")
    assert result.exit_code == 0, result.exception
    assert re.search(r"held-out\W+0\.0%\W+0\.0%", result.output)


def test_a_few_failures_among_the_first_rows_do_not_end_the_demo(task, denoiser, obey):
    seen = []

    def wakes_up(prompt: str) -> str:
        seen.append(prompt)
        if len(seen) < 8:
            raise RuntimeError("loading")
        return colour_of(prompt)

    obey(wakes_up)
    result = run(task, "--max-metric-calls", "15")
    assert result.exit_code == 0, result.exception
    assert "60 program runs on held-out rows, 7 failed" in words(result.output)


def test_an_lm_that_stops_answering_ends_the_search_and_what_it_found_is_shown(
    task, denoiser, obey
):
    seen = []

    def runs_dry(prompt: str) -> str:
        seen.append(prompt)
        if len(seen) > 30 + 3 * 15:
            raise RuntimeError("the quota is spent")
        return "I cannot say." if colour_of(prompt) == "green" else right_if_told_briefly(prompt)

    obey(runs_dry)
    result = run(task, "--max-metric-calls", "150")
    assert_refused(result, TooManyErrors, "the quota is spent")
    assert re.search(r"validation\W+0\.0%\W+[4-9]\d\.\d%", result.output)


# The figures' file


def test_the_folder_of_the_figures_is_made(task, denoiser, obey, tmp_path):
    obey(colour_of)
    path = tmp_path / "new" / "folder" / "figures.json"
    run(task, "--max-metric-calls", "15", "--json", str(path))
    assert json.loads(path.read_bytes())["heldout_after"] == 1.0


def test_figures_are_written_before_the_report_is_printed(
    task, denoiser, obey, tmp_path, monkeypatch
):
    def breaks(*_, **__):
        raise OSError("the terminal is gone")

    obey(colour_of)
    monkeypatch.setattr(demo_run, "print_report", breaks)
    result = run(task, "--max-metric-calls", "15", "--json", str(tmp_path / "figures.json"))
    assert isinstance(result.exception, OSError)
    assert json.loads((tmp_path / "figures.json").read_bytes())["heldout_after"] == 1.0


@pytest.mark.parametrize("place", ["file/figures.json", "folder"])
def test_a_place_for_the_figures_that_cannot_be_is_said_first(
    task, denoiser, obey, tmp_path, place
):
    engine = obey(colour_of)
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    result = run(task, "--json", str(tmp_path / place))
    assert result.exit_code != 0
    assert "--json" in f"{result.output}{result.exception}"
    assert engine.prompts == []


def test_figures_are_utf8_whatever_the_locale_is(task, denoiser, obey, tmp_path):
    obey(colour_of)
    path, before = tmp_path / "figures.json", locale.setlocale(locale.LC_CTYPE)
    locale.setlocale(locale.LC_CTYPE, "C")
    try:
        told = ["--instructions", "Dis la couleur désirée par la cliente à présent, s'il te plaît"]
        result = run(task, *told, "--max-metric-calls", "15", "--json", str(path))
    finally:
        locale.setlocale(locale.LC_CTYPE, before)
    assert result.exit_code == 0, result.exception
    assert "désirée" in json.loads(path.read_text(encoding="utf-8"))["instructions_before"]


# Fields and rows that are refused


def test_a_wrong_input_name_is_said_with_the_names_that_there_are(task, denoiser, obey):
    engine = obey(colour_of)
    result = run(task, "--input", "text")
    assert_refused(result, DataError, "no field 'text' (found ['colour', 'note'])")
    assert "--input" in str(result.exception)
    assert engine.prompts == []


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (["--output", "note"], "must name two fields, got 'note' twice"),
        (["--input", "demos"], "dspy.Predict has no other use for, got 'demos'"),
        (["--output", " "], "got ' '; rename the field"),
        (["--input", "_id"], "DSPy does not take ['_id', 'colour'] as fields"),
        (["--output", "color"], "no field 'color'"),
    ],
)
def test_fields_that_cannot_make_a_program_are_refused_first(task, denoiser, obey, given, problem):
    engine = obey(colour_of)
    task.write_text("".join(json.dumps({**row, "_id": "1"}) + "\n" for row in rows_of(60)))
    result = run(task, *given)
    assert_refused(result, ValueError, problem)
    assert engine.prompts == []


def test_fields_are_those_of_own_rows(denoiser, obey):
    engine = obey(colour_of)
    result = CliRunner().invoke(cli.app, ["demo", "--input", "review"])
    assert_refused(result, ValueError, "give --task too; the bundled rows have the fields 'text'")
    assert engine.prompts == []


def test_a_held_out_row_without_a_label_is_refused_before_any_call(task, denoiser, obey):
    engine, rows = obey(colour_of), rows_of(60)
    rows[-1]["colour"] = None
    task.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for seed in ("0", "1", "2"):
        assert_refused(run(task, "--seed", seed), ValueError, "colour")
    assert engine.prompts == []
