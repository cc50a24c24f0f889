import json
import math
from pathlib import Path

import pytest
import torch
import typer
from tiny_models import MASK, save_causal
from typer.testing import CliRunner

from dspy_diffusion_infill.cli import training_commands
from dspy_diffusion_infill.denoisers import ScoreRequest, load_denoiser
from dspy_diffusion_infill.denoisers.checkpoints.masked_diffusion import Settings
from dspy_diffusion_infill.errors import ContextTooLongError, DataError
from dspy_diffusion_infill.training.causal_base import load_causal_base
from dspy_diffusion_infill.training.probe import (
    ProbeRow,
    causal_probe,
    probe,
    read_probe_rows,
    tokenize_windows,
)

ROWS = [
    ProbeRow("Name the colour of grass.", 0, 8),
    ProbeRow("  Say it again, and once more.\n\nInput: a\nOutput: b  ", 6, 14),
    ProbeRow("Übersetze.", 1, 4),
]


@pytest.fixture(scope="module")
def denoiser_folder(tmp_path_factory) -> Path:
    """The tiny causal LM, untrained, as a masked diffusion LM."""
    folder = save_causal(tmp_path_factory.mktemp("denoiser"))
    Settings(mask_token=MASK, context_length=128).write(folder)
    return folder


@pytest.fixture(scope="module")
def denoiser(denoiser_folder):
    return load_denoiser(str(denoiser_folder), device="cpu", dtype="float32")


def by_hand(denoiser, kind: str) -> list[float]:
    """Every window token's negative log-likelihood, from one ``score`` request a token."""
    found = []
    for window in tokenize_windows(denoiser, ROWS):
        for k, place in enumerate(window.span):
            hidden = window.span[k:] if kind == "sequential" else window.span
            ids = [denoiser.mask_id if i in hidden else t for i, t in enumerate(window.input_ids)]
            targets = tuple(window.input_ids[i] for i in hidden)
            [scores] = denoiser.score([ScoreRequest(tuple(ids), targets)])
            found.append(-scores[hidden.index(place)])
    return found


@pytest.mark.parametrize("kind", ["sequential", "parallel"])
def test_figures_are_the_means_of_single_scores(denoiser, kind):
    expected, score = by_hand(denoiser, kind), getattr(probe(denoiser, ROWS), kind)
    assert score.num_tokens == len(expected)
    assert score.nll == pytest.approx(sum(expected) / len(expected), abs=1e-5)


def test_accuracy_counts_the_most_likely_tokens(denoiser):
    hits, windows = [], tokenize_windows(denoiser, ROWS)
    for window in windows:
        for k, place in enumerate(window.span):
            ids = torch.tensor([window.input_ids])
            ids[0, list(window.span[k:])] = denoiser.mask_id
            hits.append(int(denoiser.logits(ids)[0, place].argmax()) == window.input_ids[place])
    assert probe(denoiser, ROWS).sequential.accuracy == sum(hits) / len(hits)


def test_the_window_is_the_tokens_wholly_inside_the_span(denoiser):
    windows = tokenize_windows(denoiser, ROWS)
    spans = [denoiser.decode([w.input_ids[k] for k in w.span]) for w in windows]
    assert spans == [row.text[row.start : row.end] for row in ROWS]
    contents = [denoiser.decode([w.input_ids[k] for k in w.content]) for w in windows]
    assert contents == [row.text for row in ROWS]


def test_random_places_are_of_the_text_and_of_the_ratio(denoiser):
    result = probe(denoiser, ROWS)
    lengths = [len(window.content) for window in tokenize_windows(denoiser, ROWS)]
    for ratio, score in result.random.items():
        assert score.num_tokens == sum(max(1, math.floor(ratio * n)) for n in lengths)
    assert set(result.random) == {0.15, 0.5}


def test_equal_seeds_give_equal_figures(denoiser):
    assert probe(denoiser, ROWS, seed=1) == probe(denoiser, ROWS, seed=1)
    other = probe(denoiser, ROWS, seed=2)
    assert other.sequential == probe(denoiser, ROWS, seed=1).sequential
    assert other.random != probe(denoiser, ROWS, seed=1).random


def test_standard_error_takes_rows_as_units(denoiser):
    """The same row twice says nothing new: the error shrinks only by the row's count."""
    one, two = probe(denoiser, ROWS).sequential, probe(denoiser, ROWS * 2).sequential
    assert two.nll == pytest.approx(one.nll)
    n = len(ROWS)
    ratio = math.sqrt((2 * n - 1) / (n - 1))
    assert one.standard_error / two.standard_error == pytest.approx(ratio, rel=1e-3)


def test_causal_probe_is_teacher_forced(denoiser, denoiser_folder):
    model = load_causal_base_of(denoiser_folder)
    windows = tokenize_windows(denoiser, ROWS)
    expected = []
    for window in windows:
        for place in window.span:
            before = torch.tensor([window.input_ids[:place]])
            with torch.no_grad():
                row = model(input_ids=before).logits[0, -1].log_softmax(-1)
            expected.append(-float(row[window.input_ids[place]]))
    score = causal_probe(model, windows)
    assert score.num_tokens == len(expected)
    assert score.nll == pytest.approx(sum(expected) / len(expected), abs=1e-5)


def test_a_text_alone_has_the_same_window_behind_its_start(denoiser):
    in_turns = tokenize_windows(denoiser, ROWS)
    alone = tokenize_windows(denoiser, ROWS, start=MASK)
    for row, inside, bare in zip(ROWS, in_turns, alone, strict=True):
        assert bare.input_ids == denoiser.encode(MASK + row.text).input_ids
        true = [[w.input_ids[place] for place in w.span] for w in (inside, bare)]
        assert true[0] == true[1]


def test_with_nothing_before_a_text_its_first_token_is_left_out(denoiser, denoiser_folder):
    model = load_causal_base_of(denoiser_folder)
    texts = [ProbeRow("Name it.", 0, 4), ProbeRow("Name it.", 0, 1), ProbeRow("Name it.", 5, 7)]
    score = causal_probe(model, tokenize_windows(denoiser, texts, start=""))
    assert score.num_tokens == 3 + 0 + 2
    rest = [ProbeRow("Name it.", 1, 4), ProbeRow("Name it.", 5, 7)]
    expected = causal_probe(model, tokenize_windows(denoiser, rest, start=""))
    assert score.nll == pytest.approx(expected.nll, abs=1e-6)


def load_causal_base_of(folder: Path):
    adapter = folder / "adapter"
    adapter.mkdir(exist_ok=True)
    Settings(base="..", mask_token=MASK).write(adapter)
    return load_causal_base(str(adapter))


def test_a_base_that_is_not_named_is_an_error(denoiser_folder):
    with pytest.raises(ValueError, match="does not name the causal LM"):
        load_causal_base(str(denoiser_folder))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "abc", "start": 0}', 'got {"text": "abc", "start": 0}'),
        ('{"text": "abc", "start": 0.0, "end": true}', '"end": whole number}, got'),
        ('{"start": 0, "end": 1}', 'got {"start": 0, "end": 1}'),
        ('{"text": ["a", "b"], "start": 0, "end": 1}', 'a probe row must be {"text": text'),
        (r'{"text": "a\ud800", "start": 0, "end": 1}', "half of a surrogate pair"),
        ('{"text": "abc", "start": 2, "end": 2}', "0 <= start < end <= 3, got start=2, end=2"),
        ('{"text": "abc", "start": 0, "end": 9}', "got start=0, end=9"),
        ("[]", "must be a JSON object, got list"),
        ("{", "no JSON"),
    ],
)
def test_bad_rows_name_file_and_line(tmp_path, line, message):
    path = tmp_path / "probe.jsonl"
    path.write_text('{"text": "abc", "start": 0, "end": 1}\n' + line + "\n")
    with pytest.raises(DataError) as caught:
        read_probe_rows(path)
    assert str(caught.value).startswith(f"{path}:2: ")
    assert message in str(caught.value)


def test_windows_that_cannot_be_scored_are_errors(denoiser):
    with pytest.raises(ContextTooLongError, match="context_length=128"):
        probe(denoiser, [ProbeRow("a" * 200, 0, 1)])
    with pytest.raises(DataError, match="no token"):
        probe(denoiser, [ProbeRow("  a", 0, 1), ProbeRow("", 0, 0)])


def test_the_command_writes_the_figures(tmp_path, denoiser_folder):
    data, out = tmp_path / "probe.jsonl", tmp_path / "new" / "folder" / "out.json"
    lines = [json.dumps({"text": r.text, "start": r.start, "end": r.end}) for r in ROWS]
    data.write_text("\n".join(lines))
    adapter = denoiser_folder / "adapter"
    load_causal_base_of(denoiser_folder)
    app = typer.Typer()
    training_commands.register(app)
    arguments = ["probe", str(adapter), "--data", str(data), "--json", str(out), "--causal"]
    arguments += ["--causal-after", MASK]
    done = CliRunner().invoke(app, [*arguments, "--device", "cpu", "--rows", "2"])
    assert done.exit_code == 0, done.output
    figures = json.loads(out.read_text())
    assert figures["num_tokens"] == 16
    assert figures["num_rows"] == 2
    needed = {"nll_sequential", "nll_parallel", "accuracy_sequential", "nll_causal"}
    needed |= {"nll_causal_text", "accuracy_causal_text"}
    assert needed <= set(figures)
    assert "nll_sequential" in done.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--causal",), "does not name the causal LM"),
        (("--json", "."), "is a directory"),
        (("--json", "probe.jsonl/figures.json"), "no folder can be made for it"),
    ],
)
def test_what_the_command_cannot_do_is_said_before_any_work(
    tmp_path, denoiser_folder, monkeypatch, words, message
):
    monkeypatch.chdir(tmp_path)
    Path("probe.jsonl").write_text(json.dumps({"text": "abc", "start": 0, "end": 1}))
    monkeypatch.setattr("dspy_diffusion_infill.training.probe.probe", None)  # not called
    app = typer.Typer()
    training_commands.register(app)
    done = CliRunner().invoke(app, ["probe", str(denoiser_folder), "--data", "probe.jsonl", *words])
    assert done.exit_code != 0
    assert message in f"{done.output}{done.exception}"
