import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic_results import synthetic

from dspy_diffusion_infill.optimizer.results import Edit, Trial
from dspy_diffusion_infill.report.charts import (
    Axis,
    row_strip,
    score_chart,
    spend_chart,
)
from dspy_diffusion_infill.report.story import (
    changed_rows,
    changes,
    heat,
    told_trials,
)

BASE = replace(
    synthetic(1),
    instructions_before={"self": "Name the big red house now"},
    scores_before=(0.0, 1.0, 0.5, 0.0),
    scores_after=(1.0, 0.0, 0.5, 1.0),
    answers_before=("a", "b", "c", "d"),
    answers_after=("e", "f", "g", "h"),
    trials=(),
)


def trial(scores, *, rows=None, accepted=False, old="the", start=5, new=" a", text="") -> Trial:
    return Trial(
        number=1,
        sweep=0,
        predictor="self",
        start=start,
        end=start + len(old),
        old_text=old,
        new_text=new,
        instructions=text,
        score=sum(scores) / len(scores),
        scores=tuple(scores),
        rows=tuple(rows if rows is not None else range(len(scores))),
        num_failures=0,
        confidence=0.5,
        log_likelihood_gain=None,
        accepted=accepted,
    )


@pytest.mark.parametrize(
    ("one", "outcome", "change", "gained", "lost"),
    [
        (trial((1, 1, 1, 1), accepted=True), "kept", 0.625, 3, 0),
        (trial((0, 0, 0.5, 0)), "worse", -0.25, 0, 1),
        (trial((1, 0, 0.5, 0)), "tie", 0.0, 1, 1),
        (trial((1, 1, 0.5, 0)), "refused", 0.25, 1, 0),
        (trial((0, 0), rows=(0, 1)), "given up", -0.5, 0, 1),
    ],
)
def test_a_trial_is_told_against_the_program_that_it_had_to_beat(
    one, outcome, change, gained, lost
):
    (told,) = told_trials(replace(BASE, trials=(one,)))
    assert (told.outcome, told.change, told.gained, told.lost) == (outcome, change, gained, lost)


def test_after_an_edit_was_kept_trials_must_beat_the_new_program():
    trials = (trial((1, 1, 1, 0), accepted=True), trial((1, 1, 0, 0)))
    assert [one.outcome for one in told_trials(replace(BASE, trials=trials))] == ["kept", "worse"]


def test_rows_gained_and_lost_come_with_both_answers():
    gained, lost = changed_rows(BASE)
    assert [(row.number, row.answer_before, row.answer_after) for row in gained] == [
        (0, "a", "e"),
        (3, "d", "h"),
    ]
    assert [(row.number, row.before, row.after) for row in lost] == [(1, 1.0, 0.0)]
    assert changed_rows(replace(BASE, answers_before=()))[0][0].answer_before is None


def heats(*trials: Trial) -> dict[str, tuple[int, float]]:
    results = replace(BASE, trials=trials)
    words = heat(results, told_trials(results), "self")
    assert "".join(word.text for word in words) == results.instructions_before["self"]
    return {word.text.strip(): (word.tries, word.change) for word in words if word.tries}


def test_heat_is_the_mean_change_of_the_trials_that_changed_a_word():
    better = trial((1, 1, 0.5, 0), old=" big red", start=8, new=" tall")
    worse = trial((0, 0, 0.5, 0), old=" red", start=12, new=" blue")
    assert heats(better, worse) == {"big": (1, 0.25), "red": (2, 0.0)}


def test_heat_of_a_later_trial_is_traced_back_through_the_edits_that_were_kept():
    text = "Name the very very big red house now"
    kept = trial(
        (1, 1, 0.5, 0), accepted=True, old=" the", start=4, new=" the very very", text=text
    )
    later = trial((1, 0, 0.5, 0), old=" house", start=text.index(" house"), new=" hut")
    assert heats(kept, later) == {"the": (1, 0.25), "house": (1, -0.25)}


def test_heat_leaves_out_a_trial_of_other_instructions():
    assert heats(trial((1, 1, 0.5, 0), old="elsewhere", start=8)) == {}


def test_heat_counts_every_predictor_that_a_trial_changed():
    other = Edit("self", 17, 23, "house ", "hut ", "")
    first = replace(trial((1, 1, 0.5, 0)), predictor="another", also=(other,))
    assert heats(first) == {"house": (1, 0.25)}


@given(st.text(max_size=40), st.text(max_size=40))
def test_no_character_is_lost_in_the_changes(before, after):
    pieces = list(changes(before, after))
    assert "".join(text for kind, text in pieces if kind != "ins") == before
    assert "".join(text for kind, text in pieces if kind != "del") == after


def test_a_strip_has_a_cell_for_each_run_of_rows():
    assert row_strip([1, 1, 0, -1, 1], 1) == "M0 0h2v1h-2zM4 0h1v1h-1z"
    assert row_strip([1, 1, 0, -1, 1], -1) == "M3 0h1v1h-1z"


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.floats(0, 300), st.floats(310, 600))
def test_ticks_are_few_round_and_inside_of_the_axis(low, span, start, end):
    ticks = Axis(low, low + span, start, end).ticks()
    assert 1 <= len(ticks) <= 7
    assert all(start - 0.2 <= tick.at <= end + 0.2 for tick in ticks)


def test_the_curve_is_a_stairway_of_the_best_score_and_ends_at_the_last_call():
    results = synthetic(50)
    chart = score_chart(results, told_trials(results))
    assert chart.line.count("V") == results.counts.accepted
    assert chart.line.endswith(f"H{chart.x.place(results.metric_calls)}")
    assert {one.kind for one in chart.dots} == {one.outcome for one in told_trials(results)}


@pytest.mark.parametrize(
    ("cost", "tokens", "title"), [(0.5, 9, "Cost"), (None, 9, "LM tokens"), (0.0, 0, "Seconds")]
)
def test_spend_is_money_or_tokens_or_time(cost, tokens, title):
    chart = spend_chart(replace(synthetic(3), lm_cost=cost, lm_tokens=tokens))
    assert chart.title.startswith(title)


def test_scores_that_never_change_still_have_an_axis():
    flat = replace(BASE, score_before=0.5, score_after=0.5, trials=())
    chart = score_chart(flat, [])
    assert chart.y.low < 0.5 < chart.y.high and math.isfinite(chart.y.place(0.5))
