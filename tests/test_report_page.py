import base64
import hashlib
import html
import random
import re
from dataclasses import replace

import pytest
from markdown_it import MarkdownIt
from synthetic_results import poisoned, synthetic

from dspy_diffusion_infill.infiller.leaks import Likeness
from dspy_diffusion_infill.report.markdown import markdown
from dspy_diffusion_infill.report.page import notebook_html, page

RESULTS = synthetic(60)


@pytest.mark.parametrize(("num_rows", "is_graded"), [(32, False), (32, True), (128, True)])
def test_a_page_of_1000_trials_is_under_a_megabyte(num_rows: int, is_graded: bool):
    results, rng = synthetic(1000, num_rows=num_rows), random.Random(1)
    if is_graded:  # no two rows score alike
        trials = [
            replace(one, scores=tuple(round(rng.random(), 3) for _ in one.scores))
            for one in results.trials
        ]
        results = replace(results, trials=tuple(trials))
    assert len(page(results).encode()) < 1_000_000


NEAREST = re.compile(r"<small>nearest to row 3 of the trainset: label “.*?”, 42%</small>")


def test_each_edit_is_shown_with_the_example_that_is_nearest_to_it():
    assert len(NEAREST.findall(page(RESULTS))) == len(RESULTS.trials) > RESULTS.counts.accepted > 0
    many = synthetic(1000, num_rows=500)  # kept edits first, then the latest
    text = page(many)
    (shown,) = re.findall(r"nearest examples are shown for (\d+) trials", text)
    assert 1000 > int(shown) == len(NEAREST.findall(text)) > many.counts.accepted


def test_rows_gained_and_lost_are_shown_with_their_inputs_and_answers():
    results = synthetic(0, num_rows=3)
    scores = {"scores_before": (0.0, 1.0, 0.5), "scores_after": (1.0, 0.0, 0.5)}
    texts = {"inputs": ("<i>one</i>", None, None), "answers_before": ("a", "b", "c")}
    text = page(replace(results, **scores, **texts, answers_after=("d", "e", "f")))
    rows = re.findall(r"<li>(.*?)(?=<li>|</ul>)", text, re.DOTALL)
    shown = [" ".join(re.sub(r"<[^>]+>", " ", row).split()) for row in rows]
    assert shown == [
        "Row 0 gained 0 → 1 Inputs &lt;i&gt;one&lt;/i&gt; Answer before a Answer after d",
        "Row 1 lost 1 → 0 Inputs not known Answer before b Answer after e",
    ]


def test_without_rows_a_page_holds_no_text_of_them():
    near = Likeness(3, "label", "Zwiebelfisch", 0.5)
    copied = replace(RESULTS.refused[3], new_text="Zwiebelfisch")
    assert copied.reason == "copies_example"
    results = replace(
        RESULTS,
        inputs=tuple(one and "Zwiebelfisch" for one in RESULTS.inputs),
        answers_before=("Zwiebelfisch",) * 32,
        answers_after=("Zwiebelfisch",) * 32,
        trials=tuple(replace(one, nearest=(near, None)) for one in RESULTS.trials),
        refused=(*RESULTS.refused, copied),
    )
    text = page(results, rows=False)
    assert page(results).count("Zwiebelfisch") > 60 and "Zwiebelfisch" not in text
    assert "Their texts are left out." in text and "Answer before" not in text
    assert "nearest to row 3 of the trainset: label “…”, 50%" in text


def test_nothing_is_loaded_from_anywhere_and_only_our_script_may_run():
    text = page(RESULTS)
    assert set(re.findall(r"(?:src|href)=\S+?>|url\(|@import|https?://", text)) == {'href="#main">'}
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = html.unescape(re.findall(r'Content-Security-Policy" content="(.*?)"', text)[0])
    assert policy.startswith("default-src 'none';") and f"script-src 'sha256-{digest}'" in policy


def test_hostile_text_stays_text_in_page_notebook_and_markdown():
    results = poisoned()
    for text in (page(results), notebook_html(results)):
        assert "<img" not in text and "<b>bold" not in text and "{{ 7 * 7 }}" in text
        assert text.count("<script") == (1 if text.startswith("<!doctype") else 0)
    tokens = [
        one
        for token in MarkdownIt("gfm-like", {"linkify": False}).parse(markdown(results))
        for one in [token, *(token.children or [])]
    ]
    kinds = {one.type for one in tokens if "everyone" in one.content and not one.children}
    assert kinds == {"fence", "code_inline"}
    assert not [one for one in tokens if one.type in ("html_block", "html_inline")]


def test_a_search_that_is_going_on_or_kept_nothing_has_a_page():
    running = replace(
        RESULTS,
        trials=(),
        refused=(),
        end_reason="interrupted",
        instructions_after=RESULTS.instructions_before,
        score_after=RESULTS.score_before,
        scores_after=RESULTS.scores_before,
        settings={},
        versions={},
        lm_cost=None,
    )
    text = page(running)
    assert "still running, or was interrupted" in text
    assert "No proposal was tried." in text and "unknown price" in text


def test_rows_are_shown_one_by_one_where_there_is_room_first_of_the_trials_that_were_kept():
    def strips(text: str) -> set[int]:
        rows = text.split("<tr data-k=")[1:]
        return {int(row.split('scope="row">')[1].split("<")[0]) for row in rows if "<svg" in row}

    small, large = synthetic(10, num_rows=500), synthetic(1000, num_rows=500)
    assert strips(page(small)) == set(range(1, 11))
    assert "nearest examples are shown for" not in page(small)

    text, kept = page(large), {one.number for one in large.trials if one.accepted}
    shown = strips(text)
    assert kept < shown and 1000 in shown and len(shown) < 1000
    assert f"Single rows and nearest examples are shown for {len(shown)} trials" in text
    assert len(text.encode()) < 1e6


def test_scores_of_rows_and_the_numbers_of_the_heat_map_are_text_and_no_tooltips():
    text = page(RESULTS)
    assert not re.findall(r'<(?:td|span class="h)[^>]* title=', text)
    trials = re.findall(r"<details><summary>scores</summary>(.*?)</details>", text)
    assert len(trials) == len(RESULTS.trials)
    for trial, shown in zip(RESULTS.trials, trials, strict=True):
        found = dict[int, float]()
        for first, last, score in re.findall(r"(\d+)(?:-(\d+))?=(\S+?)(?:,|$)", shown):
            found |= dict.fromkeys(range(int(first), int(last or first) + 1), float(score))
        assert found == dict(zip(trial.rows, trial.scores, strict=True))
    table = re.search(r'<table class="heat">(.*?)</table>', text, re.DOTALL)
    assert table is not None
    rows = re.findall(r'dir="auto">(.*?)<td class="n">(\d+)<td class="n">([+−]\S+)', table[1])
    coloured = re.findall(r'<span class="h-?\d">(.*?)</span>', text.split('class="text"')[3])
    assert [words for words, *_ in rows] == [words.strip() for words in coloured]
    assert len(rows) > 10 and all(int(tries) > 0 for _, tries, _ in rows)


@pytest.mark.parametrize(
    ("size", "drawing", "status"),
    [(999_999, 0.99, 0), (1_000_000, 0.1, 1), (10, 1.0, 1)],
)
def test_the_benchmark_of_the_page_fails_at_a_megabyte_or_a_second(size, drawing, status):
    pytest.importorskip("playwright.sync_api", reason="needs the extra browser")
    from benchmarks.report_size import exit_status

    assert exit_status(size, drawing) == status
