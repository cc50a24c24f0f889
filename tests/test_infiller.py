import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import dspy
import pytest
from doubles import WordDenoiser

from dspy_diffusion_infill.contexts import CLOSE, OPEN, Slot, WorkedExample
from dspy_diffusion_infill.denoisers import Infilled, InfillRequest, Sampling
from dspy_diffusion_infill.errors import ContextTooLongError
from dspy_diffusion_infill.evaluation.templates import judge_template
from dspy_diffusion_infill.infiller.infiller import Infiller
from dspy_diffusion_infill.lms.chatml import END_OF_TEXT
from dspy_diffusion_infill.template_adapter import TemplateAdapter
from dspy_diffusion_infill.windows import Piece, Prefix, Window, take_marks

TASK = "Read the text and name the colour that is meant"
WINDOW = Window((Piece(0, 13, 3),))  # "Read the text"


def slot(words: int = 3, num: int = 4, instructions: str = TASK) -> Slot:
    examples = tuple(
        WorkedExample({"text": f"t{k} " + "word " * words}, {"colour": f"c{k}"}) for k in range(num)
    )
    signature = dspy.Signature("text -> colour", instructions)
    return Slot("p", signature, TemplateAdapter(), examples)  # type: ignore[arg-type]


def propose(denoiser: WordDenoiser, place: Slot, num: int = 4, **options):
    infiller = Infiller(denoiser, Sampling(), **options)
    return infiller.propose(place, place.signature.instructions, WINDOW, num=num, seed=0)


def test_what_is_outside_the_window_stays_to_the_character():
    for proposal in propose(WordDenoiser(), slot()):
        assert proposal.instructions == proposal.fills[0] + TASK[13:]
        assert proposal.window == WINDOW


def test_equal_seeds_give_equal_proposals():
    assert propose(WordDenoiser(), slot()) == propose(WordDenoiser(), slot())


def test_each_proposal_sees_examples_of_its_own():
    denoiser = WordDenoiser()
    propose(denoiser, slot(num=8), num=8, examples_per_context=(1, 4))
    counts = [text.count("Colour:") for text in denoiser.seen]
    assert set(counts) <= {1, 2, 3, 4}
    assert len(set(counts)) > 1
    assert len(set(denoiser.seen)) == len(denoiser.seen)


def test_what_does_not_fit_loses_examples_before_characters(caplog):
    denoiser = WordDenoiser(context_length=60)
    propose(denoiser, slot(words=20), examples_per_context=(4, 4))
    for text in denoiser.seen:
        assert text.count("Colour:") < 4
        assert "…" not in text
        assert "name the colour that is meant" in text
    [warning] = [record.getMessage() for record in caplog.records]
    assert "tokens does not fit 60: examples are left out" in warning


def test_one_example_that_does_not_fit_is_cut_and_the_instructions_are_not(caplog):
    denoiser = WordDenoiser(context_length=60)
    propose(denoiser, slot(words=400), examples_per_context=(1, 1))
    for text in denoiser.seen:
        assert "…" in text
        assert "name the colour that is meant" in text
    [warning] = [record.getMessage() for record in caplog.records]
    assert "tokens does not fit 60: values are cut" in warning


def demo(number: int) -> dict[str, str]:
    return {"text": f"d{number} " + "word " * 20, "colour": f"c{number}"}


def test_demos_are_left_out_after_examples_and_before_characters(caplog):
    place = replace(slot(words=20), demos=tuple(map(demo, range(8))))
    denoiser = WordDenoiser(context_length=120)
    propose(denoiser, place, examples_per_context=(2, 2))
    for text in denoiser.seen:
        assert text.count("Colour:") == 4  # three demos and the example fit
        assert "Text: t" in text and "d7" in text and "d0" not in text
        assert "…" not in text
    messages = [record.getMessage() for record in caplog.records]
    assert [message.partition(": ")[2] for message in messages] == [
        "examples are left out",
        "the program's demos are left out",
    ]


def test_short_instructions_fit_however_many_demos_the_program_has(caplog):
    place = replace(slot(words=400), demos=tuple(map(demo, range(8))))
    denoiser = WordDenoiser(context_length=60)
    propose(denoiser, place)
    for text in denoiser.seen:
        assert "…" in text and "name the colour that is meant" in text
    assert len(caplog.records) == 3  # examples, demos, values: each is said once


# Adapters that repeat the instructions


def test_demos_that_repeat_the_instructions_are_left_out_of_contexts():
    text = "Read the text, then name the colour.\n{text}\nColour:"
    place = replace(slot(instructions=text), demos=(demo(0),))
    denoiser = WordDenoiser()
    for proposal in propose(denoiser, place):
        assert proposal.instructions.endswith(text[13:])
    for seen in denoiser.seen:
        assert OPEN not in seen and CLOSE not in seen
        assert seen.count("then name the colour") == 1
        assert seen.startswith("<user>\n<MASK><MASK><MASK>, then name the colour.\nt")
        assert "d0" not in seen


def test_a_masked_judge_is_proposed_for_given_several_scored_responses():
    """The masked template stands once, with the first response; then pairs of fields and score."""
    template = judge_template("judge_masked")
    text, window = take_marks(template.text)
    assert window is not None
    examples = tuple(
        WorkedExample({f: f"{f} {k}" for f in template.fields}, {"verdict": f"[RESULT] {k}"})
        for k in range(1, 5)
    )
    place = Slot("judge", template.signature(), TemplateAdapter(), examples)
    denoiser = WordDenoiser()
    infiller = Infiller(denoiser, Sampling(), (4, 4))
    infiller.propose(place, text, window, num=2, seed=0)
    for seen in denoiser.seen:
        assert seen.count("<MASK>") == window.num_masks == 160 + 5 * 16
        assert seen.count("<user>") == seen.count("[RESULT]") == 4
        first, *pairs = seen.split("<user>\n")[1:]
        assert first.startswith("<MASK>") and first.count("\nScore <MASK>") == 5
        for pair in pairs:
            number = pair.rstrip()[-1]
            assert pair == (
                f"###The instruction to evaluate:\norig_instruction {number}\n\n"
                f"###Response to evaluate:\norig_response {number}\n\n"
                f"###Reference Answer (Score 5):\norig_reference_answer {number}\n\n"
                f"###Score Rubrics: [orig_criteria {number}]\n\n"
                f"###Feedback:\n<assistant>\n[RESULT] {number}\n"
            )


def test_a_masked_prefix_of_a_question_stands_before_the_first_of_several_pairs():
    signature = dspy.Signature("question -> answer", "Q: {question}\nA:")
    examples = tuple(WorkedExample({"question": f"q{k}"}, {"answer": f"a{k}"}) for k in range(3))
    place = Slot("solve", signature, TemplateAdapter(), examples)  # type: ignore[arg-type]
    denoiser = WordDenoiser()
    (window,) = Prefix(2, 0).windows(signature.instructions, (), ())
    Infiller(denoiser, Sampling(), (3, 3)).propose(
        place, signature.instructions, window, num=1, seed=0
    )
    (seen,) = denoiser.seen
    a, b, c = re.findall(r"Q: q(\d)", seen)
    assert seen == (
        f"<user>\n<MASK><MASK>Q: q{a}\nA:\n<assistant>\na{a}\n"
        f"<user>\nQ: q{b}\nA:\n<assistant>\na{b}\n<user>\nQ: q{c}\nA:\n<assistant>\na{c}\n"
    )
    assert {a, b, c} == {"0", "1", "2"}


class Twice(TemplateAdapter):
    """Says its prompt again, whatever is asked."""

    def format(self, signature, demos, inputs):
        return super().format(signature, demos, inputs) * 2


def test_an_adapter_that_always_repeats_them_is_refused():
    place = replace(slot(), adapter=Twice())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Twice must state the instructions of 'p' once"):
        propose(WordDenoiser(), place)


def test_private_use_characters_in_examples_are_just_text():
    icon = WorkedExample({"text": "\ue000 menu \ue001"}, {"colour": "red"})
    denoiser = WordDenoiser()
    propose(denoiser, replace(slot(), examples=(icon,)))
    assert all("\ue000 menu" in seen for seen in denoiser.seen)


# End-of-text


@dataclass
class EndingDenoiser(WordDenoiser):
    """Fills masks with words, and then with end-of-text."""

    num_words: int = 2

    def infill(self, requests: Sequence[InfillRequest], sampling: Sampling) -> list[Infilled]:
        (end,) = self.encode(END_OF_TEXT).input_ids
        results = []
        for request in requests:
            ids = list(request.input_ids)
            places = [k for k, token in enumerate(ids) if token == self.mask_id]
            for number, place in enumerate(places):
                word = self.encode(f" w{number}").input_ids[0]
                ids[place] = word if number < self.num_words else end
            results.append(Infilled(tuple(ids), 0.5, 1))
        return results


@pytest.mark.parametrize(
    ("num_words", "expected"),
    [(2, " w0 w1"), (0, "<|endoftext|>" * 3), (3, " w0 w1 w2")],
    ids=["ends", "end-of-text alone", "never ends"],
)
def test_a_piece_is_cut_at_the_end_of_text_that_ends_it(num_words, expected):
    window = Window((Piece(4, 13, 3),))
    infiller = Infiller(EndingDenoiser(num_words=num_words), Sampling(forbid_special=False))
    (proposal,) = infiller.propose(slot(), TASK, window, num=1, seed=0)
    assert proposal.fills == (expected,)
    assert proposal.instructions == TASK[:4] + expected + TASK[13:]


# Indentation


@pytest.mark.parametrize("window", [WINDOW, Window((Piece(14, 31, 3),))], ids=["line 1", "line 2"])
def test_the_indentation_of_the_adapter_does_not_get_into_the_instructions(window):
    text = "Read the text.\nName its colour.\nBe brief."
    place = replace(slot(instructions=text), adapter=dspy.ChatAdapter())
    denoiser = WordDenoiser(words=["one\n        two"])
    infiller = Infiller(denoiser, Sampling())
    for proposal in infiller.propose(place, text, window, num=2, seed=0):
        assert "one\ntwo" in proposal.instructions
        assert "        " not in proposal.instructions


def test_instructions_that_do_not_fit_are_named_with_the_fix():
    long = slot(words=400, instructions=TASK + " and say it" * 40)
    with pytest.raises(ContextTooLongError) as caught:
        propose(WordDenoiser(context_length=60), long)
    assert "the instructions of 'p' with one shortened example have" in str(caught.value)
    assert "word-denoiser takes 60: shorten the instructions" in str(caught.value)


# Contexts that are shared


def shared_contexts(denoiser: WordDenoiser, window: Window, **options) -> list[str]:
    """The text of each proposal's context with the masks taken for the window."""
    del denoiser.seen[:]
    infiller = Infiller(denoiser, Sampling(cache="context"))
    infiller.propose(slot(num=12), TASK, window, num=8, **options)
    return [text.replace("<MASK><MASK><MASK>", window.text_of(TASK)) for text in denoiser.seen]


def test_a_pool_has_two_contexts_whatever_the_seed():
    denoiser = WordDenoiser()
    one, same = (shared_contexts(denoiser, WINDOW, seed=seed, pool="a") for seed in (0, 1))
    assert one == same == [one[0]] * 4 + [one[4]] * 4
    assert one[0] != one[4]
    assert not set(one) & set(shared_contexts(denoiser, WINDOW, seed=0, pool="b"))


def test_a_shared_context_says_where_the_instructions_are():
    denoiser = WordDenoiser()
    infiller = Infiller(denoiser, Sampling(cache="context"))
    context = infiller.masked_context(slot(), TASK, WINDOW, random.Random(0))
    assert context.shared is not None
    ids, start, end = context.shared.input_ids, context.shared.start, context.shared.end
    assert denoiser.decode(ids[start:end]).strip() == TASK
    assert OPEN not in denoiser.decode(ids) and "<MASK>" not in denoiser.decode(ids)


def test_nothing_is_shared_without_that_cache():
    infiller = Infiller(WordDenoiser(), Sampling(cache="window"))
    assert infiller.masked_context(slot(), TASK, WINDOW, random.Random(0)).shared is None


def test_a_context_that_only_fits_with_the_window_taken_out_is_not_shared():
    denoiser = WordDenoiser()
    short = Window((Piece(0, len(TASK), 1),))
    infiller = Infiller(denoiser, Sampling(cache="context"), (1, 1))
    whole = infiller.masked_context(slot(), TASK, short, random.Random(0))
    denoiser.context_length = len(whole.input_ids)
    alone = infiller.masked_context(slot(), TASK, short, random.Random(0))
    assert alone.input_ids == whole.input_ids
    assert alone.shared is None and whole.shared is not None


def test_refreshes_of_proposals_are_counted():
    class Drifting(WordDenoiser):
        def infill(self, requests, sampling):
            return [replace(one, num_refreshes=2) for one in super().infill(requests, sampling)]

    infiller = Infiller(Drifting(), Sampling(cache="context", max_drift=0.5))
    for _ in range(2):
        infiller.propose(slot(), TASK, WINDOW, num=3, seed=0)
    assert infiller.num_refreshes == 12
