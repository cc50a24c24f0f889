"""What journals and other files hold, and what they do not: the claims of docs/risks.md."""

import json
import logging
from pathlib import Path

import dspy
import pytest
from doubles import WordDenoiser, rule_lm
from loopback import loopback
from small_experiment import run_small, write_summeval
from test_diffusion_infill import ROWS, answer_if_told_briefly, program

from dspy_diffusion_infill.contexts import WorkedExample
from dspy_diffusion_infill.infiller.leaks import LeakGuard
from dspy_diffusion_infill.optimizer.diffusion_infill import DiffusionInfill
from dspy_diffusion_infill.reproduction.models import Models
from dspy_diffusion_infill.template_adapter import TemplateAdapter

KEY = "sk-very-secret"
SECRET = [
    dspy.Example(text=f"{row.text} said Zwiebelfisch", colour=row.colour).with_inputs("text")
    for row in ROWS
]


def compiled(lm: dspy.LM, **options) -> dspy.Module:
    quiet = {"guidance": None, "display_progress": False, "num_threads": 1, "sweeps": 2}
    optimizer = DiffusionInfill(None, WordDenoiser(), **{**quiet, **options})
    with dspy.context(lm=lm, adapter=TemplateAdapter()):
        return optimizer.compile(program(), SECRET)


def bytes_below(folder: Path) -> bytes:
    return b"\n".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_the_journal_of_a_search_holds_no_row_and_no_instructions(tmp_path):
    lm, _ = rule_lm(answer_if_told_briefly)
    better = compiled(lm, log_dir=tmp_path, protect=["colour that"])
    text = (tmp_path / "journal.jsonl").read_text(encoding="utf-8")
    assert "Zwiebelfisch" not in text
    assert not any(row.text in text for row in SECRET)
    assert better.signature.instructions not in text and "Read what the customer" not in text
    header, *entries = map(json.loads, text.splitlines())
    assert ["colour that"] in header["identity"]["options"]
    assert {entry["about"] for entry in entries} == {"baseline", "proposals", "trial"}


def test_the_record_of_a_search_holds_no_row(tmp_path):
    lm, _ = rule_lm(answer_if_told_briefly)
    better = compiled(lm)
    assert "Zwiebelfisch" not in repr(better.detailed_results)


def test_responses_go_to_the_denoiser_and_not_to_the_lm():
    lm, engine = rule_lm(lambda _: "no idea")
    denoiser = WordDenoiser()
    rows = [
        dspy.Example(text=f"number {k}", colour=colour).with_inputs("text")
        for k, colour in enumerate(["crimson", "azure"])
    ]
    with dspy.context(lm=lm, adapter=TemplateAdapter()):
        optimizer = DiffusionInfill(
            None, denoiser, guidance=None, display_progress=False, max_metric_calls=20
        )
        optimizer.compile(program(), rows)
    assert engine.prompts
    for colour in ("crimson", "azure"):
        assert any(colour in context for context in denoiser.seen)
        assert not any(colour in prompt for prompt in engine.prompts)


def test_a_saved_program_has_neither_key_nor_record(tmp_path):
    lm, _ = rule_lm(answer_if_told_briefly)
    better = compiled(lm)
    better.set_lm(dspy.LM("openai/x", api_key=KEY, api_base="http://127.0.0.1:9/v1"))
    better.save(tmp_path / "better.json")
    text = (tmp_path / "better.json").read_text(encoding="utf-8")
    assert better.signature.instructions in text
    assert KEY not in text and "trials" not in text


def test_a_reproduction_keeps_completions_and_no_address_or_article(tmp_path, monkeypatch):
    monkeypatch.setattr(Models, "denoiser", lambda self, name: WordDenoiser())
    data = write_summeval(tmp_path / "data")
    with loopback(lambda *_: "Because of Wolkenbruch. [RESULT] 3") as server:
        run_small(data, tmp_path / "out", server.url)
    kept = bytes_below(tmp_path / "out")
    assert b"Wolkenbruch" in kept and b"Judge with care" in kept
    assert b"it rained for" not in kept and b"It rained in 1, said" not in kept
    assert server.url.encode() not in kept


def test_a_warning_quotes_at_most_120_characters_of_an_error(caplog):
    def broken(prompt: str) -> str:
        raise RuntimeError("Zwiebelfisch" * 100)

    with caplog.at_level(logging.WARNING, logger="dspy_diffusion_infill"):
        compiled(rule_lm(broken)[0], max_errors=len(SECRET))
    (message,) = [record.getMessage() for record in caplog.records if "raised" in record.message]
    assert 0 < message.count("Zwiebelfisch") <= 10


@pytest.mark.parametrize(
    ("inserted", "is_dropped"),
    [
        ("say the soup was cold", True),  # four words in a row
        ("say that the soup was good", False),  # three
        ("the answer is Bordeaux", True),  # a whole value
        ("the answer is a wine", False),
        ("it holds alpha beta gamma delta", True),  # the value is in a list
    ],
)
def test_literal_copies_of_texts_are_dropped_and_no_more(inserted, is_dropped):
    values = {"text": "Yesterday the soup was cold again", "words": ["alpha beta gamma delta"]}
    examples = [WorkedExample(values, {"answer": "Bordeaux"})]
    found = LeakGuard(tuple(examples)).find(inserted, "Answer the question")
    assert (found is not None) == is_dropped
