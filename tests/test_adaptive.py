"""An adaptive search that edits a pool of programs: merges, several predictors, other parents."""

import re
import zlib

import dspy
import pytest
from doubles import WordCountScorer
from test_diffusion_infill import ROWS, TASK, answer_if_told_briefly, compile_with
from test_orders import ADAPTIVE, ClueAndName

POOL = {**ADAPTIVE, "parents": "pool", "max_metric_calls": 150}


def one_row(prompt: str) -> str:
    """Right on one row, which the instructions decide: no program is better than another."""
    (row, colour) = re.findall(r"number (\d) is (\w+)", prompt)[-1]
    instructions = prompt.rpartition("number")[0]
    return colour if zlib.crc32(instructions.encode()) % len(ROWS) == int(row) else "no idea"


def steps_under_guidance(**options):
    student, guidance = ClueAndName(), WordCountScorer()
    options = {**POOL, "guidance": guidance, **options}
    return compile_with(answer_if_told_briefly, student=student, **options)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_likeliest_edits_of_several_predictors_are_tried_at_once(seed):
    results = steps_under_guidance(seed=seed).detailed_results
    together = [trial for trial in results.trials if trial.also]
    assert together
    for trial in together:
        assert {trial.predictor, *(edit.predictor for edit in trial.also)} == {"clue", "name"}
        assert trial.log_likelihood_gain > 0
    alone = steps_under_guidance(seed=seed, parents="best").detailed_results
    assert not any(trial.also for trial in alone.trials)


def test_a_program_of_several_edits_is_scored_as_a_whole():
    better = steps_under_guidance(validation="full")
    results = better.detailed_results
    (number, trial), *_ = [(k, t) for k, t in enumerate(results.trials) if t.also]
    scored = [row["program"] for row in better.candidate_programs]
    texts = [{n: p.signature.instructions for n, p in one.named_predictors()} for one in scored]
    of_trial = {one.predictor: one.instructions for one in (trial, *trial.also)}
    assert of_trial in texts
    assert len(texts) == 1 + len(results.trials) > number


def test_an_edit_that_is_kept_is_merged_with_those_that_wait():
    long = "First read all that this customer wrote to us today. " + TASK + ", and nothing else."
    student = dspy.Predict(dspy.Signature("text -> colour", long))
    options = {**POOL, "mask": 2, "window": 2, "stride": 2, "num_validated": 1}
    options |= {"guidance": WordCountScorer(), "examples": "random"}
    results = compile_with(student=student, **options).detailed_results
    kept, merges = None, []
    for trial in results.trials:
        if trial.confidence == 1.0:  # no denoiser has filled it in
            assert kept is not None and kept.new_text in trial.instructions
            merges.append(trial)
        kept = trial if trial.accepted else kept
    assert any(trial.accepted for trial in merges)


def test_programs_that_are_the_best_on_some_row_are_edited_too():
    """None is better than the student, so without a pool all edits are of the student's text."""

    def texts_edited(**options) -> set[str]:
        options = {**POOL, "validation": "full", "num_proposals": 2, **options}
        results = compile_with(one_row, seed=4, **options).detailed_results
        assert not any(trial.accepted for trial in results.trials)
        texts = [TASK, *(trial.instructions for trial in results.trials)]
        return {
            next(text for text in texts if was_made_from(text, trial))
            for trial in results.trials
            if " … " not in trial.new_text
        }

    assert texts_edited(parents="best") == {TASK}
    assert texts_edited(parents="pool") > {TASK}


def was_made_from(text: str, trial) -> bool:
    spliced = text[: trial.start] + trial.new_text + text[trial.end :]
    return text[trial.start : trial.end] == trial.old_text and spliced == trial.instructions


def test_equal_seeds_give_equal_trials_from_a_pool_too():
    one, other = (compile_with(one_row, seed=4, num_threads=threads, **POOL) for threads in (1, 4))
    assert one.detailed_results.trials == other.detailed_results.trials


@pytest.mark.parametrize("option", [{"parents": "pool"}, {"patience": 2}])
def test_options_of_an_adaptive_search_are_refused_beside_another_order(option):
    (name,) = option
    with pytest.raises(ValueError, match=f"{name}=.* is for an adaptive search: give order="):
        compile_with(**option)
