import json
from pathlib import Path

import dspy
import pytest

from dspy_diffusion_infill.errors import DataError
from dspy_diffusion_infill.evaluation import loading
from dspy_diffusion_infill.evaluation.examples import DIMENSIONS, FEEDBACK_FIELDS, as_feedback
from dspy_diffusion_infill.evaluation.loading import load_dataset
from dspy_diffusion_infill.evaluation.rows import Record
from dspy_diffusion_infill.evaluation.templates import judge_template

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="the shared data are not here")

RUBRIC = {"criteria": "Right?"} | {f"score{k}_description": f"worth {k}" for k in range(1, 6)}
BIGGEN = {
    "id": "reasoning_1",
    "input": "2+2?",
    "reference_answer": "4",
    "score_rubric": RUBRIC,
    "model_name": "a-model",
    "response": "5",
    "human_score": 2,
}
HOVER = {
    "claim": "A is in B.",
    "supporting_facts": [{"key": key, "value": 0} for key in "ABCA"],
    "label": 1,
}
GSM8K = {"question": "2+2?", "answer": "4\n#### 4"}
FEEDBACK = {name: name for name in FEEDBACK_FIELDS} | {"orig_score": "3", "orig_feedback": "Ok."}
ARTICLE = {
    "id": "d1",
    "text": "It rained.",
    "human_summaries": ["Rain.", "Wet."],
    "machine_summaries": ["Rain fell.", "Sun."],
    **{key: [4.0, 1.0] for key in DIMENSIONS},
}


def write(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return path


@needs_shared
@pytest.mark.parametrize(
    ("name", "split", "size"),
    [
        ("summeval", "dev", 160),
        ("summeval", "all", 160),
        ("summeval", "dev[16:48]", 32),
        ("gsm8k", "train", 7099),
        ("gsm8k", "dev", 374),
        ("gsm8k", "validation", 374),
        ("gsm8k", "test", 1319),
        ("gsm8k", None, 8792),
        ("hover", "train", 150),
        ("hover", "dev", 300),
        ("feedback_collection", "all", 320),
        ("feedback_collection", "dev", 16),
        ("biggen_tasks", "test[:10]", 10),
    ],
)
def test_sizes_of_the_real_files(name: str, split: str | None, size: int) -> None:
    found = load_dataset(name, data=SHARED, split=split)
    assert len(found) == size
    assert found.num_dropped == 0
    assert all(example._input_keys for example in found)


@needs_shared
def test_train_and_dev_of_gsm8k_do_not_meet() -> None:
    train, dev = (load_dataset("gsm8k", data=SHARED, split=part) for part in ("train", "dev"))
    assert not {e.question for e in train} & {e.question for e in dev}


@needs_shared
def test_overall_is_the_mean_of_the_four_and_rows_have_article_and_system() -> None:
    lines = (SHARED / "summeval_dev" / "outputs.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    found = load_dataset("summeval", data=SHARED / "summeval_dev")
    for row, example in zip(rows, found, strict=True):
        assert example.overall == example.score == pytest.approx(row["scores"]["overall"])
        assert (example.doc_id, example.system_id) == (row["doc_id"], row["system_id"])
    assert len({e.doc_id for e in found}) == 10
    assert len({e.system_id for e in found}) == 16


def test_summeval_is_split_by_article(tmp_path: Path) -> None:
    rows = [{**ARTICLE, "id": f"d{k}"} for k in range(12)]
    data = write(tmp_path / "test.jsonl", *rows)
    dev, test = (load_dataset("summeval", data=data, split=part) for part in ("dev", "test"))
    assert (len(dev), len(test)) == (20, 4)
    assert not {e.doc_id for e in dev} & {e.doc_id for e in test}
    assert [e.score for e in test] == [4, 1, 4, 1]
    assert {e.reference for e in dev} == {"Rain."}


def test_a_missing_human_score_of_biggen_is_dropped_and_counted(tmp_path: Path) -> None:
    data = write(tmp_path / "human_eval.jsonl", BIGGEN, {**BIGGEN, "human_score": -1}, BIGGEN)
    found = load_dataset("biggen", data=tmp_path, split="test")
    assert (len(found), found.num_dropped) == (2, 1)
    assert found.source == str(data)
    assert found[0].score == 2
    assert found[0].orig_score5_description == "worth 5"
    assert set(found[0].inputs().keys()) == set(FEEDBACK_FIELDS)


def test_hover_keeps_claims_with_three_pages(tmp_path: Path) -> None:
    two_pages = {**HOVER, "supporting_facts": [["A", 0], ["B", 1]], "label": "NOT_SUPPORTED"}
    own_form = {**HOVER, "supporting_facts": [["A", 0], ["B", 1], ["C", 2]], "label": "SUPPORTED"}
    (tmp_path / "train.json").write_text(json.dumps([HOVER, two_pages, own_form]), "utf-8")
    found = load_dataset("hover", data=tmp_path, split="train")
    assert [(e.titles, e.label) for e in found] == [(("A", "B", "C"), "SUPPORTED")] * 2
    assert found.num_dropped == 1


@pytest.mark.parametrize(
    ("size", "num_train"), [(95_000, 90_250), (95_001, 95_000), (99_952, 95_000), (40, 38)]
)
def test_dev_of_feedback_collection_holds_nothing_that_recipes_train_on(
    size: int, num_train: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "_rows", lambda *_: [Record({}, "f", k) for k in range(size)])
    monkeypatch.setattr(loading.make, "feedback_example", lambda row: dspy.Example(k=row.number))
    train, dev = (load_dataset("feedback_collection", split=part) for part in ("train", "dev"))
    assert [row.k for row in train] == list(range(num_train))
    assert [row.k for row in dev] == list(range(num_train, size))


def test_feedback_scores_in_quotes_are_numbers(tmp_path: Path) -> None:
    found = load_dataset("feedback_collection", data=write(tmp_path / "a.jsonl", FEEDBACK))
    assert (found[0].score, found[0].feedback) == (3.0, "Ok.")


def test_summeval_rows_become_feedback_rows(tmp_path: Path) -> None:
    example = as_feedback(load_dataset("summeval", data=write(tmp_path / "a.jsonl", ARTICLE))[0])
    assert set(example.inputs().keys()) == set(judge_template("judge_v1").fields)
    assert example.orig_instruction.endswith("\n\nIt rained.")
    assert example.orig_criteria.startswith("Overall Quality: ")
    assert example.orig_score1_description.startswith("Very poor overall")
    assert example.score == 4


@pytest.mark.parametrize(
    ("name", "row", "change", "problem"),
    [
        ("biggen", BIGGEN, {"human_score": None}, "field 'human_score' is missing; the row has"),
        ("biggen", BIGGEN, {"human_score": 7}, "field 'human_score' must be in -1..5, got 7"),
        ("biggen", BIGGEN, {"human_score": 0}, "must be -1 .missing. or in 1..5, got 0"),
        ("biggen", BIGGEN, {"score_rubric": {}}, "'score_rubric.criteria' is missing"),
        ("gsm8k", GSM8K, {"answer": "4"}, "field 'answer' has no number after '#### '"),
        ("gsm8k", GSM8K, {"question": " "}, "field 'question' is empty"),
        ("gsm8k", GSM8K, {"question": 3}, "field 'question' must be text, got int: 3"),
        ("hover", HOVER, {"label": "MAYBE"}, "field 'label' must be 0, 1 or one of"),
        ("hover", HOVER, {"supporting_facts": []}, "field 'supporting_facts' is empty"),
        ("hover", HOVER, {"supporting_facts": ["A"]}, "must hold {key, value}"),
        ("feedback_collection", FEEDBACK, {"orig_score": "A"}, "'orig_score' must be a number"),
        ("summeval", ARTICLE, {"fluency": [1.0]}, "field 'fluency' must have 2 scores, got 1"),
    ],
)
def test_a_bad_row_is_named_by_file_row_and_field(
    tmp_path: Path, name: str, row: dict, change: dict, problem: str
) -> None:
    data = write(tmp_path / "rows.jsonl", row, row, {**row, **change})
    with pytest.raises(DataError, match=problem) as caught:
        load_dataset(name, data=data)
    assert str(caught.value).startswith(f"{data}, row 3: ")


def test_an_output_without_its_article_is_named(tmp_path: Path) -> None:
    write(tmp_path / "docs.jsonl", {"doc_id": "a", "source": "It rained.", "references": ["Rain."]})
    output = {"doc_id": "b", "system_id": "M1", "system_output": "Sun.", "scores": {}}
    write(tmp_path / "outputs.jsonl", output)
    with pytest.raises(DataError, match="row 1: field 'doc_id' names no article: 'b'"):
        load_dataset("summeval", data=tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.jsonl", b'{"question": 1}\n{"qu', ":2: no JSON"),
        ("a.jsonl", b"\n[1]\n", ":2: must be a JSON object, got list"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', ":2: invalid UTF-8"),
        ("a.jsonl", b"", "holds no rows"),
        ("a.json", b'{"a": 1}', "must be a list of rows, got dict"),
        ("a.json", b"[", "no JSON"),
        ("a.parquet", b"PAR2", "no parquet file"),
        ("a.csv", b"a,b", "the file must be .jsonl, .json, .parquet, got '.csv'"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=problem) as caught:
        load_dataset("gsm8k", data=tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_a_folder_without_the_files_says_what_it_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds none of train.jsonl, train.parquet, nor does a"):
        load_dataset("gsm8k", data=tmp_path, split="train")


@pytest.mark.parametrize(
    ("name", "split", "problem"),
    [
        ("squad", "dev", "name must be one of feedback_collection, summeval"),
        ("gsm8k", "valid", "split of gsm8k must be one of train, dev, test, all"),
        ("summeval", "train", "split of summeval must be one of dev, test, all"),
        ("gsm8k", "dev[1:2", "as in 'all"),
    ],
)
def test_unknown_names_and_splits_are_refused(name: str, split: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        load_dataset(name, split=split)


def test_an_empty_split_is_an_error(tmp_path: Path) -> None:
    data = write(tmp_path / "a.jsonl", ARTICLE)
    with pytest.raises(DataError, match="split 'test' of summeval holds no example"):
        load_dataset("summeval", data=data, split="test")


def test_parquet_files_of_the_hub_are_read(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    write_table(pyarrow.Table.from_pylist([ARTICLE]), tmp_path / "test.parquet")
    assert [e.score for e in load_dataset("summeval", data=tmp_path)] == [4, 1]


def test_the_hub_is_asked_for_the_right_split(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    asked = []

    def load(path, config, *, split):
        asked.append((path, config, split))
        return datasets.Dataset.from_list([GSM8K])

    monkeypatch.setattr(datasets, "load_dataset", load)
    found = load_dataset("gsm8k", split="test")
    assert asked == [("openai/gsm8k", "main", "test")]
    assert found.source == "openai/gsm8k (test)"
    assert found[0].number == "4"


def test_without_a_network_the_error_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def fail(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DataError, match=r"no route.*give its folder as data= .--data."):
        load_dataset("summeval")
