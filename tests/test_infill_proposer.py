"""``InfillProposer`` in GEPA's evolution, in ``gepa`` alone, and called by hand."""

import copy
import difflib
import pickle
import re
from concurrent.futures import ThreadPoolExecutor

import dspy
import gepa
import pytest
from doubles import WordCountScorer, WordDenoiser, rule_lm

from dspy_diffusion_infill.optimizer.infill_proposer import InfillProposer
from dspy_diffusion_infill.template_adapter import TemplateAdapter

TASK = "Read what the customer wrote and then tell us the colour that is meant"
ROWS = [
    dspy.Example(text=f"number {k} is {colour}", colour=colour).with_inputs("text")
    for k, colour in enumerate(["red", "blue", "green", "grey", "pink", "black"])
]


def colour_if_told(prompt: str) -> str:
    """Row k is right when the prompt says "only" or "word" at least k times."""
    row, colour = re.findall(r"number (\d) is (\w+)", prompt)[-1]
    return colour if len(re.findall(r"\b(?:only|word)\b", prompt)) >= int(row) else "no idea"


def is_right(example, prediction, trace=None, pred_name=None, pred_trace=None) -> float:
    return float(example.colour == prediction.colour)


def record(row: int, answer: str, feedback: str = "Be right.") -> dict:
    inputs = {"text": ROWS[row].text}
    return {"Inputs": inputs, "Generated Outputs": {"colour": answer}, "Feedback": feedback}


def proposer(denoiser=None, **options) -> InfillProposer:
    options = {"guidance": None, "num_proposals": 4, **options}
    return InfillProposer(denoiser or WordDenoiser(), ROWS, **options)


ONE_RIGHT_ONE_WRONG = (record(0, "red"), record(1, "no"))


def ask(one: InfillProposer, text: str = TASK, records=ONE_RIGHT_ONE_WRONG) -> str:
    (found,) = one({"self": text, "other": "x"}, {"self": list(records)}, ["self"]).values()
    return found


@pytest.fixture(autouse=True)
def settings():
    with dspy.context(lm=rule_lm(colour_if_told)[0], adapter=TemplateAdapter()):
        yield


def evolve(instruction_proposer: InfillProposer, student=None, **options) -> dspy.Module:
    optimizer = dspy.GEPA(
        is_right,
        instruction_proposer=instruction_proposer,
        **{"max_metric_calls": 60, "num_threads": 1, "use_merge": False, **options},
    )
    student = student or dspy.Predict(dspy.Signature("text -> colour", TASK))
    return optimizer.compile(student, trainset=ROWS, valset=ROWS)


def test_gepa_evolves_a_program_without_a_reflection_lm():
    better = evolve(proposer(), track_stats=True)
    scores = better.detailed_results.val_aggregate_scores
    assert max(scores) > scores[0]
    assert len(better.detailed_results.candidates) > 2
    assert better.signature.instructions != TASK


def test_equal_seeds_evolve_equal_programs():
    texts = [evolve(proposer(seed=seed)).signature.instructions for seed in (3, 3, 4)]
    assert texts[0] == texts[1] != texts[2]


class EchoAdapter:
    """A ``gepa`` adapter of no DSPy: candidates score by their words, records hold plain text."""

    def __init__(self, propose_new_texts=None) -> None:
        self.propose_new_texts = propose_new_texts

    def evaluate(self, batch, candidate, capture_traces=False):
        score = len(re.findall(r"\bonly\b", candidate["prompt"])) / 10
        return gepa.EvaluationBatch(
            outputs=list(batch), scores=[score] * len(batch), trajectories=list(batch)
        )

    def make_reflective_dataset(self, candidate, eval_batch, components_to_update):
        records = [
            {"Inputs": row, "Generated Outputs": "no", "Feedback": "Wrong."}
            for row in eval_batch.trajectories
        ]
        return {name: records for name in components_to_update}


@pytest.mark.parametrize("place", ["adapter", "custom_candidate_proposer"])
def test_gepa_without_dspy_takes_it_in_both_of_its_places(place):
    one = proposer(WordDenoiser(words=("only", "care")))
    options = {"adapter": EchoAdapter(one if place == "adapter" else None)}
    if place != "adapter":
        options["custom_candidate_proposer"] = one
    texts = [row.text for row in ROWS]
    result = gepa.optimize(
        {"prompt": TASK}, texts, texts, max_metric_calls=24, display_progress_bar=False, **options
    )
    assert result.best_candidate["prompt"] != TASK
    assert result.val_aggregate_scores[result.best_idx] > result.val_aggregate_scores[0] == 0


def test_one_window_is_edited_and_the_rest_stays_to_the_character():
    new = ask(proposer(window=2, stride=2, mask=2))
    before, after = TASK.split(), new.split()
    assert len(after) == len(before)
    assert sum(a != b for a, b in zip(after, before, strict=True)) in (1, 2)


def test_no_text_is_proposed_twice_and_none_is_the_old_one():
    one = proposer(window=4, stride=4, mask=2)
    texts = [ask(one) for _ in range(20)]
    assert len({text.lower() for text in texts}) == 20
    assert TASK not in texts


def test_where_windows_give_nothing_new_wider_ones_do_and_then_the_component_is_left_out(caplog):
    one = proposer(WordDenoiser(words=("only",)), window=1, stride=1, mask=1, num_proposals=1)
    texts = []
    while found := one({"self": "Say it"}, {"self": [record(0, "red")]}, ["self"]):
        texts.append(found["self"])
    assert set(texts[:2]) == {"only it", "Say only"}
    assert set(texts[2:]) == {"Say it only", "onlySay it"}
    assert "no proposal that is new" in caplog.text


def generations(one: InfillProposer, num: int, text: str = TASK) -> list[str]:
    """Each text is proposed on the one before it; the last one where nothing is new."""
    texts = [text]
    for _ in range(num):
        found = one({"self": texts[-1]}, {"self": list(ONE_RIGHT_ONE_WRONG)}, ["self"])
        if not found:
            break
        texts.append(found["self"])
    return texts


@pytest.mark.parametrize("with_student", [False, True])
def test_bounds_are_against_the_first_text_over_all_generations(with_student):
    student = dspy.Predict(dspy.Signature("text -> colour", TASK)) if with_student else None
    words = len(TASK.split())
    options = {"mask": 8, "window": 4, "stride": 2, "student": student}
    grown = generations(proposer(**options), 12)
    assert max(len(text.split()) for text in grown) > 1.5 * words
    for bound, most in (({"max_growth": 1.25}, 1.25 * words), ({"max_instruction_tokens": 16}, 16)):
        texts = generations(proposer(**options, **bound), 12)
        assert len(texts) > 2 and max(len(text.split()) for text in texts) <= most
    # With a student, it counts from its instructions, wherever the first candidate stands.
    later = " ".join([TASK, "only", "now", "please", "say", "with", "care"])
    (first, *_) = generations(proposer(**options, max_growth=1.0), 12, later)
    texts = generations(proposer(**options, max_growth=1.0), 12, later)[1:]
    assert first == later and bool(texts) is not with_student


def test_words_that_were_changed_in_earlier_generations_count():
    texts = generations(proposer(mask=2, window=2, stride=1, max_edit_fraction=0.3), 12)
    before = TASK.split()
    assert len(texts) > 2
    for text in texts:
        matches = difflib.SequenceMatcher(None, before, text.split(), autojunk=False)
        kept = sum(block.size for block in matches.get_matching_blocks())
        assert len(before) - kept <= 0.3 * len(before)


def test_copies_of_examples_and_structure_are_refused_as_in_a_search():
    words = ("number 3 is grey", "care")

    def copied(leaks: str) -> bool:
        one = proposer(WordDenoiser(words=words), window=1, stride=1, mask=1, leaks=leaks)
        return any("grey" in ask(one) for _ in range(6))

    assert copied("show") and not copied("refuse")
    text = "Read it and answer as\n\n```\n{a: 1, b: 2}\n```\nsays to us"
    assert all("{a: 1, b: 2}" in one for one in generations(proposer(), 8, text))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_growth": 0.5}, "max_growth must be a finite factor of at least 1"),
        ({"max_edit_fraction": 2}, "max_edit_fraction must be above 0 and at most 1"),
        ({"leaks": "maybe"}, "leaks must be"),
    ],
)
def test_bounds_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        proposer(**options)


def test_a_first_text_that_is_too_long_is_an_error_and_not_a_search_without_proposals():
    student = dspy.Predict(dspy.Signature("text -> colour", TASK))
    wanted = "max_instruction_tokens must be at least 14"
    with pytest.raises(ValueError, match=wanted):
        proposer(student=student, max_instruction_tokens=10)
    with pytest.raises(ValueError, match=wanted):
        ask(proposer(max_instruction_tokens=10))


def test_copies_of_the_students_demos_are_refused_and_of_its_own_text_may_stay():
    demo = dspy.Example(text="the harpoon orbits velvet lanterns", colour="mauve")
    student = dspy.Predict(dspy.Signature("text -> colour", TASK))
    student.demos = [demo]
    denoiser = WordDenoiser(words=("harpoon orbits velvet lanterns", "care"))
    options = {"window": 1, "stride": 1, "mask": 1, "student": student}

    def copied(text: str = TASK, **more) -> bool:
        one = proposer(denoiser, **options, **more)
        return any("harpoon" in found for found in generations(one, 12, text)[1:])

    assert copied(leaks="off") and not copied()
    student.signature = student.signature.with_instructions(
        "Name the colour as in harpoon orbits velvet lanterns, which is a quotation that may stay"
    )
    assert copied(student.signature.instructions)


def test_protected_text_placeholders_and_field_names_stay():
    text = "Ask ACME what {text} says.\nThen name the colour of ACME in plain words."
    one = proposer(protect=["ACME"])
    for _ in range(10):
        found = ask(one, text)
        assert found.startswith("Ask ACME what {text} says.\n")
        assert found.count("ACME") == 2 and re.search(r"\bcolour\b", found)


def test_marks_are_filled_and_nothing_else():
    found = ask(proposer(), "Name the tone [[infill:3]] here")
    assert found.startswith("Name the tone ") and found.endswith(" here") and "[[" not in found


@pytest.mark.parametrize("is_given", [True, False])
def test_tools_of_an_agent_stay_whether_the_student_is_given_or_not(is_given):
    def lookup(city: str) -> str:
        """Looks a city up."""
        return city

    student = dspy.ReAct(dspy.Signature("text -> colour", TASK), tools=[lookup])
    text = student.react.signature.instructions
    one = proposer(student=student if is_given else None)
    (found,) = one({"react": text}, {"react": [REACTED]}, ["react"]).values()
    assert found != text
    assert found.endswith(text[text.index("You are an Agent.") :])


REACTED = {
    "Inputs": {"text": ROWS[1].text, "trajectory": ""},
    "Generated Outputs": {"next_thought": "t", "next_tool_name": "finish", "next_tool_args": "{}"},
    "Feedback": "This trajectory got a score of 1.0.",
}


def test_the_student_gives_its_demos_and_its_types():
    denoiser = WordDenoiser()
    student = dspy.Predict(dspy.Signature("text -> colour", TASK))
    student.demos = [dspy.Example(text="number 9 is teal", colour="teal")]
    ask(proposer(denoiser, student=student))
    assert denoiser.seen and all("teal" in text for text in denoiser.seen)


def test_rows_that_went_wrong_stand_in_contexts_more_often():
    denoiser = WordDenoiser()
    one = proposer(denoiser, examples_per_context=(1, 1), num_proposals=150, window=16)
    feedback = "This trajectory got a score of {}."
    records = [record(0, "red", feedback.format(1.0)), record(1, "no", feedback.format(0.0))]
    ask(one, records=records)
    right, wrong, unseen = (
        sum(f"number {row} is" in text for text in denoiser.seen) for row in (0, 1, 2)
    )
    assert wrong > 2 * right and wrong > unseen > right


def test_guidance_chooses_the_likeliest_proposal_and_lets_the_others_come_again():
    only = WordCountScorer(good=("only",))
    one = proposer(guidance=only, num_proposals=16, window=16, mask=8)
    best = ask(one)
    plain = proposer(num_proposals=16, window=16, mask=8)
    assert best.count("only") > ask(plain).count("only")
    assert len(one._proposed) == 1


def test_a_copy_goes_on_from_the_same_place_and_shares_the_denoiser():
    one = proposer()
    ask(one)
    twin = copy.deepcopy(one)
    assert twin.denoiser is one.denoiser
    assert [ask(twin) for _ in range(3)] == [ask(one) for _ in range(3)]
    assert ask(pickle.loads(pickle.dumps(one))) == ask(one)


def test_threads_get_different_proposals():
    one = proposer()
    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(lambda _: ask(one), range(24)))
    assert len(set(texts)) == 24


def test_a_failure_is_logged_as_gepa_would_swallow_it(caplog):
    one = proposer(WordDenoiser(context_length=4))
    with pytest.raises(Exception, match="shorten the instructions"):
        ask(one)
    assert "no proposal for 'self'" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trainset": []}, "trainset must hold at least one example"),
        ({"trainset": [{"text": "a"}]}, r"trainset\[0\] must be a dspy.Example"),
        ({"student": dspy.Predict}, "student must be a dspy.Module instance"),
        ({"num_proposals": 0}, "num_proposals must be at least 1"),
        ({"stride": 12}, "stride must be in 1..window=8"),
        ({"seed": "0"}, "seed must be a whole number"),
        ({"guidance": "none"}, 'guidance must be "auto"'),
    ],
)
def test_wrong_values_are_refused_before_anything_is_loaded(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        InfillProposer("no/such", **{"trainset": ROWS, **options})
