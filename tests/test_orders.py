"""The orders of a search: how it spends its budget, widens, ranks, and why it ends."""

import hashlib
import json
import re
from dataclasses import replace

import dspy
import pytest
from doubles import WordCountScorer, WordDenoiser, rule_lm
from test_diffusion_infill import ROWS, TASK, answer_if_told_briefly, compile_with, program

from dspy_diffusion_infill.denoisers import Sampling
from dspy_diffusion_infill.errors import ContextTooLongError, TooManyErrors
from dspy_diffusion_infill.optimizer.diffusion_infill import DiffusionInfill
from dspy_diffusion_infill.template_adapter import TemplateAdapter

ADAPTIVE = {"order": "adaptive", "validation": "racing", "examples": "failures"}


class ClueAndName(dspy.Module):
    def __init__(self):
        super().__init__()
        self.clue = dspy.Predict(dspy.Signature("text -> clue", "Find a clue in this text"))
        self.name = dspy.Predict(dspy.Signature("text, clue -> colour", TASK))

    def forward(self, text):
        return self.name(text=text, clue=self.clue(text=text).clue)


def never_right(prompt: str) -> str:
    return "no idea"


def adaptive(rule=answer_if_told_briefly, **options):
    return compile_with(rule, **{**ADAPTIVE, **options}).detailed_results


# The paper's procedure stays what it was


@pytest.mark.parametrize(
    ("guidance", "num_trials", "digest"),
    [(None, 23, "d01c7d99ff58b40b"), (WordCountScorer(), 5, "67482eccc280fb9c")],
)
def test_left_to_right_tries_what_it_tried_before_there_were_orders(guidance, num_trials, digest):
    """The digests are of the trials of version 0.1, by the same seed."""
    trials = compile_with(sweeps=2, seed=7, guidance=guidance).detailed_results.trials
    plain = [(t.sweep, t.start, t.end, t.instructions, t.scores, t.accepted) for t in trials]
    assert len(trials) == num_trials
    assert hashlib.sha256(repr(plain).encode()).hexdigest()[:16] == digest


# Ends


@pytest.mark.parametrize("order", ["adaptive", "random"])
@pytest.mark.parametrize("guidance", [None, WordCountScorer(good=())])
def test_a_hopeless_search_spends_its_budget_and_not_more(order, guidance):
    """Guidance ranks and does not veto: no proposal makes a response likelier here."""
    results = adaptive(never_right, max_metric_calls=90, order=order, guidance=guidance)
    assert results.end_reason == "max_metric_calls"
    assert 90 - len(ROWS) < results.metric_calls <= 90
    assert len(results.trials) > 10
    assert results.instructions_after["self"] == TASK


def test_a_perfect_score_ends_the_search():
    results = adaptive(max_metric_calls=2000)
    assert results.end_reason == "perfect score"
    assert results.score_after == 1.0 and results.metric_calls < 2000


def test_a_score_of_1_is_not_perfect_under_a_metric_that_gives_more():
    def stars(example, prediction, trace=None):
        return 1.0 + (prediction.colour == example.colour)

    results = adaptive(never_right, metric=stars, max_metric_calls=60)
    assert results.score_after == 1.0
    assert results.end_reason == "max_metric_calls"


def test_patience_ends_a_search_before_its_budget():
    assert adaptive(never_right, patience=1, max_metric_calls=9000).end_reason == "patience"
    assert adaptive(never_right, patience=2, max_metric_calls=9000).counts.proposed > (
        adaptive(never_right, patience=1, max_metric_calls=9000).counts.proposed
    )


def test_a_denoiser_that_has_nothing_new_to_say_ends_the_search():
    denoiser = WordDenoiser(words=("only",))
    results = adaptive(never_right, denoiser=denoiser, max_metric_calls=1000)
    assert results.end_reason == "no new proposals"
    assert results.counts.validated == 0 < results.counts.degenerate


def test_an_adaptive_search_without_a_budget_gets_the_light_one():
    results = adaptive(never_right)
    assert results.end_reason == "max_metric_calls"
    assert 20 * len(ROWS) - 4 < results.metric_calls <= 20 * len(ROWS)


def test_an_estimate_of_an_adaptive_search_is_its_budget():
    lm, _ = rule_lm(never_right)
    with dspy.context(lm=lm, adapter=TemplateAdapter()):
        optimizer = DiffusionInfill(None, WordDenoiser(), guidance=None)
        cost = optimizer.estimate(program(), ROWS)
        full = DiffusionInfill(None, WordDenoiser(), guidance=None, validation="full", auto="heavy")
        more = full.estimate(program(), ROWS)
    moves = (120 - 6) // 4 + 1  # of one trial each, on four rows at least
    assert (cost.metric_calls, cost.denoiser_passes) == (120, moves * 8 * 48)
    assert (more.metric_calls, more.denoiser_passes) == (720, (720 - 6) // 6 * 8 * 48)


# What is tried


def test_proposals_grow_from_windows_to_whole_instructions():
    results = adaptive(never_right, patience=1, seed=3, max_metric_calls=9000)
    spans = {(trial.start, trial.end) for trial in results.trials}
    assert (0, len(TASK)) in spans  # all of it
    assert (0, 0) in spans and (len(TASK), len(TASK)) in spans  # in front, and at the end
    assert any(" … " in trial.new_text for trial in results.trials)  # two windows at once


def test_marks_alone_are_filled_and_what_stands_around_them_stays():
    marked = program("Tell the colour [[infill:3]] and then [[infill:2]] stop")
    results = compile_with(student=marked, **ADAPTIVE, max_metric_calls=120).detailed_results
    assert results.trials
    for trial in results.trials:
        assert re.fullmatch(r"Tell the colour .* and then .* stop", trial.instructions)


def test_all_predictors_are_searched():
    results = compile_with(student=ClueAndName(), **ADAPTIVE, max_metric_calls=150).detailed_results
    assert {trial.predictor for trial in results.trials} == {"clue", "name"}
    assert results.score_after > results.score_before


def test_what_was_tried_is_not_tried_again():
    results = adaptive(never_right, max_metric_calls=150)
    texts = [trial.instructions.lower() for trial in results.trials]
    assert len(texts) == len(set(texts))


def test_the_likeliest_of_all_that_wait_is_tried_first():
    results = adaptive(never_right, guidance=WordCountScorer(), max_metric_calls=60, seed=1)
    gains = [trial.log_likelihood_gain for trial in results.trials]
    of_first_move = [t.log_likelihood_gain for t in results.trials if t.sweep == 1]
    assert gains[0] == max(of_first_move) > 0


def test_racing_scores_fewer_rows_and_keeps_only_whole_trials():
    raced = adaptive(max_metric_calls=200)
    rows = [len(trial.rows) for trial in raced.trials]
    assert min(rows) < len(ROWS) == max(rows)
    assert all(len(t.scores) == len(t.rows) for t in raced.trials)
    assert all(len(t.rows) == len(ROWS) for t in raced.trials if t.accepted)
    full = adaptive(max_metric_calls=200, validation="full")
    assert {len(trial.rows) for trial in full.trials} == {len(ROWS)}


def test_candidate_programs_are_those_that_were_scored_on_all_rows():
    better = compile_with(**ADAPTIVE, max_metric_calls=200)
    trials = better.detailed_results.trials
    whole = [trial for trial in trials if len(trial.rows) == len(ROWS)]
    assert len(whole) < len(trials)
    assert len(better.candidate_programs) == 1 + len(whole)
    assert better.candidate_programs[0]["score"] == max(trial.score for trial in whole)


@pytest.mark.parametrize("max_errors", [3, 4, 9])
def test_a_dead_lm_ends_a_search_whose_trials_race(max_errors):
    """A race ends after four rows that raise, fewer than are tolerated in one evaluation."""
    asked = 0

    def dies(prompt: str) -> str:
        nonlocal asked
        asked += 1
        if asked > len(ROWS):
            raise RuntimeError("the LM is gone")
        return "no idea"

    with pytest.raises(TooManyErrors, match=f"max_errors={max_errors}; the last: .*gone") as caught:
        adaptive(dies, max_errors=max_errors, max_metric_calls=500)
    assert caught.value.best_program.signature.instructions == TASK
    assert caught.value.detailed_results.metric_calls <= len(ROWS) + max_errors + 4


def test_windows_that_do_not_fit_the_context_are_left_out(caplog):
    """30 tokens have room for the smallest windows and one example, and not for wider ones."""
    options = {"patience": 1, "max_metric_calls": 9000}
    wide = adaptive(never_right, **options)
    narrow = adaptive(never_right, denoiser=WordDenoiser(context_length=30), **options)
    assert "a window is left out: the instructions of 'self'" in caplog.text
    assert narrow.end_reason == "patience"

    def most_words(results) -> int:
        return max(len(trial.instructions.split()) for trial in results.trials)

    assert most_words(narrow) < most_words(wide)


def test_a_first_window_that_does_not_fit_is_refused():
    with pytest.raises(ContextTooLongError, match="shorten the instructions"):
        adaptive(never_right, denoiser=WordDenoiser(context_length=20))


def test_nothing_is_tried_where_all_is_protected():
    results = compile_with(student=program("{a} {b}"), **ADAPTIVE).detailed_results
    assert results.end_reason == "all windows tried" and results.trials == ()
    assert results.skipped == {"self": "all of its instructions are protected"}


def test_scores_of_a_whole_trial_are_in_the_order_of_the_rows():
    raced = adaptive(max_metric_calls=200)
    kept = [trial for trial in raced.trials if trial.accepted]
    assert kept and kept[-1].scores == raced.scores_after
    assert list(kept[-1].rows) == list(range(len(ROWS)))


def test_a_failing_row_is_drawn_into_contexts_more_often():
    """Row 0 is always right, and the others never are."""

    def only_row_0(prompt: str) -> str:
        return "red" if prompt.rstrip().endswith("number 0 is red") else "no idea"

    def share_of_row_0(**options) -> float:
        denoiser = WordDenoiser()
        adaptive(only_row_0, denoiser=denoiser, max_metric_calls=150, **options)
        held = [text for text in denoiser.seen if "number" in text]
        return sum("number 0" in text for text in held) / len(held)

    assert share_of_row_0() < share_of_row_0(examples="random")


# Seeds, threads, resuming


@pytest.mark.parametrize("order", ["adaptive", "random"])
def test_equal_seeds_give_equal_trials_whatever_the_threads(order):
    one, other = (
        adaptive(seed=5, order=order, num_threads=threads, max_metric_calls=120)
        for threads in (1, 4)
    )
    assert one.trials == other.trials and one.instructions_after == other.instructions_after
    assert adaptive(seed=6, order=order, max_metric_calls=120).trials != one.trials


@pytest.mark.parametrize("guidance", [None, WordCountScorer()])
def test_a_search_that_is_resumed_ends_as_the_whole_one_and_pays_nothing_twice(tmp_path, guidance):
    options = {"guidance": guidance, "max_metric_calls": 100, "seed": 2}
    whole = adaptive(never_right, **options)
    adaptive(never_right, **options, log_dir=tmp_path)
    journal = tmp_path / "journal.jsonl"
    lines = journal.read_text(encoding="utf-8").splitlines(keepends=True)
    journal.write_text("".join(lines[: len(lines) // 2]), encoding="utf-8")
    entries = map(json.loads, lines[1 : len(lines) // 2])
    paid = sum(entry["about"] in ("baseline", "trial") for entry in entries)
    lm, engine = rule_lm(never_right)
    resumed = compile_with(lm=lm, **{**ADAPTIVE, **options}, log_dir=tmp_path).detailed_results
    assert resumed.trials == whole.trials
    assert resumed.end_reason == whole.end_reason
    assert len(engine.prompts) == whole.metric_calls - paid


# Bad input


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"order": "best"},
            ValueError,
            "order must be one of 'adaptive', 'left_to_right', 'random'",
        ),
        ({"validation": True}, ValueError, "validation must be one of 'racing', 'full', got True"),
        ({"examples": "all"}, ValueError, "examples must be one of .failures., .random., got"),
        ({"patience": 0}, ValueError, "patience must be at least 1, got patience=0"),
        ({"patience": 1.5}, TypeError, r"patience must be a whole number or None, got .*1\.5"),
    ],
)
def test_a_wrong_option_is_refused_before_any_call(options, error, message):
    with pytest.raises(error, match=message):
        compile_with(**options)


def test_a_search_over_shared_contexts_says_so_and_goes_on_as_it_began(tmp_path):
    options = {"sampling": Sampling(cache="context"), "max_metric_calls": 60}
    whole = adaptive(never_right, **options)
    adaptive(never_right, **options, log_dir=tmp_path)
    lines = (tmp_path / "journal.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "journal.jsonl").write_text("".join(lines[: len(lines) // 2]))
    resumed = adaptive(never_right, **options, log_dir=tmp_path)
    assert resumed.trials == whole.trials
    assert (resumed.cache, resumed.cache_refreshes) == ("context", 0)
    assert adaptive(never_right, max_metric_calls=60).cache == "off"


def test_a_search_says_how_often_a_context_had_drifted():
    class Drifting(WordDenoiser):
        def infill(self, requests, sampling):
            return [replace(one, num_refreshes=1) for one in super().infill(requests, sampling)]

    sampling = Sampling(cache="around", max_drift=0.3)
    found = adaptive(never_right, denoiser=Drifting(), sampling=sampling, max_metric_calls=60)
    assert found.cache_refreshes == found.counts.proposed > 0


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({}, ("adaptive", "racing", "failures")),
        ({"order": "random"}, ("random", "racing", "failures")),
        ({"order": "left_to_right"}, ("left_to_right", "full", "random")),
        ({"sweeps": 3}, ("left_to_right", "full", "random")),
        ({"sweeps": 3, "validation": "racing"}, ("left_to_right", "racing", "random")),
        ({"examples": "random"}, ("adaptive", "racing", "random")),
    ],
)
def test_what_is_not_said_of_a_search_goes_by_its_order(given, kind):
    made = DiffusionInfill(**given)
    assert (made.order, made.validation, made.examples) == kind
