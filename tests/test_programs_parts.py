"""Descriptions and prefixes of output fields as texts that a search edits."""

import json
import re

import dspy
import pytest
from doubles import WordCountScorer, WordDenoiser, rule_lm
from test_diffusion_infill import ROWS, TASK

from dspy_diffusion_infill.optimizer.diffusion_infill import DiffusionInfill
from dspy_diffusion_infill.programs import Part, parts_of, texts_of, with_instructions
from dspy_diffusion_infill.template_adapter import TemplateAdapter

DESCRIPTION = "the colour that the customer has in mind today"
OF_COLOUR = "self: description of colour"
BOTH = ("instructions", "field_descriptions")


def student(description: str = DESCRIPTION, instructions: str = TASK) -> dspy.Predict:
    signature = dspy.Signature("text -> colour", instructions)
    return dspy.Predict(signature.with_updated_fields("colour", desc=description))


def answer_if_described_briefly(prompt: str) -> str:
    """Row k is right when the description, and it alone, says "only" or "word" k times."""
    row, colour = re.findall(r"number (\d) is (\w+)", prompt)[-1]
    described = re.findall(r"`colour` \(str\): (.*)", prompt)[0]
    is_right = len(re.findall(r"\b(?:only|word)\b", described)) >= int(row)
    said = colour if is_right else "no idea"
    return f"[[ ## colour ## ]]\n{said}\n\n[[ ## completed ## ]]"


def compiled(*, program=None, adapter=None, lm=None, denoiser=None, **options):
    order = {} if "order" in options else {"sweeps": 1}
    options = {"guidance": None, "parts": BOTH, "num_threads": 1, **order, **options}
    optimizer = DiffusionInfill(
        None, denoiser or WordDenoiser(), display_progress=False, num_proposals=3, **options
    )
    lm = lm or rule_lm(answer_if_described_briefly)[0]
    with dspy.context(lm=lm, adapter=adapter or dspy.ChatAdapter()):
        return optimizer.compile(program or student(), ROWS)


# Reading and writing


def test_a_part_is_found_again_by_its_name():
    for part in (
        Part("a.b"),
        Part("a.b", "field_descriptions", "c"),
        Part("x['of: y']", "prefixes", "c"),
    ):
        assert Part.named(part.name) == part
    assert Part("self", "field_descriptions", "colour").name == OF_COLOUR


def test_texts_are_read_and_written_to_the_character_and_the_program_stays_what_it_was():
    program, name = student(instructions="One.\n    Two."), "self: prefix of colour"
    new = {OF_COLOUR: " a\n  b ", name: "Hue:", "self": "Three.\n    Four."}
    changed = with_instructions(program, new)
    assert texts_of(changed, new) == new
    assert texts_of(program, new) == {OF_COLOUR: DESCRIPTION, name: "Colour:", "self": "One.\nTwo."}
    partly = with_instructions(changed, {OF_COLOUR: "c"})
    assert texts_of(partly, new) == {**new, OF_COLOUR: "c"}


def test_a_description_that_nobody_wrote_is_no_text_to_edit():
    plain, written = dspy.ChainOfThought("text -> colour"), student()
    assert list(parts_of(plain, BOTH)) == []
    assert [part.name for part in parts_of(written, BOTH)] == [OF_COLOUR]
    assert list(parts_of(student(""), BOTH)) == []


# Searches


def test_a_search_edits_the_description_where_that_alone_raises_the_score(tmp_path):
    program = student()
    better = compiled(program=program, log_dir=tmp_path)
    results = better.detailed_results
    assert results.score_after > results.score_before
    assert {trial.predictor for trial in results.trials} == {"self", OF_COLOUR}
    assert {trial.predictor for trial in results.trials if trial.accepted} == {OF_COLOUR}
    assert results.instructions_before == {"self": TASK, OF_COLOUR: DESCRIPTION}
    after = better.signature.output_fields["colour"].json_schema_extra["desc"]
    assert results.instructions_after == {"self": TASK, OF_COLOUR: after}
    assert program.signature.output_fields["colour"].json_schema_extra["desc"] == DESCRIPTION
    loaded = student()
    loaded.load(tmp_path / "best_program.json")
    assert texts_of(loaded, [OF_COLOUR]) == {OF_COLOUR: after}
    assert OF_COLOUR in str(results)
    assert OF_COLOUR in results.report(tmp_path / "report.md").read_text(encoding="utf-8")


def test_contexts_and_likelihoods_of_one_text_are_those_beside_the_others_as_they_are_now():
    """In the second sweep, instructions are filled under the description that the first kept."""
    denoiser, scorer = WordDenoiser(), WordCountScorer(good=("only", "word"))
    better = compiled(denoiser=denoiser, guidance=scorer, sweeps=2, max_metric_calls=90)
    trials = better.detailed_results.trials
    kept = [one for one in trials if one.accepted and one.predictor == OF_COLOUR and not one.sweep]
    new = [seen for seen in denoiser.seen if f"(str): {kept[-1].instructions}" in seen]
    assert any("<MASK>" in seen.split("objective is:")[1] for seen in new)


def test_without_instructions_among_the_parts_they_stay():
    results = compiled(parts=["field_descriptions"]).detailed_results
    assert {trial.predictor for trial in results.trials} == {OF_COLOUR}


def test_a_search_over_parts_goes_on_exactly_where_it_was_cut_off(tmp_path):
    scorer = WordCountScorer(good=("only", "word"))
    options = {"guidance": scorer, "order": "adaptive", "parents": "pool", "max_metric_calls": 48}
    whole = compiled(log_dir=tmp_path, **options).detailed_results
    lines = (tmp_path / "journal.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "journal.jsonl").write_text("".join(lines[: len(lines) * 2 // 3]))
    assert any(trial.accepted for trial in whole.trials)
    lm, engine = rule_lm(answer_if_described_briefly)
    resumed = compiled(lm=lm, log_dir=tmp_path, **options).detailed_results
    assert resumed.trials == whole.trials
    assert len(engine.prompts) < whole.metric_calls


def test_what_is_protected_in_a_description_stays_and_is_listed():
    text = "[[keep]]Never purple.[[/keep]] the colour in mind of {who} today and here"
    results = compiled(program=student(text), parts=["field_descriptions"]).detailed_results
    assert results.trials
    for trial in results.trials:
        assert trial.instructions.startswith("Never purple.") and "{who}" in trial.instructions
    assert {one.kind for one in results.protected[OF_COLOUR]} >= {"kept", "placeholder"}


class PrefixAdapter(dspy.ChatAdapter):
    """States the prefix of each output field at the end of the system message."""

    def format_task_description(self, signature):
        prefixes = [one.json_schema_extra["prefix"] for one in signature.output_fields.values()]
        return "\n".join([super().format_task_description(signature), *prefixes])


def test_a_prefix_is_edited_where_an_adapter_shows_it():
    signature = student().signature.with_updated_fields("colour", prefix="Now say the colour here:")
    options = {"program": dspy.Predict(signature), "parts": ["prefixes"]}
    better = compiled(adapter=PrefixAdapter(), **options)
    assert {one.predictor for one in better.detailed_results.trials} == {"self: prefix of colour"}


# Refusals


@pytest.mark.parametrize(
    ("program", "adapter", "parts", "message"),
    [
        (dspy.Predict("text -> colour"), None, BOTH, "no output field of .'self'. has such a"),
        (student(), TemplateAdapter(), BOTH, "TemplateAdapter does not show 'self: description of"),
        (student(), None, ["prefixes"], "ChatAdapter does not show 'self: prefix of colour' once"),
    ],
)
def test_what_nobody_wrote_or_no_prompt_shows_is_refused_before_any_call(
    program, adapter, parts, message
):
    lm, engine = rule_lm(answer_if_described_briefly)
    with pytest.raises(ValueError, match=message):
        compiled(program=program, adapter=adapter, parts=parts, lm=lm)
    assert engine.prompts == []


@pytest.mark.parametrize("wrong", ["instructions", (), ["descriptions"], None])
def test_parts_that_do_not_exist_are_refused(wrong):
    with pytest.raises(ValueError, match="parts must be a list of some of"):
        DiffusionInfill(parts=wrong)


def test_the_default_leaves_no_mark_on_a_journal(tmp_path):
    compiled(log_dir=tmp_path, parts=("instructions",), max_metric_calls=12)
    first = json.loads((tmp_path / "journal.jsonl").read_text().splitlines()[0])
    assert "field_descriptions" not in str(first) and "parts" not in str(first)
