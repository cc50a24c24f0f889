import json
from dataclasses import replace

import pytest
import torch
from test_hidden_windows import TASK, slot
from tiny_denoisers import MASK_ID, save_published, tiny_denoiser
from typer.testing import CliRunner

from dspy_diffusion_infill.cli.app import app
from dspy_diffusion_infill.denoisers.calibration import (
    SureFill,
    TrueFill,
    calibrate,
    compare_thresholds,
)
from dspy_diffusion_infill.denoisers.transformer import TransformerDenoiser
from dspy_diffusion_infill.infiller.hidden_windows import hidden_windows


@pytest.fixture(scope="module", params=["llada", "dream"])
def denoiser(request, tmp_path_factory) -> TransformerDenoiser:
    return tiny_denoiser(tmp_path_factory.mktemp("model"), request.param)


def test_each_cache_is_compared_at_all_masks_of_all_passes(denoiser):
    requests = hidden_windows(denoiser, [slot("Name the day.")], num_windows=1, seed=0)
    window, around, context = calibrate(denoiser, requests)
    assert [one.cache for one in (window, around, context)] == ["window", "around", "context"]
    for one in (window, around, context):
        assert (one.num_windows, one.num_tokens) == (1, 8 * 9 // 2)
        assert 0 <= one.agreement <= 1 and one.kl > 0
        assert one.nll != one.nll_exact == window.nll_exact


def test_caches_are_compared_with_each_drift_too(denoiser):
    requests = hidden_windows(denoiser, [slot("Name the day.")], num_windows=1, seed=0)
    found = calibrate(denoiser, requests, [1e6, 0])[3:]
    shared = [(cache, limit) for cache in ("around", "context") for limit in (1e6, 0)]
    assert [(one.cache, one.max_drift) for one in found] == shared
    for never, always in (found[:2], found[2:]):
        assert never.refreshes == 0 < always.refreshes <= 8
        assert always.agreement == 1 and always.nll == pytest.approx(always.nll_exact, abs=1e-4)


def test_a_true_fill_learns_the_exact_likelihood_of_the_true_tokens(denoiser):
    ids, truth = torch.tensor([7, MASK_ID, MASK_ID, 9]), [20, 30]
    fill = TrueFill(ids, MASK_ID, truth, None)
    denoiser.run([fill], "off", [None])
    first = denoiser.logits(ids[None])[0].log_softmax(-1)
    second = denoiser.logits(torch.tensor([[7, 20, MASK_ID, 9]]))[0].log_softmax(-1)
    assert fill.nll() == pytest.approx([-float(first[1, 20]), -float(second[2, 30])], abs=1e-4)
    assert fill.ids.tolist() == [7, 20, 30, 9]


def test_a_threshold_counts_where_the_own_blocks_are_of_one_token(denoiser):
    checkpoint = replace(denoiser.checkpoint, block_length=1)
    by_one = TransformerDenoiser(checkpoint, name="by one")
    requests = hidden_windows(by_one, [slot("Name the day.")], num_windows=1, seed=0)
    alone, always = compare_thresholds(by_one, requests, [None, 1e-9])
    assert (alone.passes, always.passes) == (8, 1)
    left_to_right = calibrate(by_one, requests)[0].nll_exact
    assert alone.nll == pytest.approx(left_to_right, abs=1e-4)


@pytest.mark.parametrize("threshold", [None, 1e-9])
def test_a_sure_fill_takes_the_surest_true_token_first_or_all_at_once(denoiser, threshold):
    ids, truth = torch.tensor([7, MASK_ID, 9, MASK_ID]), [20, 30]
    fill = SureFill(ids, MASK_ID, truth, block=None, threshold=threshold)
    denoiser.run([fill], "off", [None])
    first = denoiser.logits(ids[None])[0].log_softmax(-1)[[1, 3]]
    assert fill.ids.tolist() == [7, 20, 9, 30] and fill.done and len(fill.hits) == 2
    at_once = [-float(first[0, 20]), -float(first[1, 30])]
    if threshold is not None:
        assert fill.nll == pytest.approx(at_once, abs=1e-4)
    else:
        assert fill.nll[0] == pytest.approx(at_once[int(first.max(-1).values.argmax())], abs=1e-4)


def test_a_sure_fill_stays_in_its_block():
    fill = SureFill(torch.tensor([MASK_ID] * 3), MASK_ID, [1, 2, 3], block=2, threshold=None)
    for left in ([0, 1], [0], [2]):
        assert fill.candidates().tolist() == left
        fill.advance(torch.arange(len(left)).float()[:, None] * torch.eye(5)[:1])
    assert fill.done and fill.ids.tolist() == [1, 2, 3]


def test_a_block_of_one_compares_the_next_token_alone():
    fill = TrueFill(torch.tensor([MASK_ID] * 3), MASK_ID, [1, 2, 3], 1)
    assert fill.candidates().tolist() == [0]
    fill.advance(torch.zeros(1, 5))
    assert fill.candidates().tolist() == [1]


def test_nothing_to_compare_is_refused(denoiser):
    with pytest.raises(ValueError, match="a request with a masked token, got none"):
        calibrate(denoiser, [])


def test_a_threshold_that_is_never_reached_fills_as_one_token_at_a_time(denoiser):
    requests = hidden_windows(denoiser, [slot("Name the day.")], num_windows=1, seed=0)
    alone, never, always = compare_thresholds(denoiser, requests, [None, 1.0, 1e-9])
    assert (alone.nll, alone.accuracy) == (never.nll, never.accuracy)
    assert alone.agreement == 1 and alone.passes == never.passes
    assert always.nll != never.nll and 0 <= always.accuracy <= 1
    assert never.agreement == 1 and never.passes == never.most_passes >= 7  # Dream fills two once
    assert always.passes == 1 and always.most_passes == never.passes
    with pytest.raises(ValueError, match="a request with a masked token, got none"):
        compare_thresholds(denoiser, [], [0.5])


def test_the_command_prints_a_table_and_writes_json(tmp_path):
    folder, task, out = save_published(tmp_path / "m", "llada"), tmp_path / "t.json", "out.json"
    task.write_text(json.dumps(TASK))
    command = ["calibrate", str(folder), "--task", str(task), "--windows", "1", "--device", "cpu"]
    result = CliRunner().invoke(app, [*command, "--json", str(tmp_path / out)])
    assert result.exit_code == 0, result.output
    figures = json.loads((tmp_path / out).read_text())
    assert [one["cache"] for one in figures["caches"]] == ["window", "around", "context"]
    caches, thresholds = (part.splitlines()[1:] for part in result.output.split("\n\n"))
    for one, line in zip(figures["caches"], caches, strict=True):
        assert line.split()[:2] == [one["cache"], f"{one['agreement']:.1%}"]
    for one, line in zip(figures["thresholds"], thresholds, strict=True):
        assert line.split()[:2] == [str(one["threshold"]), f"{one['agreement']:.1%}"]
