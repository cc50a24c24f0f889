"""A run is the same whether it is killed, compiled, or shared among processes."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import forked
import pytest
import torch
from accelerate.commands import launch as accelerate_launch
from accelerate.utils.launch import prepare_multi_gpu_env
from accelerate.utils.other import get_free_port
from safetensors import safe_open
from tiny_models import save_causal
from tiny_recipe import losses, save_probe, save_rows, silent, write_recipe

from dspy_diffusion_infill.denoisers import load_denoiser
from dspy_diffusion_infill.errors import DataError
from dspy_diffusion_infill.training.recipe import load_recipe
from dspy_diffusion_infill.training.run import train

REPOSITORY = Path(__file__).resolve().parents[1]
SECONDS_A_RANK = 600  # an idle core needs five


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    return save_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl")


@pytest.fixture(scope="module")
def causal(tmp_path_factory) -> Path:
    return save_causal(tmp_path_factory.mktemp("causal"))


def kill_after_a_checkpoint(recipe: Path, overrides: list[str], output: Path) -> None:
    """Runs the recipe in a process of its own, killed as soon as a checkpoint is whole."""
    words = ["-m", "dspy_diffusion_infill.training", str(recipe)]
    words += ["--output", str(output), *(f"--set={override}" for override in overrides)]
    run = forked.start(words, recipe.parent / "printed", cwd=REPOSITORY)
    while not any(output.glob("stages/0-*/checkpoint-*/trainer_state.json")):
        assert run.poll() is None, run.stderr
        time.sleep(0.001)
    run.process.kill()
    assert run.wait() == -signal.SIGKILL


def whole_killed_and_resumed(path: Path, overrides: list[str], folder: Path) -> list[list[float]]:
    """The losses of a run, and of one that was killed in its first stage and resumed."""
    recipe = load_recipe(path, overrides)
    whole, killed = folder / "whole", folder / "killed"
    train(recipe, output=whole, show=silent)
    kill_after_a_checkpoint(path, overrides, killed)
    assert not (killed / "README.md").exists()
    assert len(losses(killed)) < len(losses(whole))
    train(recipe, output=killed, resume=True, show=silent)
    assert [entry[:2] for entry in losses(killed)] == [entry[:2] for entry in losses(whole)]
    return [[entry[2] for entry in losses(output)] for output in (whole, killed)]


@pytest.mark.parametrize("form", ["lora", "full"])
def test_a_killed_run_resumes_to_the_same_losses(tmp_path, causal, rows, form):
    path = write_recipe(tmp_path, causal, rows, model={"form": form})
    whole, killed = whole_killed_and_resumed(path, ["stages.0.steps=40"], tmp_path)
    assert killed == pytest.approx(whole, abs=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="no C++ compiler")
@pytest.mark.filterwarnings("default")  # the compiler warns of torch's own code
def test_a_compiled_run_has_the_same_losses_and_resumes_to_them(tmp_path, causal, rows):
    options = {"form": "full", "compile": True}
    path = write_recipe(tmp_path, causal, rows, model=options)
    overrides = ["stages.0.steps=40"]
    whole, killed = whole_killed_and_resumed(path, overrides, tmp_path)
    assert killed == pytest.approx(whole, abs=1e-6)
    plain = load_recipe(path, [*overrides, "model.compile=false"])
    train(plain, output=tmp_path / "plain", show=silent)
    # Fused kernels sum in another order; 44 steps of Adam carry float32's 1e-7 further each.
    assert whole == pytest.approx([entry[2] for entry in losses(tmp_path / "plain")], abs=1e-3)


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


def test_a_resumed_run_may_measure_something_else(tmp_path, causal, rows):
    path, out = write_recipe(tmp_path, causal, rows), tmp_path / "out"
    wanting = load_recipe(path, [f"evaluation.probe={tmp_path / 'no.jsonl'}"])
    with pytest.raises(DataError, match=r"no\.jsonl does not exist"):
        train(wanting, output=out, show=silent)
    assert not (out / "stages").exists(), "said before the first step"
    train(load_recipe(path), output=out, show=silent)
    (out / "stages" / "1-ro" / "checkpoint-4" / "trainer_state.json").unlink()
    probe = save_probe(tmp_path / "probe.jsonl")
    measuring = load_recipe(path, [f"evaluation.probe={probe}"])
    assert "probe_nll_sequential" in train(measuring, output=out, resume=True, show=silent).figures
    assert load_recipe(out / "recipe.yaml") == measuring


def test_a_run_is_not_resumed_on_other_rows(tmp_path, causal):
    rows, out = save_rows(tmp_path / "own.jsonl"), tmp_path / "out"
    recipe = load_recipe(write_recipe(tmp_path, causal, rows), ["stages.0.steps=1"])
    train(recipe, output=out, show=silent)
    before = rows.read_text()
    rows.write_text(before.replace("green", "grey"))
    with pytest.raises(ValueError, match=r"own\.jsonl holds other rows than when the run in .*out"):
        train(recipe, output=out, resume=True, show=silent)
    rows.write_text(before)
    train(recipe, output=out, resume=True, show=silent)


def test_a_run_that_saved_nothing_does_not_hold_its_folder(tmp_path, causal, rows):
    path, out = write_recipe(tmp_path, causal, rows), tmp_path / "out"
    nowhere = load_recipe(path, [f"model.base={tmp_path / 'nowhere'}"])
    with pytest.raises(ValueError, match="nowhere"):
        train(nowhere, output=out, show=silent)
    assert (out / "recipe.yaml").is_file()
    train(load_recipe(path, ["stages.0.steps=1"]), output=out, show=silent)
    shutil.rmtree(out / "stages")  # to save space: the model that is there is still not lost
    with pytest.raises(ValueError, match="holds a run already"):
        train(load_recipe(path, ["stages.0.steps=1"]), output=out, show=silent)


def test_a_run_of_an_older_version_goes_on_though_its_recipe_lacks_a_newer_key(
    tmp_path, causal, rows
):
    recipe = load_recipe(write_recipe(tmp_path, causal, rows), ["stages.0.steps=1"])
    train(recipe, output=tmp_path / "out", show=silent)
    written = tmp_path / "out" / "recipe.yaml"
    text = written.read_text()
    assert "  compile: false\n" in text
    written.write_text(text.replace("  compile: false\n", ""))
    train(recipe, output=tmp_path / "out", resume=True, show=silent)


def launch(*words: str) -> None:
    """``accelerate launch`` on CPUs (gloo), in two processes."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["--num_processes", "2", "--main_process_port", "0", *words]
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr


def ranks(number: int, words: list[str], folder: Path, **environment: str) -> list[str]:
    """What rank 0 of so many shows: processes with the variables that torchrun gives them."""
    rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(get_free_port())}
    sizes = {"WORLD_SIZE": str(number), "LOCAL_WORLD_SIZE": str(number)}
    environment |= {**rendezvous, **sizes, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    programs = [
        forked.start(
            words,
            folder / f"rank{rank}",
            cwd=REPOSITORY,
            **environment,
            RANK=str(rank),
            LOCAL_RANK=str(rank),
        )
        for rank in range(number)
    ]
    try:
        for program in programs:
            assert program.wait(SECONDS_A_RANK) == 0, program.stderr
    finally:  # one that failed leaves the others waiting
        for program in programs:
            program.process.kill()
    return programs[0].stdout.splitlines()


@pytest.mark.slow
def test_two_processes_give_the_gradients_of_one(tmp_path, causal, rows):
    """As the backward pass leaves them, before clipping and the optimizer's step."""
    recipe = write_recipe(tmp_path, causal, rows, model={"form": "full"})
    script = Path(__file__).with_name("gradients_of_a_step.py")
    gradients = {}
    for number in (1, 2):
        target = tmp_path / f"gradients{number}.safetensors"
        words = [str(script), str(recipe), str(tmp_path / f"out{number}"), str(target)]
        ranks(number, words, tmp_path / f"printed{number}")
        with safe_open(target, "pt") as file:
            gradients[number] = {name: file.get_tensor(name) for name in file.keys()}
    assert gradients[1].keys() == gradients[2].keys()
    for name, gradient in gradients[1].items():
        torch.testing.assert_close(gradients[2][name], gradient, rtol=0, atol=1e-5)
    assert max(float(g.abs().max()) for g in gradients[1].values()) > 1e-3


@pytest.mark.slow
def test_two_processes_run_the_recipe_as_one_does(tmp_path, causal, rows):
    path = write_recipe(tmp_path, causal, rows, model={"form": "full"})
    one, two = tmp_path / "one", tmp_path / "two"
    train(load_recipe(path), output=one, show=silent)
    launch("-m", "dspy_diffusion_infill.training", str(path), "--output", str(two))
    assert [entry[:2] for entry in losses(two)] == [entry[:2] for entry in losses(one)]
    # Float32 sums in another order, through 10 steps of Adam.
    assert [entry[2] for entry in losses(two)] == pytest.approx(
        [entry[2] for entry in losses(one)], abs=1e-3
    )
    ids = torch.arange(3, 40)[None]
    logits = [load_denoiser(str(folder), device="cpu").logits(ids) for folder in (one, two)]
    torch.testing.assert_close(logits[1], logits[0], rtol=0, atol=1e-2)


def sharded(folder: Path, *words: str) -> list[str]:
    """What a recipe shows that runs under the shipped FSDP2 config in two CPU processes."""
    config = REPOSITORY / "training" / "recipes" / "accelerate" / "fsdp2.yaml"
    parser = accelerate_launch.launch_command_parser()
    options, *_ = accelerate_launch._validate_launch_command(
        parser.parse_args(["--config_file", str(config), "x"])
    )
    script = Path(__file__).with_name("sharded_on_cpus.py")
    return ranks(2, [str(script), *words], folder, **prepare_multi_gpu_env(options))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["full", "lora"])
def test_the_fsdp_config_trains_measures_saves_and_resumes(tmp_path, rows, form):
    """On CPUs, where accelerate does not offer it: what is tested is our half of it."""
    base = REPOSITORY.parent / "shared" / "golden" / "llada_tiny"
    if not base.is_dir():
        pytest.skip("../shared/golden is not on this machine")
    probe = save_probe(tmp_path / "probe.jsonl")
    overrides = [f"model.base={base}", f"model.form={form}", f"data.sources=[{{path: {rows}}}]"]
    overrides += ["data.max_length=256", "optimizer.warmup_steps=0", "optimizer.accumulation=2"]
    overrides += ["stages.0.steps=2", "stages.1.steps=1", "logging_steps=1", "save_steps=1"]
    overrides += [f"evaluation={{probe: {probe}, held_out: {rows}, num_samples: 2}}"]
    words = ["llada-fs-ro", str(tmp_path / "out"), *overrides]
    shown = sharded(tmp_path / "printed", *words)
    assert sum(line.startswith("step ") for line in shown) == 2  # one process shows it
    whole = losses(tmp_path / "out")
    assert [entry[:2] for entry in whole] == [("0-fs", 1), ("0-fs", 2), ("1-ro", 1)]
    denoiser = load_denoiser(str(tmp_path / "out"), device="cpu")
    assert torch.isfinite(denoiser.logits(torch.arange(3, 40)[None])).all()
    # The same after a kill that left the first stage's last checkpoint in pieces.
    stages = tmp_path / "out" / "stages"
    (stages / "0-fs" / "checkpoint-2" / "trainer_state.json").unlink()
    shutil.rmtree(stages / "1-ro")
    shown = sharded(tmp_path / "resumed", *words, "--resume")
    assert any(line.startswith("fs 2/2") for line in shown)
    assert [entry[2] for entry in losses(tmp_path / "out")] == pytest.approx(
        [entry[2] for entry in whole], abs=1e-6
    )
    # And what one process computes: bfloat16 has 8 bits, and FSDP casts more to it.
    one = load_recipe("llada-fs-ro", overrides)
    train(one, output=tmp_path / "one", show=silent)
    assert [entry[2] for entry in losses(tmp_path / "one")] == pytest.approx(
        [entry[2] for entry in whole], rel=1e-2
    )
