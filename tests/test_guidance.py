import math
import re
from dataclasses import dataclass, field

import dspy
import pytest
from doubles import WordCountScorer, WordDenoiser, rule_lm

from dspy_diffusion_infill.adapters import TemplateAdapter
from dspy_diffusion_infill.contexts import Slot, WorkedExample
from dspy_diffusion_infill.errors import ContextTooLongError
from dspy_diffusion_infill.infiller.scoring import DenoiserScorer
from dspy_diffusion_infill.optimizer.diffusion_infill import DiffusionInfill
from dspy_diffusion_infill.optimizer.guidance import Guide, gain_over

TASK = "Read the text and name the colour that is meant"
DEMO = {"text": "demo " * 30, "colour": "teal"}


@dataclass
class StrictDenoiser(WordDenoiser):
    """Refuses what does not fit its context, as real ones do, and remembers what it scored."""

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
    """A list is not shortened, so the second example cannot be made to fit."""
    endless = WorkedExample({"text": ["word"] * 300}, {"colour": "red"})
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
