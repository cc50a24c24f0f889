from dataclasses import replace

import dspy
import pytest
from doubles import WordDenoiser

from dspy_diffusion_infill.contexts import CLOSE, OPEN, Slot, WorkedExample
from dspy_diffusion_infill.denoisers import Sampling
from dspy_diffusion_infill.errors import ContextTooLongError
from dspy_diffusion_infill.infiller.infiller import Infiller
from dspy_diffusion_infill.template_adapter import TemplateAdapter
from dspy_diffusion_infill.windows import Piece, Window

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
    text = "Read the text {text} and name the colour that is meant:"
    place = replace(slot(instructions=text), demos=(demo(0),))
    denoiser = WordDenoiser()
    for proposal in propose(denoiser, place):
        assert proposal.instructions.endswith(text[13:])
    for seen in denoiser.seen:
        assert OPEN not in seen and CLOSE not in seen
        assert seen.count("name the colour") == 1
        assert seen.startswith("<user>\n<MASK><MASK><MASK> t")
        assert "d0" not in seen


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
