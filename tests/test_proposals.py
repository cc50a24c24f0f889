import pytest

from dspy_diffusion_infill.contexts import WorkedExample
from dspy_diffusion_infill.infiller.proposals import (
    Proposal,
    ProposalFilter,
    adds_some_labels,
    copies_example,
    is_degenerate,
)
from dspy_diffusion_infill.windows import Piece, Window

OLD = "Decide how the writer feels about it."
EXAMPLES = tuple(
    WorkedExample({"review": f"The {thing} was a long and dull affair"}, {"label": label})
    for thing, label in [
        ("play", "negative"),
        ("opera", "positive"),
        ("film", "negative"),
        ("concert", "positive"),
    ]
)


def reason(fill: str) -> str | None:
    window = Window((Piece(6, 21, 4),))
    proposal = Proposal("p", window, (fill,), window.splice(OLD, [fill]), 0.5)
    return ProposalFilter.over(EXAMPLES).reason_against(proposal, OLD)


@pytest.mark.parametrize(
    ("fill", "expected"),
    [
        (" what the author", None),
        (OLD[6:21], "unchanged"),
        ("  how THE writer", "unchanged"),
        ("", "degenerate"),
        ("   \n", "degenerate"),
        (" ... !!", "degenerate"),
        (" the the the", "degenerate"),
        (" of the of the", "degenerate"),
        (" caf\ufffd", "degenerate"),
        (" the {review} writer", "new_placeholder"),
        (" [[ ## label ## ]]", "new_placeholder"),
        (" negative", "partial_labels"),
        (" positive or negative:", None),
        (" a long and dull affair", "copies_example"),
    ],
)
def test_worthless_proposals_are_named(fill, expected):
    assert reason(fill) == expected


def test_short_values_of_examples_are_not_to_be_copied():
    examples = (WorkedExample({"word": "giraffe"}, {"plural": "giraffes"}),)
    window = Window((Piece(0, 0, 2),))
    proposal = Proposal("p", window, ("For giraffe, ",), "For giraffe, write the plural.", 0.5)
    kept = ProposalFilter.over(examples)
    assert kept.reason_against(proposal, "write the plural.") == "copies_example"


def test_a_rubric_of_decimals_does_not_stutter():
    old = "Score 1: bad.\nScore 2: good."
    window = Window((Piece(9, 13, 4), Piece(23, 28, 4)))
    for fills, expected in ((("1.2", "2.5"), None), (("2", "2"), "degenerate")):
        proposal = Proposal("p", window, fills, window.splice(old, fills), 0.5)
        assert ProposalFilter.over(EXAMPLES).reason_against(proposal, old) == expected


def test_a_proposal_is_let_through_once_and_every_drop_is_counted():
    window = Window((Piece(6, 21, 4),))
    fills = [" what the author", " what the author", " negative"]
    proposals = [Proposal("p", window, (f,), window.splice(OLD, [f]), 0.5) for f in fills]
    keeper = ProposalFilter.over(EXAMPLES)
    assert [p.fills for p in keeper.keep(proposals, OLD)] == [(" what the author",)]
    assert keeper.counts == {"proposed": 3, "duplicate": 1, "partial_labels": 1}


def test_labels_that_were_there_before_may_stay_alone():
    labels = (("negative", "positive"),)
    assert not adds_some_labels("say negative now", "is it negative?", labels)
    assert adds_some_labels("say positive now", "is it negative?", labels) is True
    assert not adds_some_labels("positive, negative", "label it", labels)


def test_labels_of_one_field_may_come_without_those_of_another():
    labels = (("bad", "good"), ("de", "en"))
    assert not adds_some_labels("is it good or bad?", "judge it", labels)
    assert adds_some_labels("is it good or bad, in en", "judge it", labels)


def test_words_that_the_old_text_already_took_from_an_example_may_stay():
    rows = [WorkedExample({"text": "the staff were so kind to us"}, {"label": "positive"})]
    assert copies_example("say the staff were so kind", "judge it", rows, ())
    assert not copies_example("the staff were so kind", "the staff were so kind, or?", rows, ())


def test_copies_inside_of_lists_and_models_are_copies():
    nested = [WorkedExample({"pages": [{"text": "the old mill by the river"}]}, {"answer": "x"})]
    assert copies_example("see the old mill by", "", nested, ())
    assert not copies_example("see the new mill by", "", nested, ())


@pytest.mark.parametrize(
    ("value", "copy", "other"),
    [
        ("今天的天气真是非常好", "请看今天的天气真是非常", "请看明天的天气"),
        ("この映画はとても面白かった", "「この映画はとても面白", "この本は"),
        ("இந்த படம் மிகவும் நன்றாக இருந்தது", "சொல் இந்த படம் மிகவும் நன்றாக", "இந்த படம் நன்று"),
    ],
)
def test_copies_are_found_in_any_script(value, copy, other):
    examples = [WorkedExample({"text": value}, {"label": "x"})]
    assert copies_example(copy, "", examples, ())
    assert not copies_example(other, "", examples, ())


@pytest.mark.parametrize(
    ("text", "is_bad"),
    [
        ("请看看这个", False),
        ("好好好评", True),
        ("评价评价", True),
        ("慢慢来", False),
        ("。！", True),
    ],
)
def test_stutters_in_a_script_without_spaces(text, is_bad):
    window = Window((Piece(0, 0, 4),))
    assert is_degenerate(Proposal("p", window, (text,), text, 0.5), "") == is_bad


def test_adding_some_labels_is_found_in_any_script():
    labels = (("好评", "差评"),)
    assert adds_some_labels("说好评", "分类", labels)
    assert not adds_some_labels("说好评或差评", "分类", labels)


def test_a_proposal_that_would_lose_the_indentation_of_its_lines_is_dropped():
    old = "Sort it.\nnow:\n    - fruit\n    - tools"
    window = Window((Piece(8, 13, 1),))
    proposal = Proposal("p", window, (" well",), window.splice(old, [" well"]), 0.5)
    assert proposal.instructions == "Sort it. well\n    - fruit\n    - tools"
    assert ProposalFilter.over(()).reason_against(proposal, old) == "degenerate"
