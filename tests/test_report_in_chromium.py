"""The page in Chromium: what it shows, at every width and in the dark, and that no script gets in.

make browser
"""

import re
import shutil
from dataclasses import replace
from pathlib import Path
from queue import Queue
from threading import Thread

import pytest
from synthetic_results import POISON, TEXT, poisoned, synthetic
from test_run_files import written

from dspy_diffusion_infill.infiller.leaks import Likeness
from dspy_diffusion_infill.report.page import page

pytestmark = pytest.mark.browser

CHROMIUM = shutil.which("chromium")
RESULTS = synthetic(60)
SIDEWAYS = """() => [...document.querySelectorAll('main *')]
    .filter((one) => one.clientWidth && one.scrollWidth > one.clientWidth + 1
        && getComputedStyle(one).overflowX !== 'visible')
    .map((one) => one.outerHTML.slice(0, 100))"""


@pytest.fixture(scope="module")
def browser():
    driver = pytest.importorskip("playwright.sync_api", reason="needs the extra browser")
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with driver.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def show(browser, tmp_path: Path):
    """Opens a page; its console and errors must stay clean."""
    problems: list[str] = []
    contexts = []

    def opened(text: str, **settings):
        context = browser.new_context(**settings)
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda message: problems.append(message.text))
        tab.on("pageerror", lambda error: problems.append(str(error)))
        file = tmp_path / "report.html"
        file.write_bytes(text.encode("utf-8", "backslashreplace"))
        tab.goto(file.as_uri())
        return tab

    yield opened
    for context in contexts:
        context.close()
    assert problems == []


def shown_rows(tab) -> list[int]:
    return tab.evaluate(
        "[...document.querySelectorAll('#trial-table tbody tr:not([hidden]) th')]"
        ".map((one) => +one.textContent)"
    )


def trials_form(tab):
    return tab.get_by_role("form", name="Filter the trials")


def test_filters_and_sorting_work_by_mouse_and_keyboard(show):
    tab = show(page(RESULTS))
    assert shown_rows(tab) == list(range(1, 61))
    trials_form(tab).get_by_label("Outcome").select_option("kept")
    kept = [trial.number for trial in RESULTS.trials if trial.accepted]
    assert shown_rows(tab) == kept
    assert trials_form(tab).locator("output").text_content() == f"{len(kept)} of 60 trials"
    trials_form(tab).get_by_label("Outcome").select_option("")
    trials_form(tab).get_by_label("Text").fill("CAREFULLY")
    assert shown_rows(tab) == [
        t.number for t in RESULTS.trials if "carefully" in f"{t.old_text} {t.new_text}"
    ]
    trials_form(tab).get_by_label("Text").fill("")
    head = tab.get_by_role("button", name="Score")
    head.focus()
    tab.keyboard.press("Enter")
    tab.keyboard.press("Enter")
    scores = [f"{RESULTS.trials[number - 1].score:.3f}" for number in shown_rows(tab)]
    assert scores == sorted(scores, reverse=True)
    assert tab.locator("th[aria-sort=descending]").text_content() == "Score"


def test_a_text_is_looked_for_in_window_and_fill_and_not_in_the_nearest_example(show):
    near = (Likeness(3, "label", "zebra", 0.42),)
    trials = [replace(one, nearest=near) for one in RESULTS.trials]
    tab = show(page(replace(RESULTS, trials=tuple(trials))))
    assert "zebra" in tab.locator("#trial-table").text_content()
    trials_form(tab).get_by_label("Text").fill("zebra")
    assert shown_rows(tab) == []


def test_dropped_proposals_are_filtered_and_sorted_apart_from_trials(show):
    tab = show(page(RESULTS))
    tab.locator("#dropped summary").click()
    form = tab.get_by_role("form", name="Filter the dropped proposals")
    rows = tab.locator("#dropped-table tbody tr:not([hidden])")
    listed = RESULTS.refused[-200:]
    assert rows.count() == 200
    form.get_by_label("Reason").select_option("copies example")
    expected = [one for one in listed if one.reason == "copies_example"]
    assert rows.count() == len(expected) > 1
    assert form.locator("output").text_content() == f"{len(expected)} of 200 proposals"
    tab.get_by_role("region", name="Dropped").get_by_role("button", name="Confidence").click()
    shown = [float(text) for text in rows.locator("td:last-child").all_text_contents()]
    assert shown == sorted(shown) == sorted(round(one.confidence, 2) for one in expected)
    assert shown_rows(tab) == list(range(1, 61))


def test_it_fits_a_phone_and_is_dark_in_the_dark(show):
    tab = show(page(RESULTS), color_scheme="dark", viewport={"width": 375, "height": 800})
    assert tab.evaluate("document.documentElement.scrollWidth") == 375
    tab.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    for region in tab.get_by_role("region").all():
        region.scroll_into_view_if_needed()  # others are not laid out
        text = region.get_attribute("aria-label")
        assert region.evaluate("(one) => one.scrollWidth - one.clientWidth") == 0, text
    assert tab.evaluate(SIDEWAYS) == []
    tab.get_by_role("button", name="Score").click()
    assert tab.locator("th[aria-sort]").text_content() == "Score"
    colour = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert sum(map(int, re.findall(r"\d+", colour))) < 120
    tab.emulate_media(color_scheme="light")
    colour = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert sum(map(int, re.findall(r"\d+", colour))) > 700
    tab.emulate_media(media="print")
    assert not any(one.is_visible() for one in tab.locator(".filters").all())


@pytest.mark.parametrize("width", [1280, 375])
def test_axe_finds_nothing_by_day_or_night(show, width):
    axe = pytest.importorskip("axe_playwright_python", reason="needs the extra browser")
    tab = show(page(RESULTS), bypass_csp=True, viewport={"width": width, "height": 800})
    tab.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    tab.add_script_tag(path=Path(axe.__file__).with_name("axe.min.js"))
    for scheme in ("light", "dark"):
        tab.emulate_media(color_scheme=scheme)
        found = tab.evaluate("axe.run()")
        assert len(found["passes"]) > 20
        assert [(one["id"], one["nodes"][0]["html"][:200]) for one in found["violations"]] == []


def test_scores_of_rows_open_by_keyboard_and_are_printed_all(show):
    tab = show(page(RESULTS))
    scores = tab.locator("#trial-table details")
    scores.first.locator("summary").focus()
    assert "0=" not in scores.first.inner_text()
    tab.keyboard.press("Enter")
    assert "0=" in scores.first.inner_text() and scores.count() == len(RESULTS.trials)
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert tab.locator("details:not([open])").count() == 0
    tab.evaluate("dispatchEvent(new Event('afterprint'))")
    assert tab.locator("details[open]").count() == 1, "what the reader had opened stays open"


def test_hostile_text_runs_no_script(show):
    tab = show(page(poisoned()))
    assert tab.title().endswith("DiffusionInfill report")
    assert tab.locator("img").count() == 0 and tab.locator("script").count() == 1
    assert POISON.split("\x00")[0] in tab.locator(".text").first.text_content()


def test_instructions_and_answers_are_shown(show):
    tab = show(page(RESULTS))
    heated = tab.locator("article .text").last.text_content()
    assert heated == TEXT
    assert tab.locator("article del").count() > 0
    changed = tab.get_by_role("region", name="Rows gained").text_content()
    assert "Billing, I would say" in changed and "days ago I paid for two" in changed
    assert "seed=7" in tab.locator("pre").text_content()


def test_a_page_that_is_watched_takes_new_trials_and_keeps_filter_sorting_and_focus(
    browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    watch = pytest.importorskip("dspy_diffusion_infill.report.watch", reason="needs uvicorn")
    servers, addresses, problems = [], Queue(), []
    started = watch.uvicorn.Server.run
    monkeypatch.setattr(
        watch.uvicorn.Server,
        "run",
        lambda self, **options: (servers.append(self), started(self, **options)),
    )
    serve = Thread(
        target=watch.watch, args=(tmp_path,), kwargs=dict(port=0, on_ready=addresses.put)
    )
    serve.start()
    try:
        tab = browser.new_page()
        tab.on("console", lambda message: problems.append(message.text))
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.goto(addresses.get(timeout=10))
        assert tab.title() == "Waiting"
        written(tmp_path, num_trials=5)
        tab.get_by_text("5 of 5 trials").wait_for()
        tab.get_by_role("button", name="Score").click()
        trials_form(tab).get_by_label("Outcome").select_option("kept")
        trials_form(tab).get_by_label("Outcome").focus()
        written(tmp_path, num_trials=40)
        tab.locator("output", has_text="of 40 trials").wait_for()
        assert set(tab.locator("tbody tr:not([hidden]) .badge.kept").all_text_contents()) == {
            "kept"
        }
        assert tab.locator("th[aria-sort]").text_content() == "Score"
        assert tab.evaluate("document.activeElement.id") == "trial-kind"
        tab.close()
    finally:
        servers[0].should_exit = True
        serve.join(timeout=10)
    assert problems == []
