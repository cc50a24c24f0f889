import io
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from dspy_diffusion_infill.optimizer.results import DetailedResults, ProposalCounts
from dspy_diffusion_infill.report import counts_line, diff, print_report

RESULTS = DetailedResults(
    instructions_before={"self": "Tell me what it is."},
    instructions_after={"self": "Tell me which colour it is."},
    score_before=0.25,
    score_after=0.5,
    scores_before=(0.0, 0.0, 0.0, 1.0),
    scores_after=(0.0, 1.0, 0.0, 1.0),
    trials=(),
    counts=ProposalCounts(
        proposed=9, unchanged=2, degenerate=1, screened=3, validated=3, accepted=1
    ),
    metric_calls=16,
    num_failures=0,
    denoiser_passes=72,
    seconds=3.4,
    denoiser="word-denoiser",
    cache="off",
    guidance=None,
    skipped={},
)


def pieces(before: str, after: str) -> list[tuple[str, str]]:
    """(style, text) of every styled piece of the diff."""
    text = diff(before, after)
    return [(str(span.style), text.plain[span.start : span.end]) for span in text.spans]


def printed(results: DetailedResults, *scores: tuple[str, float, float], **settings) -> str:
    console = Console(file=io.StringIO(), width=100, **settings)
    print_report(results, scores or None, console=console)
    return console.file.getvalue()


def test_the_diff_strikes_out_what_went_and_colours_what_came():
    assert pieces("Tell me what it is.", "Tell me which colour it is.") == [
        ("red strike", " what"),
        ("bold green", " which colour"),
    ]
    assert diff("Tell me what it is.", "Tell me which colour it is.").plain == (
        "Tell me what which colour it is."
    )


def test_words_that_change_in_a_row_are_one_piece():
    assert pieces("Read all of it", "Say one word of it") == [
        ("red strike", "Read all"),
        ("bold green", "Say one word"),
    ]


# Without what rings bells and moves cursors: rich does not print it.
PRINTABLE = st.text(st.characters(exclude_characters="\a\b\v\f\r"), max_size=30)


@given(PRINTABLE, PRINTABLE)
def test_no_character_of_either_text_is_lost_in_the_diff(before, after):
    text = diff(before, after)
    lost = "".join(text.plain[s.start : s.end] for s in text.spans if s.style == "red strike")
    came = "".join(text.plain[s.start : s.end] for s in text.spans if s.style == "bold green")
    kept = len(text.plain) - len(lost) - len(came)
    assert (kept + len(lost), kept + len(came)) == (len(before), len(after))


def test_the_report_is_coloured_on_a_terminal_and_plain_in_a_file():
    coloured = printed(RESULTS, force_terminal=True, color_system="standard")
    assert "\x1b[9;31m what\x1b[0m" in coloured
    assert "\x1b[1;32m which colour\x1b[0m" in coloured
    assert "\x1b" not in printed(RESULTS)


def test_scores_are_shown_in_percent_with_their_change():
    text = printed(RESULTS, ("validation", 0.25, 0.5), ("held-out", 0.5, 0.375))
    lines = [line.replace("│", " ").split() for line in text.splitlines()]
    assert ["validation", "25.0%", "50.0%", "+25.0"] in lines
    assert ["held-out", "50.0%", "37.5%", "-12.5"] in lines


def test_without_scores_it_shows_those_of_the_validation():
    assert "validation" in printed(RESULTS)
    assert "held-out" not in printed(RESULTS)


def test_brackets_in_instructions_are_no_markup():
    odd = replace(RESULTS, instructions_after={"self": "Tell me [bold]what[/bold] it [/is]."})
    assert "Tell me [bold]what[/bold] it [/is]." in printed(odd)


def test_every_predictor_has_its_own_panel():
    both = {"find": "Find it.", "name": "Name it."}
    text = printed(replace(RESULTS, instructions_before=both, instructions_after=both))
    assert "instructions of find" in text
    assert "instructions of name" in text


def test_counts_say_what_became_of_proposals_and_what_it_took():
    assert counts_line(RESULTS) == (
        "9 proposals, 3 validated, 1 kept; dropped before any call: 2 unchanged, 1 degenerate, "
        "3 less likely or outranked\n"
        "16 metric calls, 72 denoiser passes, 3 s"
    )


def test_refreshes_of_a_cache_are_counted_where_there_were_any():
    line = counts_line(replace(RESULTS, cache_refreshes=5)).splitlines()[1]
    assert line == "16 metric calls, 72 denoiser passes, 5 cache refreshes, 3 s"


@pytest.mark.parametrize(("failures", "end"), [(0, "3 s"), (4, "3 s, 4 runs failed")])
def test_failed_runs_are_counted_where_there_were_any(failures, end):
    assert counts_line(replace(RESULTS, num_failures=failures)).endswith(end)


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_a_terminal_of_any_encoding_takes_the_report(encoding, monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr("sys.stdout", terminal)
    after = {"self": "Say what \N{SNOWMAN} is."}
    print_report(replace(RESULTS, instructions_after=after))
    terminal.flush()
    text = terminal.buffer.getvalue().decode(encoding)
    assert ("\N{SNOWMAN}" if encoding == "utf-8" else r"\u2603") in text
    assert "9 proposals, 3 validated, 1 kept" in text
