"""A search: what it finds, keeps, counts, records and leaves alone."""

import json
import logging
import re

import dspy
import pytest
from doubles import LEFT_TO_RIGHT, WordCountScorer, WordDenoiser, rule_lm
from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_diffusion_infill.errors import TooManyErrors
from dspy_diffusion_infill.optimizer.diffusion_infill import DiffusionInfill
from dspy_diffusion_infill.template_adapter import TemplateAdapter

TASK = "Read what the customer wrote and then tell us the colour that is meant"
ROWS = [
    dspy.Example(text=f"number {k} is {colour}", colour=colour).with_inputs("text")
    for k, colour in enumerate(["red", "blue", "green", "grey", "pink", "black"])
]


def answer_if_told_briefly(prompt: str) -> str:
    """Row k is right when the prompt says "only" or "word" at least k times."""
    row = int(re.findall(r"number (\d)", prompt)[-1])
    colour = re.findall(r"number \d is (\w+)", prompt)[-1]
    return colour if len(re.findall(r"\b(?:only|word)\b", prompt)) >= row else "no idea"


def program(instructions: str = TASK) -> dspy.Predict:
    return dspy.Predict(dspy.Signature("text -> colour", instructions))


def compile_with(rule=answer_if_told_briefly, *, student=None, rows=ROWS, lm=None, **options):
    quiet = {"guidance": None, "display_progress": False, "num_threads": 1}
    options = {**LEFT_TO_RIGHT, **quiet, **options}
    denoiser = options.pop("denoiser", None) or WordDenoiser()
    lm = lm or rule_lm(rule)[0]
    with dspy.context(lm=lm, adapter=TemplateAdapter()):
        optimizer = DiffusionInfill(options.pop("metric", None), denoiser, **options)
        return optimizer.compile(student or program(), rows)


def test_a_program_gets_better_and_the_student_stays_what_it_was():
    student = program()
    better = compile_with(student=student, sweeps=3)
    results = better.detailed_results
    assert results.score_after > results.score_before
    assert student.signature.instructions == TASK
    assert not hasattr(student, "detailed_results")
    assert better.signature.instructions == results.instructions_after["self"]
    assert len(results.scores_after) == len(ROWS)


def test_without_filters_every_new_proposal_becomes_a_trial():
    """Words that only repeat: dropped as degenerate, unless nothing is judged by what it says."""
    options = {"sweeps": 1, "window": 4, "stride": 4, "mask": 4, "num_proposals": 2}
    filtered, alone = (
        compile_with(denoiser=WordDenoiser(["word"]), filters=on, **options).detailed_results
        for on in (True, False)
    )
    assert filtered.trials == () and filtered.counts.degenerate > 0
    assert alone.counts.degenerate == 0 and alone.trials
    assert {trial.new_text.split()[0] for trial in alone.trials} == {"word"}
    assert len(alone.trials) + alone.counts.duplicate == alone.counts.proposed


def test_the_result_scores_what_the_record_says():
    lm, _ = rule_lm(answer_if_told_briefly)
    better = compile_with(lm=lm, sweeps=2)
    with dspy.context(lm=lm, adapter=TemplateAdapter()):
        right = [better(text=row.text).colour == row.colour for row in ROWS]
    assert sum(right) / len(right) == better.detailed_results.score_after


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(6, 60))
def test_the_best_score_never_falls_and_the_budget_is_never_passed(seed, budget):
    lm, engine = rule_lm(answer_if_told_briefly)
    results = compile_with(lm=lm, seed=seed, max_metric_calls=budget).detailed_results
    best = results.score_before
    for trial in results.trials:
        assert trial.accepted == (sum(trial.scores) > best * len(ROWS) + 1e-9)
        best = trial.score if trial.accepted else best
    assert best == results.score_after
    assert results.metric_calls <= budget
    assert len(engine.prompts) == results.metric_calls


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 10**6))
def test_equal_seeds_give_equal_results(seed):
    first, second = (compile_with(seed=seed).detailed_results for _ in range(2))
    assert first.trials == second.trials


def test_every_edit_lies_inside_its_window():
    results = compile_with(sweeps=2).detailed_results
    texts = [results.instructions_before["self"]]
    assert results.trials
    for trial in results.trials:
        fits = [t for t in texts if t[trial.start : trial.end] == trial.old_text]
        spliced = [t[: trial.start] + trial.new_text + t[trial.end :] for t in fits]
        assert trial.instructions in spliced
        if trial.accepted:
            texts.append(trial.instructions)


def test_guidance_crosses_a_plateau_that_the_metric_alone_does_not():
    def needs_three(prompt: str) -> str:
        colour = re.findall(r"number \d is (\w+)", prompt)[-1]
        return colour if prompt.count("only") >= 3 else "no idea"

    options = {"sweeps": 4, "seed": 1, "num_proposals": 4, "mask": 2, "window": 2, "stride": 2}
    alone = compile_with(needs_three, **options).detailed_results
    guided = compile_with(needs_three, guidance=WordCountScorer(), **options).detailed_results
    assert alone.score_after == 0.0
    assert guided.score_after == 1.0
    assert guided.guidance == "word-count"
    assert guided.counts.screened > 0


def test_a_lower_metric_is_never_kept_however_likely_the_responses():
    def hates_only(prompt: str) -> str:
        colour = re.findall(r"number \d is (\w+)", prompt)[-1]
        return "no idea" if "only" in prompt else colour

    better = compile_with(hates_only, guidance=WordCountScorer(), sweeps=2)
    results = better.detailed_results
    assert results.score_after == results.score_before == 1.0
    assert "only" not in better.signature.instructions


def test_a_tie_keeps_the_original_without_guidance():
    better = compile_with(lambda prompt: "no idea", sweeps=2)
    assert better.signature.instructions == TASK
    assert better.detailed_results.counts.validated > 0


def test_protected_text_is_never_lost():
    text = 'Read what the ACME customer wrote about {text} in {"a": 1} and tell us its meaning'
    instructions = f"{text}.\n\nThen name the thing that ACME would like to know"
    better = compile_with(student=program(instructions), protect=["ACME"], sweeps=2)
    for trial in better.detailed_results.trials:
        assert trial.instructions.count("ACME") == 2
        assert text in trial.instructions
    assert better.detailed_results.trials


def test_instructions_that_are_all_protected_are_left_alone(caplog):
    with caplog.at_level(logging.WARNING):
        better = compile_with(student=program("{text}\nOutput:"))
    assert better.detailed_results.skipped == {"self": "all of its instructions are protected"}
    assert "left alone" in caplog.text
    assert better.signature.instructions == "{text}\nOutput:"


def test_marked_spans_are_filled_and_nothing_else():
    student = program("[[infill:4]]\nColour names are [[infill:2]] here")
    better = compile_with(student=student, sweeps=3)
    assert better.detailed_results.trials
    for trial in better.detailed_results.trials:
        assert "\nColour names are" in trial.instructions
        assert trial.instructions.endswith(" here")
        assert "[[infill" not in trial.instructions


def test_a_failing_lm_is_scored_and_counted():
    def fails_on_two(prompt: str) -> str:
        row = int(re.findall(r"number (\d)", prompt)[-1])
        if row in (1, 4):
            raise RuntimeError("the service is down")
        return answer_if_told_briefly(prompt)

    results = compile_with(fails_on_two, max_metric_calls=18).detailed_results
    assert results.scores_before[1] == results.scores_before[4] == 0.0
    assert results.num_failures == 2 * (1 + len(results.trials))
    assert all(trial.num_failures == 2 for trial in results.trials)


def test_past_max_errors_the_best_program_so_far_is_on_the_exception():
    calls = []

    def dies_later(prompt: str) -> str:
        calls.append(prompt)
        if len(calls) > 30:
            raise RuntimeError("the service is down")
        return answer_if_told_briefly(prompt)

    with pytest.raises(TooManyErrors, match="more than max_errors=2") as caught:
        compile_with(dies_later, max_errors=2, sweeps=4)
    best = caught.value.best_program
    results = caught.value.detailed_results
    assert results.score_after > results.score_before
    assert best.signature.instructions == results.instructions_after["self"] != TASK


def test_a_crash_at_eighty_percent_costs_nothing_twice(tmp_path):
    whole = compile_with(sweeps=2, seed=3).detailed_results
    seen = []

    def crashes(prompt: str) -> str:
        if len(seen) == 40:
            raise KeyboardInterrupt
        seen.append(prompt)
        return answer_if_told_briefly(prompt)

    with pytest.raises(KeyboardInterrupt):
        compile_with(crashes, sweeps=2, seed=3, log_dir=tmp_path)
    lm, engine = rule_lm(answer_if_told_briefly)
    resumed = compile_with(lm=lm, sweeps=2, seed=3, log_dir=tmp_path).detailed_results
    assert resumed.trials == whole.trials
    assert resumed.metric_calls == whole.metric_calls
    assert len(engine.prompts) == whole.metric_calls - len(seen)


def test_the_journal_of_another_search_is_refused(tmp_path):
    compile_with(log_dir=tmp_path, max_metric_calls=12)
    with pytest.raises(ValueError, match=r"another search.*options.*give a new folder"):
        compile_with(log_dir=tmp_path, max_metric_calls=12, seed=5)


def test_a_torn_last_line_of_the_journal_is_dropped(tmp_path):
    whole = compile_with(log_dir=tmp_path, max_metric_calls=24).detailed_results
    journal = tmp_path / "journal.jsonl"
    journal.write_text(journal.read_text()[:-20])
    again = compile_with(log_dir=tmp_path, max_metric_calls=24).detailed_results
    assert again.trials == whole.trials
    assert all(json.loads(line) for line in journal.read_text().splitlines())


def test_the_estimate_bounds_what_is_spent():
    lm, engine = rule_lm(answer_if_told_briefly)
    denoiser = WordDenoiser()
    with dspy.context(lm=lm, adapter=TemplateAdapter()):
        optimizer = DiffusionInfill(
            None, denoiser, guidance=None, num_proposals=3, sweeps=1, display_progress=False
        )
        cost = optimizer.estimate(program(), ROWS)
        assert not engine.prompts
        results = optimizer.compile(program(), ROWS).detailed_results
    assert results.metric_calls <= cost.metric_calls
    assert results.metric_calls == len(engine.prompts)
    assert str(cost.num_windows) in str(cost)


def test_the_result_of_one_search_starts_another_without_its_records():
    first = compile_with(seed=0)
    second = compile_with(student=first, seed=1)
    assert second.detailed_results.score_before == first.detailed_results.score_after
    assert all(not hasattr(c["program"], "detailed_results") for c in second.candidate_programs)


class Steps(dspy.Module):
    def __init__(self):
        super().__init__()
        self.find = dspy.Predict(dspy.Signature("text -> clue", "Find the clue in what it says"))
        self.name = dspy.Predict(dspy.Signature("clue -> colour", "Name the colour that is meant"))

    def forward(self, text):
        return self.name(clue=self.find(text=text).clue)


def two_steps(prompt: str) -> str:
    return prompt.rstrip().splitlines()[-2].split(": ", 1)[1].strip()


def ends_with_colour(example, prediction, trace=None) -> bool:
    return prediction.colour.endswith(example.colour)


def test_several_mask_counts_take_turns_from_sweep_to_sweep():
    denoiser, student = WordDenoiser(), program("Read it well and tell me what it is all about")
    options = {"mask": (2, 5), "sweeps": 2, "num_proposals": 1}
    compile_with(lambda prompt: "no idea", denoiser=denoiser, student=student, **options)
    counts = [text.count("<MASK>") for text in denoiser.seen]
    half = len(counts) // 2
    assert set(counts[:half]) == {2}
    assert set(counts[half:]) == {5}


def test_a_gain_on_few_rows_comes_with_a_warning(caplog):
    results = compile_with(rows=ROWS[:3], sweeps=3).detailed_results
    gained = sum(results.scores_after) - sum(results.scores_before)
    assert results.p_value == pytest.approx(0.5**gained)
    assert "on 3 rows may be chance" in caplog.text
    caplog.clear()
    kept = compile_with(lambda prompt: "no idea").detailed_results
    assert kept.p_value == 1.0 and "may be chance" not in caplog.text
