import json
import random
from pathlib import Path

import pytest
from test_training_rows import CODER

from dspy_diffusion_infill.errors import DataError
from dspy_diffusion_infill.training.mixture import Mixture, make_pools, read_sources
from dspy_diffusion_infill.training.options import DataOptions, SourceOptions
from dspy_diffusion_infill.training.rows import Group, Row, pair
from dspy_diffusion_infill.training.sources import (
    FEEDBACK_TEMPLATE,
    read_pairs,
    read_source,
    write_rows,
)

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
GOOD = {"prompt": "Say a.", "response": "a"}
FEEDBACK = {
    "orig_instruction": "Explain rain.",
    "orig_response": "Water falls.",
    "orig_reference_answer": "Vapour condenses and falls.",
    "orig_criteria": "Is it right?",
    **{f"orig_score{k}_description": f"worth {k}" for k in range(1, 6)},
    "orig_feedback": "Too short.",
    "orig_score": "2",
}


def file_of(folder: Path, *lines: object) -> str:
    path = folder / "rows.jsonl"
    encoded = [x if isinstance(x, bytes) else json.dumps(x).encode() for x in lines]
    path.write_bytes(b"\n".join(encoded) + b"\n")
    return str(path)


BAD = {
    "empty response": ({"prompt": "Say a.", "response": " "}, "response is empty"),
    "missing field": ({"prompt": "Say a."}, "'response' is missing"),
    "wrong type": ({"prompt": "Say a.", "response": 3}, "'response' must be text"),
    "invalid UTF-8": (b'{"prompt": "\xff", "response": "a"}', "invalid UTF-8 at byte 12"),
    "half a character": (
        rb'{"prompt": "Say \ud83d.", "response": "a"}',
        "the text holds \\ud83d, half of a surrogate pair",
    ),
    "instructions elsewhere": (
        {"messages": [{"role": "user", "content": "Hi"}], "instructions": "Be kind."},
        "'Be kind.' stand in none of the messages",
    ),
    "instructions of another type": (
        {"messages": [{"role": "user", "content": "Hi"}], "instructions": [3]},
        "'instructions' must be text, or a list of texts",
    ),
    "no JSON": (b"{prompt: 3}", "no JSON"),
    "no object": ([1, 2], "must be a JSON object, got list"),
    "empty prompt": ({"prompt": "", "response": "a"}, "'prompt' is empty"),
    "no user turn": ({"messages": [{"role": "assistant", "content": "a"}]}, "no user turn"),
    "no messages": ({"messages": []}, "'messages' must be a list"),
    "feedback field": ({**FEEDBACK, "orig_response": ""}, "'orig_response' is empty"),
    "feedback score": ({**FEEDBACK, "orig_score": "good"}, "'orig_score' must be a whole number"),
    "example": ({"instructions": "Add.", "examples": [["1 1"]]}, "each of 'examples'"),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_row_is_an_error_with_file_and_line(tmp_path, bad):
    line, message = BAD[bad]
    path = file_of(tmp_path, GOOD, line, GOOD)
    with pytest.raises(DataError) as caught:
        read_source(SourceOptions(path=path))
    assert str(caught.value).startswith(f"{path}:2: ")
    assert message in str(caught.value)


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_row_is_skipped_and_counted_where_the_option_says_so(tmp_path, bad):
    path = file_of(tmp_path, GOOD, BAD[bad][0], GOOD)
    source = read_source(SourceOptions(path=path), skip_bad=True)
    assert source.rows == [pair("Say a.", "a")] * 2
    assert (source.tally.num_read, source.tally.num_bad, source.tally.num_kept) == (3, 1, 2)
    assert f"{path}:2" in str(source.tally)


LONG = {"prompt": "word " * 25_000, "response": "yes"}  # 125,000 tokens of one byte


@pytest.mark.parametrize("rule", ["drop", "cut"])
def test_a_row_of_100k_tokens_is_dropped_and_counted(tmp_path, rule):
    """Cutting its end would leave nothing of its response: it is dropped, and counted as that."""
    options = SourceOptions(path=file_of(tmp_path, GOOD, LONG))
    data = DataOptions(sources=(options,), max_length=200, too_long=rule)
    [pool], [tally] = make_pools(read_sources(data), data, CODER)
    assert len(pool.elements) == 1
    assert (tally.num_cut, tally.num_dropped, tally.num_kept) == (0, 1, 1)


def test_a_row_that_is_too_long_is_an_error_with_file_and_line(tmp_path):
    path = file_of(tmp_path, GOOD, LONG)
    data = DataOptions(sources=(SourceOptions(path=path),), max_length=200, too_long="raise")
    with pytest.raises(
        DataError, match=r"rows\.jsonl:2: the row has 125\d{3} tokens, more than max_length=200"
    ):
        make_pools(read_sources(data), data, CODER)


def test_a_long_response_is_cut_and_counted(tmp_path):
    path = file_of(tmp_path, {"prompt": "Say a.", "response": "a" * 500})
    data = DataOptions(sources=(SourceOptions(path=path),), max_length=200, too_long="cut")
    [pool], [tally] = make_pools(read_sources(data), data, CODER)
    assert len(pool.elements) == 1
    assert (tally.num_cut, tally.num_dropped) == (1, 0)


def group_of(answers: int, length: int) -> dict:
    """Instructions, and examples of which some are needed to make a row too long."""
    examples = [[f"Input: {k}{'x' * length}\nOutput:", f"{k}."] for k in range(answers)]
    return {"instructions": "Say the number.", "examples": examples}


def mixture_of(path: str, rule: str, shape: str, **options) -> Mixture:
    source = SourceOptions(path=path, shape=shape)
    data = DataOptions(sources=(source,), max_length=600, too_long=rule)
    pools, _ = make_pools(read_sources(data), data, CODER)
    return Mixture(pools=pools, coder=CODER, in_order=False, **options)


@pytest.mark.parametrize(("shape", "length"), [("worked_examples", 120), ("chat_adapter", 20)])
def test_assembled_examples_follow_the_rule_for_what_is_too_long(tmp_path, shape, length):
    path = file_of(tmp_path, group_of(6, length), group_of(6, 1))
    cut, drop = (mixture_of(path, rule, shape) for rule in ("cut", "drop"))
    drawn = [(cut(random.Random(k), k), drop(random.Random(k), k)) for k in range(60)]
    assert {first.is_cut for first, _ in drawn} == {True, False}
    assert all(len(first.input_ids) == 600 for first, _ in drawn if first.is_cut)
    for first, second in drawn:
        assert len(second.input_ids) <= 600 and not second.is_cut and any(second.is_response)
        assert first.is_cut or first == second
    strict = mixture_of(path, "raise", shape)
    with pytest.raises(DataError, match=r"max_length=600 tokens with its worked examples: raise"):
        for k in range(60):
            strict(random.Random(k), k)


ADD = {"instructions": "Add.", "examples": [[f"Input: {k}\nSum:", f"{k}."] for k in range(1, 9)]}


def rows_of(path: str, **options) -> list[Row]:
    """Twenty rows of a source in the shape of its options."""
    data = DataOptions(sources=(SourceOptions(path=path, **options),), max_length=2000)
    [pool], _ = make_pools(read_sources(data), data, CODER)
    return [pool.render(pool.elements[0], random.Random(k)) for k in range(20)]


def test_a_source_says_how_many_examples_and_where_they_stand(tmp_path):
    path = file_of(tmp_path, ADD)
    rows = rows_of(path, shape="worked_examples")
    assert {row.prompt.count("Sum:") for row in rows} == {1, 2, 3, 4, 5, 6}
    assert all(row.prompt.startswith("Add.") for row in rows)
    before = rows_of(path, shape="worked_examples", examples="before")
    assert any(not row.prompt.startswith("Add.") for row in before)
    assert all(row.prompt.split("\n\n")[-2] == "Add." for row in before)
    alone = rows_of(path, shape="worked_examples", max_examples=1)
    assert {row.prompt.count("\n\n") for row in alone} == {1}
    turns = rows_of(path, shape="chat_adapter", max_examples=2)
    assert {len(row.turns) for row in turns} == {3, 5}  # system, user, assistant, and a demo's two


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_examples": 2}, "max_examples needs shape=worked_examples"),
        ({"shape": "worked_examples", "max_examples": 0}, "at least 1, got max_examples=0"),
        ({"shape": "chat_adapter", "examples": "before"}, "needs shape=worked_examples"),
        ({"weight": 0.0}, "weight must be above 0"),
    ],
)
def test_options_of_a_source_that_do_not_go_together_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SourceOptions(path="rows.jsonl", **options)


def test_a_file_that_several_sources_name_is_read_once(tmp_path):
    path = file_of(tmp_path, ADD)
    options = [
        SourceOptions(path=path, shape="worked_examples", weight=2.0, examples="before"),
        SourceOptions(path=path, shape="chat_adapter", max_length=80, max_examples=1),
        SourceOptions(path=path, shape="worked_examples", remove=("A",)),
    ]
    first, second, third = read_sources(DataOptions(sources=tuple(options)))
    assert first.items is second.items
    assert first.items is not third.items
    assert [s.options for s in (first, second, third)] == options


def test_missing_and_empty_files_are_errors(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read_pairs(tmp_path / "no.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match="holds no row"):
        read_pairs(tmp_path / "empty.jsonl")
    with pytest.raises(DataError, match="holds no row with a response"):
        read_pairs(file_of(tmp_path, ADD))


def test_prompts_without_a_response_are_taken_where_the_source_says_so(tmp_path):
    path = file_of(tmp_path, {"prompt": "You are a pirate.", "response": ""})
    source = read_source(SourceOptions(path=path, prompt_only=True))
    assert source.rows == [pair("You are a pirate.")]


def test_feedback_rows_go_into_the_papers_template(tmp_path):
    [row] = read_pairs(file_of(tmp_path, FEEDBACK))
    assert row.prompt == FEEDBACK_TEMPLATE.format(**FEEDBACK)
    assert row.response == "Too short. [RESULT] 2"
    task, rubric = row.instructions
    assert task.startswith("###Task Description:")
    assert task.endswith("any other opening, closing, and explanations.")
    assert rubric == "###Score Rubrics: [Is it right?]\n" + "\n".join(
        f"Score {k}: worth {k}" for k in range(1, 6)
    )
    assert task in row.prompt
    assert rubric in row.prompt


def test_real_feedback_rows_are_read_whole():
    path = SHARED / "feedback_format" / "vicuna_320.jsonl"
    if not path.is_file():
        pytest.skip("../shared/data is not on this machine")
    rows = read_pairs(path)
    assert len(rows) == 320
    assert all(row.response.rsplit("[RESULT] ")[1] in "12345" for row in rows)


def test_fields_are_shortened_at_a_word(tmp_path):
    path = file_of(tmp_path, {**FEEDBACK, "orig_response": "some words that go on"})
    [row] = read_source(SourceOptions(path=path, max_field_chars=12)).rows
    assert "###Response to evaluate:\nsome words ...\n" in row.prompt


def test_messages_and_groups_and_removed_texts(tmp_path):
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hello<|end|>"},
        {"role": "assistant", "content": "Hi"},
    ]
    group = {"instructions": "Add.", "examples": [["1 1\nSum:", "2<|end|>"]]}
    path = file_of(tmp_path, {"messages": messages, "instructions": "Be kind."}, group)
    source = read_source(SourceOptions(path=path, remove=("<|end|>",)))
    turns = (("system", "Be kind."), ("user", "Hello"), ("assistant", "Hi"))
    assert source.rows == [Row(turns, ("Be kind.",))]
    assert source.groups == [Group("Add.", (("1 1\nSum:", "2"),))]


def test_escaped_pairs_are_one_character_and_the_end_of_an_answer_is_its_last_word(tmp_path):
    path = tmp_path / "rows.jsonl"
    messages = (
        '[{"role": "user", "content": "\\ud83d\\ude00"}, {"role": "assistant", "content": "a\\n"}]'
    )
    path.write_text(f'{{"messages": {messages}}}\n')
    assert read_pairs(path) == [Row((("user", "\U0001f600"), ("assistant", "a")))]


def test_rows_that_are_written_are_read_back(tmp_path):
    rows = [pair("Say a.", "a", instructions="Say a."), Row((("user", "ü"), ("assistant", "b")))]
    rows += [Row((("user", "Say a: x. Once."), ("assistant", "\U0001f600")), ("Say a", "Once."))]
    write_rows(rows, tmp_path / "out.jsonl")
    assert read_pairs(tmp_path / "out.jsonl") == rows


def test_a_hub_data_set_that_cannot_be_reached_is_one_clear_error(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def unreachable(path, split):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(DataError, match=r"'a/b' \(split 'train'\) cannot be loaded: no network"):
        read_source(SourceOptions(path="a/b", split="train"))


def test_hub_rows_are_read_and_counted_by_number(monkeypatch):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list([FEEDBACK, {**FEEDBACK, "orig_feedback": ""}])
    monkeypatch.setattr(datasets, "load_dataset", lambda path, split: rows)
    with pytest.raises(DataError, match=r"a/b\[train\]:2: the field 'orig_feedback' is empty"):
        read_source(SourceOptions(path="a/b", split="train"))
    assert len(read_source(SourceOptions(path="a/b", split="train"), skip_bad=True).rows) == 1
