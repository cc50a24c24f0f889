import math
import re
import statistics
from dataclasses import dataclass, field

import dspy
import pytest
import scipy.stats
from doubles import LEFT_TO_RIGHT, WordCountScorer, WordDenoiser, rule_lm

from dspy_diffusion_infill.contexts import Slot, WorkedExample
from dspy_diffusion_infill.errors import ContextTooLongError
from dspy_diffusion_infill.optimizer.acceptance import loses_a_label
from dspy_diffusion_infill.optimizer.diffusion_infill import DiffusionInfill
from dspy_diffusion_infill.optimizer.guidance import Guide, gain_over
from dspy_diffusion_infill.scorers.denoiser import DenoiserScorer
from dspy_diffusion_infill.template_adapter import TemplateAdapter

TASK = "Read the text and name the colour that is meant"
DEMO = {"text": "demo " * 30, "colour": "teal"}


@dataclass
class StrictDenoiser(WordDenoiser):
    """Refuses what does not fit its context, as real ones do, and keeps what it scored."""

    scored: list[str] = field(default_factory=list)

    def score(self, requests):
        for request in requests:
            if len(request.input_ids) > self.context_length:
                raise ContextTooLongError(f"{len(request.input_ids)} tokens do not fit")
            self.scored.append(self.decode(request.input_ids))
        return super().score(requests)


def example(words: int, name: str = "word") -> WorkedExample:
    return WorkedExample({"text": f"{name} " * words}, {"colour": "red"})


def slot(*examples: WorkedExample, demos=()) -> Slot:
    signature = dspy.Signature("text -> colour", TASK)
    return Slot("p", signature, TemplateAdapter(), examples, demos)  # type: ignore[arg-type]


def guide(context_length: int) -> tuple[Guide, StrictDenoiser]:
    denoiser = StrictDenoiser(context_length=context_length)
    return Guide(DenoiserScorer(denoiser)), denoiser


# What fits


def test_pairs_lose_demos_before_characters_and_never_instructions(caplog):
    guided, denoiser = guide(130)
    guided.log_likelihoods(slot(example(10), example(400), demos=(DEMO,) * 4), [TASK])
    short, long = denoiser.scored
    assert TASK in short and TASK in long
    assert short.count("teal") == 1 and "…" not in short
    assert long.count("teal") == 0 and "…" in long
    [record] = caplog.records
    assert "scores 2 of them without demos or with cut values, and leaves 0 out" in (
        record.getMessage()
    )


def test_all_instructions_are_scored_on_the_same_examples(caplog):
    """A tuple loses no items, so the second example cannot be made to fit."""
    endless = WorkedExample({"text": ("word",) * 300}, {"colour": "red"})
    place = slot(example(10, "one"), endless, example(20, "three"))
    guided, denoiser = guide(150)
    found = guided.log_likelihoods(place, [TASK, TASK + " and say it"])
    found += guided.log_likelihoods(place, [TASK + " and nothing else"])
    assert [len(scores) for scores in found] == [2, 2, 2]
    first, second = (["one" in t, "three" in t] for t in denoiser.scored[:2])
    assert (first, second) == ([True, False], [False, True])
    assert [record.getMessage().rpartition(", ")[2] for record in caplog.records] == [
        "and leaves 1 out"
    ]


def test_what_is_scored_does_not_depend_on_which_instructions_come_first():
    """A search that goes on from a journal asks for later instructions first."""
    place, longer = slot(example(400), example(10)), TASK + " and say it in one word" * 4
    (one, first), (other, second) = guide(140), guide(140)
    one.log_likelihoods(place, [TASK])
    other.log_likelihoods(place, [longer])
    other.log_likelihoods(place, [TASK])
    assert second.scored[2:] == first.scored
    assert [text.replace(longer, TASK) for text in second.scored[:2]] == first.scored


def test_instructions_that_outgrow_the_context_are_no_gain():
    guided, denoiser = guide(140)
    place = slot(example(400), example(10))
    texts = [TASK, TASK + " and say it" * 60]
    kept, outgrown = guided.log_likelihoods(place, texts)
    assert len(denoiser.scored) == 2
    assert all(math.isfinite(score) for score in kept)
    assert outgrown == (-math.inf,) * 2
    gain = gain_over(outgrown, kept)
    assert gain.mean == -math.inf
    assert not gain.is_clear


def labelled(*labels: str) -> Slot:
    return slot(
        *(WorkedExample({"text": f"text {k}"}, {"colour": x}) for k, x in enumerate(labels))
    )


def test_each_label_counts_alike_however_often_it_stands_in_the_examples():
    """Six reds a nat likelier and three blues a nat less likely is no gain: it is a habit."""
    place, old = labelled(*["red"] * 6, *["blue"] * 3), [0.0] * 9
    gain = Guide(WordCountScorer()).gain(place, [1.0] * 6 + [-1.0] * 3, old)
    assert gain.mean == 0.0
    gain = Guide(WordCountScorer()).gain(place, [1.0] * 6 + [-0.5] * 3, old)
    assert gain.mean == pytest.approx(0.25)
    assert gain.standard_error == 0.0, "each label's examples agree"


@pytest.mark.parametrize("labels", [["red"] * 6 + ["blue"] * 2, [f"colour {k}" for k in range(8)]])
def test_examples_count_alike_where_a_label_is_rare_or_there_is_none(labels):
    new, old = [1.0] * 6 + [-1.0] * 2, [0.0] * 8
    gain = Guide(WordCountScorer()).gain(labelled(*labels), new, old)
    assert gain.mean == pytest.approx(0.5)
    assert gain.standard_error == pytest.approx(statistics.stdev(new) / math.sqrt(8))


def test_the_error_of_a_mean_over_groups_is_that_of_the_difference_of_two_means():
    """Twice the mean over two groups is a sum of two means: Student's test with pooled variance."""
    a, b = [0.3, 1.1, 0.4, 0.9], [-0.2, 0.5, 0.1]
    gain = gain_over([*a, *b], [0.0] * 7, [*"aaaa", *"bbb"])
    assert gain.mean == pytest.approx((statistics.mean(a) + statistics.mean(b)) / 2)
    test = scipy.stats.ttest_ind(a, [-x for x in b])
    assert gain.mean / gain.standard_error == pytest.approx(test.statistic)


def test_a_context_in_which_no_example_fits_is_said_with_the_fix():
    guided, _ = guide(12)
    with pytest.raises(ContextTooLongError, match=r"scorer word-denoiser#one-step: .*guidance=No"):
        guided.log_likelihoods(slot(example(10)), [TASK])


def test_a_scorer_that_does_not_know_its_context_is_asked_for_everything():
    asked = []

    class Recorder(WordCountScorer):
        def log_likelihoods(self, pairs):
            asked.extend(pairs)
            return super().log_likelihoods(pairs)

    place = slot(example(400), example(10), demos=(DEMO,))
    assert Guide(Recorder()).log_likelihoods(place, [TASK, TASK + " only"]) == [
        (-10.0, -10.0),
        (-9.0, -9.0),
    ]
    assert all("teal" in pair.messages[0]["content"] for pair in asked)
    assert asked[0].messages[0]["content"].count("word") == 400


def test_no_more_than_the_first_examples_are_scored():
    denoiser = StrictDenoiser()
    guided = Guide(DenoiserScorer(denoiser), max_examples=2)
    [scores] = guided.log_likelihoods(slot(*(example(3, f"e{k}") for k in range(5))), [TASK])
    assert len(scores) == 2
    assert [re.findall(r"e\d", text)[0] for text in denoiser.scored] == ["e0", "e1"]


def test_rows_longer_than_the_denoisers_context_do_not_end_a_search():
    rows = [
        dspy.Example(text=f"number {k} is red " + "x y " * 300, colour="red").with_inputs("text")
        for k in range(3)
    ]
    lm, _ = rule_lm(lambda prompt: "red" if "only" in prompt else "no idea")
    with dspy.context(lm=lm, adapter=TemplateAdapter()):
        optimizer = DiffusionInfill(
            None,
            StrictDenoiser(context_length=220),
            guidance="auto",
            num_threads=1,
            display_progress=False,
            max_metric_calls=9,
            **LEFT_TO_RIGHT,
        )
        results = optimizer.compile(dspy.Predict(slot().signature), rows).detailed_results
    assert results.guidance == "word-denoiser#one-step"
    assert results.counts.screened > 0


# Gains


def test_a_gain_is_the_mean_of_the_paired_differences():
    gain = gain_over([2.0, 3.0, 7.0], [1.0, 1.0, 4.0])
    assert gain.mean == 2.0
    assert gain.standard_error == pytest.approx(1 / math.sqrt(3))
    assert gain.is_clear


def test_a_gain_on_one_example_is_never_clear():
    alone = gain_over([-1.0], [-9.0])
    assert alone.mean == 8.0
    assert not alone.is_clear
    assert not gain_over([-1.0, -9.1, -9.1], [-9.0] * 3).is_clear


@dataclass
class HabitScorer(WordCountScorer):
    """With one of ``good`` in the prompt, "red" is likelier than before, and "blue" is less so."""

    def log_likelihoods(self, pairs) -> list[float]:
        counts = super().log_likelihoods(pairs)
        return [
            -20 - n if pair.response == "blue" else n for n, pair in zip(counts, pairs, strict=True)
        ]


@pytest.mark.parametrize(("num_blue", "is_tried"), [(4, False), (2, True)])
def test_a_search_does_not_try_what_makes_the_frequent_label_a_habit(num_blue, is_tried):
    """Where a label stands in two rows only, its likelihood says too little to count alike."""
    labels = ["red"] * 6 + ["blue"] * num_blue
    rows = [
        dspy.Example(text=f"text {k}", colour=x).with_inputs("text") for k, x in enumerate(labels)
    ]
    lm, _ = rule_lm(lambda prompt: "red")
    with dspy.context(lm=lm, adapter=TemplateAdapter()):
        optimizer = DiffusionInfill(
            None,
            WordDenoiser(),
            guidance=HabitScorer(),
            num_threads=1,
            display_progress=False,
            **LEFT_TO_RIGHT,
        )
        student = dspy.Predict(dspy.Signature("text -> colour", TASK))
        trials = optimizer.compile(student, rows).detailed_results.trials
    assert bool(trials) == is_tried


@pytest.mark.parametrize(
    ("new", "best", "labels", "is_lost"),
    [
        ([1, 1, 1, 0, 0, 0], [1, 0, 0, 1, 0, 0], "aaabbb", True),
        ([1, 1, 1, 1, 0, 0], [1, 0, 0, 1, 0, 1], "aaabbb", False),
        ([1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0], "aaabbb", False),  # there was none to lose
        ([0, 0, 0, 0, 0, 0], [1, 0, 0, 1, 0, 0], "aaaaaa", False),  # one group is no label
    ],
)
def test_a_label_is_lost_where_it_was_right_and_is_never_right_any_more(new, best, labels, is_lost):
    assert loses_a_label(new, best, labels) == is_lost


@pytest.mark.parametrize("guidance", [WordCountScorer(), None])
def test_guidance_keeps_no_edit_that_answers_one_label_every_time(guidance):
    """The habit has six rows of ten right, the start one of each label. The paper keeps a habit."""
    colours = ["red"] * 6 + ["blue"] * 4
    rows = [
        dspy.Example(text=f"text {k}", colour=x).with_inputs("text") for k, x in enumerate(colours)
    ]

    def answer(prompt: str) -> str:
        number = int(re.findall(r"text (\d)", prompt)[-1])
        return "red" if "only" in prompt else colours[number] if number in (0, 9) else "no idea"

    with dspy.context(lm=rule_lm(answer)[0], adapter=TemplateAdapter()):
        optimizer = DiffusionInfill(
            None, WordDenoiser(), guidance=guidance, num_threads=1, display_progress=False
        )
        student = dspy.Predict(dspy.Signature("text -> colour", TASK))
        results = optimizer.compile(student, rows).detailed_results
    assert max(trial.score for trial in results.trials) == pytest.approx(0.6), "it was tried"
    assert results.score_after == pytest.approx(0.6 if guidance is None else 0.2)
