import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from tiny_models import MASK, save_causal

from dspy_diffusion_infill.denoisers import load_denoiser
from dspy_diffusion_infill.errors import DataError
from dspy_diffusion_infill.training.recipe import load_recipe
from dspy_diffusion_infill.training.run import train

REPOSITORY = Path(__file__).resolve().parents[1]
GOLDEN = REPOSITORY.parent / "shared" / "golden"
COLOURS = {"grass": "green", "snow": "white", "coal": "black", "the sky": "blue"}


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    records = [{"prompt": f"Name the colour of {k}.", "response": v} for k, v in COLOURS.items()]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture(scope="module")
def probe_rows(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("probe") / "probe.jsonl"
    text = "Name the colour of tar."
    path.write_text(json.dumps({"text": text, "start": 5, "end": 15}) + "\n")
    return path


@pytest.fixture(scope="module")
def causal(tmp_path_factory) -> Path:
    return save_causal(tmp_path_factory.mktemp("causal"))


def write_recipe(folder: Path, causal: Path, rows: Path, **changes) -> Path:
    """An adapt recipe of two stages on the tiny causal LM."""
    tree = {
        "name": "tiny",
        "model": {
            "base": str(causal),
            "form": "lora",
            "lora": {"rank": 2, "alpha": 4, "dropout": 0.1},
            "bf16": False,
            "adapt": {"mask_token": MASK},
        },
        "data": {"sources": [{"path": str(rows)}], "max_length": 128, "bucket": 2},
        "optimizer": {
            "learning_rate": 0.01,
            "warmup_steps": 2,
            "batch_size": 2,
            "accumulation": 2,
        },
        "stages": [
            {"name": "fs", "steps": 6, "masking": {"full_sequence": 0.5, "window": 0.5}},
            {"name": "ro", "steps": 4, "masking": {"response_only": 1.0}},
        ],
        "logging_steps": 1,
        "save_steps": 2,
    }
    for key, value in changes.items():
        tree[key] = {**tree[key], **value} if isinstance(tree[key], dict) else value
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def losses(output: Path) -> list[tuple[str, int, float]]:
    found = []
    for log in sorted(output.glob("stages/*/log.jsonl")):
        entries = map(json.loads, log.read_text().splitlines())
        found += [(log.parent.name, e["step"], e["loss"]) for e in entries if "loss" in e]
    return found


def silent(_line: str) -> None:
    pass


@pytest.mark.parametrize("form", ["full", "lora"])
@pytest.mark.parametrize("model", ["llada", "dream"])
def test_paper_recipes_run_end_to_end_on_the_golden_checkpoints(tmp_path, rows, model, form):
    base = GOLDEN / f"{model}_tiny"
    if not base.is_dir():
        pytest.skip("../shared/golden is not on this machine")
    recipe = load_recipe(
        f"{model}-fs-ro",
        [
            f"model.base={base}",
            f"model.form={form}",
            f"data.sources=[{{path: {rows}}}]",
            "data.max_length=256",
            "optimizer.warmup_steps=0",
            "optimizer.accumulation=2",
            "stages.0.steps=1",
            "stages.1.steps=1",
        ],
    )
    output = tmp_path / "output"
    train(recipe, output=output, show=silent)
    before, after = (load_denoiser(str(folder), device="cpu") for folder in (base, output))
    ids = torch.arange(3, 40)[None]
    difference = (before.logits(ids) - after.logits(ids)).abs().max()
    # Adam's first steps move each weight by the learning rate, here 1e-5 or 2e-6; the second
    # low-rank factor of LoRA begins at 0, so that little moves at first.
    assert 0 < float(difference) < 0.1
    if form == "full":
        names = [set(safe_open(d / "model.safetensors", "pt").keys()) for d in (base, output)]
        assert names[0] == names[1]
    assert after.mask_id == before.mask_id
    assert f"name: {model}-fs-ro" in (output / "README.md").read_text()


def test_adapted_lora_and_full_outputs_open_as_the_model_that_was_trained(
    tmp_path, causal, rows, probe_rows
):
    ids = torch.arange(3, 40)[None]
    for form in ("lora", "full"):
        evaluation = {"probe": str(probe_rows), "held_out": str(rows), "num_samples": 2}
        path = write_recipe(tmp_path, causal, rows, model={"form": form})
        recipe = load_recipe(path, [f"evaluation={json.dumps(evaluation)}"])
        trained = train(recipe, output=tmp_path / form, show=silent)
        denoiser = load_denoiser(str(tmp_path / form), device="cpu")
        assert denoiser.tokenizer.convert_ids_to_tokens(denoiser.mask_id) == MASK
        assert denoiser.context_length == 128
        assert torch.isfinite(denoiser.logits(ids)).all()
        assert trained.figures["probe_nll_sequential"] > 0
        assert trained.figures["nelbo_standard_error"] >= 0
        card = (tmp_path / form / "README.md").read_text()
        assert f"| probe_nll_sequential | {trained.figures['probe_nll_sequential']:.4g} |" in card
        assert "rows.jsonl: 4 of 4 rows" in card
        assert "git revision" in card
        assert "Seed 0" in card


def test_it_learns(tmp_path, causal, rows):
    path = write_recipe(tmp_path, causal, rows, model={"form": "full"})
    recipe = load_recipe(
        path, ["stages.0.steps=40", "stages.0.masking={response_only: 1.0}", "save_steps=40"]
    )
    train(recipe, output=tmp_path / "out", show=silent)
    fs = [loss for stage, _, loss in losses(tmp_path / "out") if stage == "0-fs"]
    assert sum(fs[-5:]) < 0.6 * sum(fs[:5])


def test_a_missing_mask_token_is_added_to_a_copy_of_the_base(tmp_path, causal, rows):
    path = write_recipe(tmp_path, causal, rows)
    recipe = load_recipe(path, ["model.adapt.mask_token=<|new|>", "stages.0.steps=2"])
    train(recipe, output=tmp_path / "out", show=silent)
    denoiser = load_denoiser(str(tmp_path / "out"), device="cpu")
    assert denoiser.encode("<|new|>").input_ids == (denoiser.mask_id,)
    assert denoiser.model.config.vocab_size == denoiser.mask_id + 1


def kill_after_a_checkpoint(
    recipe: Path, overrides: list[str], output: Path, checkpoint: str
) -> None:
    """Runs the recipe in a process of its own, killed as soon as the checkpoint is whole."""
    command = [sys.executable, "-m", "dspy_diffusion_infill.training", str(recipe)]
    command += ["--output", str(output), *(f"--set={override}" for override in overrides)]
    run = subprocess.Popen(
        command,
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    state = output / "stages" / checkpoint / "trainer_state.json"
    while not state.is_file():
        assert run.poll() is None, run.communicate()[1].decode()
        time.sleep(0.001)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    run.communicate()


@pytest.mark.parametrize("form", ["lora", "full"])
def test_a_killed_run_resumes_to_the_same_losses(tmp_path, causal, rows, form):
    path = write_recipe(tmp_path, causal, rows, model={"form": form})
    overrides = ["stages.0.steps=40"]
    recipe = load_recipe(path, overrides)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(recipe, output=whole, show=silent)
    kill_after_a_checkpoint(path, overrides, killed, "0-fs/checkpoint-4")
    assert not (killed / "README.md").exists()
    assert len(losses(killed)) < len(losses(whole))
    train(recipe, output=killed, resume=True, show=silent)
    assert [entry[:2] for entry in losses(killed)] == [entry[:2] for entry in losses(whole)]
    assert [entry[2] for entry in losses(killed)] == pytest.approx(
        [entry[2] for entry in losses(whole)], abs=1e-6
    )


def test_a_run_killed_between_its_stages_resumes_to_the_same_losses(tmp_path, causal, rows):
    recipe = load_recipe(write_recipe(tmp_path, causal, rows))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(recipe, output=whole, show=silent)

    class KilledError(Exception):
        pass

    def kill(line: str) -> None:
        if line.startswith("ro 3/"):
            raise KilledError

    with pytest.raises(KilledError):
        train(recipe, output=killed, show=kill)
    train(recipe, output=killed, resume=True, show=silent)
    assert losses(killed) == losses(whole)


def test_a_half_written_checkpoint_is_passed_over(tmp_path, causal, rows):
    recipe = load_recipe(write_recipe(tmp_path, causal, rows))
    train(recipe, output=tmp_path / "whole", show=silent)
    train(recipe, output=tmp_path / "torn", show=silent)
    before = losses(tmp_path / "torn")
    (tmp_path / "torn" / "stages" / "1-ro" / "checkpoint-4" / "trainer_state.json").unlink()
    train(recipe, output=tmp_path / "torn", resume=True, show=silent)
    assert losses(tmp_path / "torn") == before == losses(tmp_path / "whole")


def test_a_folder_with_a_run_is_not_written_over(tmp_path, causal, rows):
    recipe = load_recipe(write_recipe(tmp_path, causal, rows), ["stages.0.steps=1"])
    train(recipe, output=tmp_path / "out", show=silent)
    with pytest.raises(ValueError, match="--resume"):
        train(recipe, output=tmp_path / "out", show=silent)
    other = load_recipe(tmp_path / "tiny.yaml", ["stages.0.steps=2"])
    with pytest.raises(ValueError, match="another recipe: it has 'steps: 1', not 'steps: 2'"):
        train(other, output=tmp_path / "out", resume=True, show=silent)


def test_bad_data_stops_the_run_before_any_model_is_loaded(tmp_path, rows):
    (tmp_path / "bad.jsonl").write_text('{"prompt": "Say a."}\n')
    recipe = load_recipe(write_recipe(tmp_path, tmp_path / "no such model", tmp_path / "bad.jsonl"))
    with pytest.raises(DataError, match=r"bad\.jsonl:1: the field 'response' is missing"):
        train(recipe, output=tmp_path / "out", show=silent)


def test_the_recipe_of_the_embedded_denoiser_runs(tmp_path, causal, rows):
    tasks = tmp_path / "tasks.jsonl"
    examples = [[f"Input: {k}\nOutput:", v] for k, v in COLOURS.items()]
    tasks.write_text(json.dumps({"instructions": "Name the colour.", "examples": examples}) + "\n")
    text = tmp_path / "text.jsonl"
    grouped = [
        {"prompt": f"Name the colour.\n\nInput: {k}\nOutput:", "response": v}
        for k, v in COLOURS.items()
    ]
    lone = {"prompt": "You are a pirate, and speak as one.", "response": ""}
    text.write_text("".join(json.dumps(record) + "\n" for record in [*grouped, lone]))
    overrides = [f"data.sources.{k}.path={text}" for k in range(3)]
    overrides += [f"data.sources.{k}.path={tasks}" for k in (3, 4)]
    overrides += [f"data.sources.5.path={rows}", f"model.base={causal}", "data.max_length=512"]
    overrides += [f"model.adapt.mask_token={MASK}", "optimizer.batch_size=2", "logging_steps=1"]
    overrides += ["stages.0.optimizer.batch_size=2", "stages.0.steps=1", "stages.1.steps=1"]
    recipe = load_recipe("smollm2-adapt-fs", overrides)
    train(recipe, output=tmp_path / "out", show=silent)
    denoiser = load_denoiser(str(tmp_path / "out"), device="cpu")
    assert denoiser.context_length == 2048
    assert (tmp_path / "out" / "adapter_model.safetensors").stat().st_size < 200_000


@pytest.mark.slow
def test_two_processes_give_the_gradients_of_one(tmp_path, causal, rows):
    """The gradient is read off as the step of plain descent: weights before less weights after."""
    recipe = write_recipe(tmp_path, causal, rows, model={"form": "full"})
    script = Path(__file__).with_name("gradients_of_a_step.py")
    gradients = {}
    for num_processes in (1, 2):
        target = tmp_path / f"gradients{num_processes}.safetensors"
        command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu"]
        command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        command += ["--num_processes", str(num_processes), "--main_process_port", "0"]
        command += [str(script), str(recipe), str(tmp_path / f"out{num_processes}"), str(target)]
        done = subprocess.run(
            command,
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr
        with safe_open(target, "pt") as file:
            gradients[num_processes] = {name: file.get_tensor(name) for name in file.keys()}
    assert gradients[1].keys() == gradients[2].keys()
    for name, gradient in gradients[1].items():
        torch.testing.assert_close(gradients[2][name], gradient, rtol=0, atol=1e-5)
    assert max(float(g.abs().max()) for g in gradients[1].values()) > 1e-3
