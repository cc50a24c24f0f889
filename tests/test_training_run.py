import json
import re
import shutil
import sys
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_models import MASK, save_causal
from tiny_recipe import COLOURS, losses, save_probe, save_rows, silent, write_recipe
from transformers import AutoTokenizer, TrainerCallback
from transformers.integrations import integration_utils
from typer.testing import CliRunner

from dspy_diffusion_infill.cli.app import app, main
from dspy_diffusion_infill.denoisers import load_denoiser
from dspy_diffusion_infill.errors import DataError, DenoiserError, MissingMaskTokenError
from dspy_diffusion_infill.training.__main__ import main as run_module
from dspy_diffusion_infill.training.recipe import load_recipe
from dspy_diffusion_infill.training.run import train

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden"


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    return save_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl")


@pytest.fixture(scope="module")
def probe_rows(tmp_path_factory) -> Path:
    return save_probe(tmp_path_factory.mktemp("probe") / "probe.jsonl")


@pytest.fixture(scope="module")
def causal(tmp_path_factory) -> Path:
    return save_causal(tmp_path_factory.mktemp("causal"))


PAPER = [f"{model}-{kind}" for model in ("llada", "dream") for kind in ("fs", "ro", "fs-ro")]
ON_CPUS = [f"{name}{form}" for name in PAPER for form in ("", "-lora")]


@pytest.mark.parametrize("name", ON_CPUS)
def test_paper_recipes_run_end_to_end_on_the_golden_checkpoints(tmp_path, rows, name):
    model, form = name.split("-")[0], "lora" if name.endswith("-lora") else "full"
    base = GOLDEN / f"{model}_tiny"
    if not base.is_dir():
        pytest.skip("../shared/golden is not on this machine")
    overrides = [f"model.base={base}", f"data.sources=[{{path: {rows}}}]", "logging_steps=1"]
    overrides += ["data.max_length=256", "optimizer.warmup_steps=0", "optimizer.accumulation=2"]
    overrides += [f"stages.{k}.steps=1" for k in range(len(load_recipe(name).stages))]
    overrides += [f"evaluation={{held_out: {rows}, num_samples: 2}}"]
    recipe = load_recipe(name, overrides)
    assert recipe.model.form == form
    assert recipe.model.gradient_checkpointing and recipe.model.bf16
    output = tmp_path / "output"
    train(recipe, output=output, show=silent)
    assert [step for _, step, _ in losses(output)] == [1] * len(recipe.stages)
    before, after = (load_denoiser(str(folder), device="cpu") for folder in (base, output))
    ids = torch.arange(3, 40)[None]
    difference = (before.logits(ids) - after.logits(ids)).abs().max()
    # Adam's first steps move each weight by the learning rate, 1e-5 or 2e-6 and 1e-4 for LoRA,
    # whose second factor begins at 0, so that little moves at first.
    assert 0 < float(difference) < 0.1
    if form == "full":
        names = [set(safe_open(d / "model.safetensors", "pt").keys()) for d in (base, output)]
        assert names[0] == names[1]
    assert after.mask_id == before.mask_id
    card = (output / "README.md").read_text()
    assert f"name: {name}" in card
    assert "| nelbo |" in card


@pytest.mark.parametrize("name", PAPER)
def test_lora_over_4_bit_weights_needs_a_gpu_and_says_so(tmp_path, rows, name):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    overrides = ["model.base=nothing", f"data.sources=[{{path: {rows}}}]"]
    recipe = load_recipe(f"{name}-qlora", overrides)
    with pytest.raises(DenoiserError, match="form=qlora needs a GPU and bitsandbytes"):
        train(recipe, output=tmp_path / "out", show=silent)


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
        assert f"Base: `{causal}`" in card
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


def test_a_missing_mask_token_is_added_to_a_copy_of_the_base_and_trained(tmp_path, causal, rows):
    path = write_recipe(tmp_path, causal, rows, model={"form": "full"})
    recipe = load_recipe(path, ["model.adapt.mask_token=<|new|>", "stages.0.steps=2"])
    train(recipe, output=tmp_path / "out", show=silent)
    denoiser = load_denoiser(str(tmp_path / "out"), device="cpu")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "base")
    assert tokenizer.convert_tokens_to_ids("<|new|>") == denoiser.mask_id
    assert denoiser.mask_id not in denoiser.encode("<|new|>").input_ids  # a text is no mask
    assert denoiser.model.config.vocab_size == denoiser.mask_id + 1
    name = "model.embed_tokens.weight"
    with safe_open(tmp_path / "out" / "base" / "model.safetensors", "pt") as file:
        added = file.get_tensor(name)[denoiser.mask_id]
    assert not torch.equal(denoiser.model.get_parameter(name)[denoiser.mask_id], added)
    # A kill while the copy is written leaves nothing that is taken for it.
    shutil.copytree(tmp_path / "out" / "base", tmp_path / "killed" / "base.unfinished")
    (tmp_path / "killed" / "base.unfinished" / "model.safetensors").write_bytes(b"torn")
    train(recipe, output=tmp_path / "killed", resume=True, show=silent)
    assert losses(tmp_path / "killed") == losses(tmp_path / "out")
    assert not (tmp_path / "killed" / "base.unfinished").exists()


def test_an_adapter_is_not_trained_with_a_mask_token_that_it_cannot_train(tmp_path, causal, rows):
    recipe = load_recipe(write_recipe(tmp_path, causal, rows), ["model.adapt.mask_token=<|new|>"])
    with pytest.raises(
        MissingMaskTokenError, match=r"has no token '<\|new\|>', and with model\.form"
    ):
        train(recipe, output=tmp_path / "out", show=silent)
    assert not (tmp_path / "out" / "base").exists()


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
    overrides += ["model.compile=false"]  # test_training_resume compiles
    recipe = load_recipe("smollm2-adapt-fs", overrides)
    train(recipe, output=tmp_path / "out", show=silent)
    denoiser = load_denoiser(str(tmp_path / "out"), device="cpu")
    assert denoiser.context_length == 2048
    assert (tmp_path / "out" / "adapter_model.safetensors").stat().st_size < 200_000

    del overrides[overrides.index("stages.1.steps=1")]
    overrides += [f"model.adapter={tmp_path / 'out'}", "model.lora.dropout=0.1"]
    overrides += ["optimizer.warmup_steps=0"]
    train(load_recipe("smollm2-adapt-fs-more", overrides), output=tmp_path / "on", show=silent)
    config = json.loads((tmp_path / "on" / "adapter_config.json").read_text())
    assert config["lora_dropout"] == 0.1  # the recipe's own, not the first adapter's
    first, second = (load_file(tmp_path / x / "adapter_model.safetensors") for x in ("out", "on"))
    moved = [float((first[name] - second[name]).abs().max()) for name in first]
    assert 0 < max(moved) < 0.01

    other_rank = load_recipe("smollm2-adapt-fs-more", [*overrides, "model.lora.rank=8"])
    with pytest.raises(ValueError, match=r"out' has rank 32, and model\.lora\.rank=8: .* set"):
        train(other_rank, output=tmp_path / "other", show=silent)
    fewer = load_recipe("smollm2-adapt-fs-more", [*overrides, "model.lora.target_modules=[q_proj]"])
    with pytest.raises(
        ValueError, match=r"is of the layers down_proj, .* recipe adapts q_proj: set"
    ):
        train(fewer, output=tmp_path / "fewer", show=silent)
    overrides[-3] = f"model.adapter={tmp_path / 'nowhere'}"
    with pytest.raises(ValueError, match=r"nowhere' has no adapter_config\.json"):
        train(load_recipe("smollm2-adapt-fs-more", overrides), output=tmp_path / "no", show=silent)


SMALL = ["optimizer.batch_size=2", "optimizer.warmup_steps=0", "logging_steps=1"]
SMALL += ["model.compile=false", "data.max_length=256"]  # test_training_resume compiles


@pytest.fixture(scope="module")
def adapted(tmp_path_factory, causal, rows) -> dict[str, Path]:
    """What the recipe smollm2-adapt makes of the tiny causal LM, in both forms."""
    folder, source = tmp_path_factory.mktemp("adapted"), f"data.sources=[{{path: {rows}}}]"
    base = [f"model.base={causal}", f"model.adapt.mask_token={MASK}", source, "stages.0.steps=1"]
    for form in ("lora", "full"):
        recipe = load_recipe("smollm2-adapt", [*base, *SMALL, f"model.form={form}"])
        train(recipe, output=folder / form, show=silent)
    return {form: folder / form for form in ("lora", "full")}


@pytest.mark.parametrize("name", ["smollm2-fs", "smollm2-ro", "smollm2-fs-ro"])
def test_the_recipes_of_an_adapted_smollm2_go_on_from_it(tmp_path, causal, rows, adapted, name):
    stages = [f"stages.{k}.steps=1" for k in range(len(load_recipe(name).stages))]
    overrides = [*SMALL, *stages, f"data.sources=[{{path: {rows}}}]"]
    forms = {
        "lora": [f"model.base={causal}", f"model.adapt.mask_token={MASK}"],
        # As the recipe's comment says it.
        "full": ["model.form=full", "model.adapt=null"],
    }
    starts = {
        "lora": [f"model.adapter={adapted['lora']}"],
        "full": [f"model.base={adapted['full']}", "model.adapter=null"],
    }
    for form, of_form in forms.items():
        recipe = load_recipe(name, [*overrides, *of_form, *starts[form]])
        train(recipe, output=tmp_path / form, show=silent)
        ids = torch.arange(3, 40)[None]
        folders = (adapted[form], tmp_path / form)
        before, after = (load_denoiser(str(folder), device="cpu") for folder in folders)
        difference = (before.logits(ids) - after.logits(ids)).abs().max()
        assert 0 < float(difference) < 0.5  # from what was adapted, and a step or two further
        assert after.context_length == 2048


def test_sequences_that_were_cut_are_counted_in_log_and_card(tmp_path, causal, rows):
    path = write_recipe(tmp_path, causal, rows)
    recipe = load_recipe(
        path, ["data.max_length=50", "data.too_long=cut", "stages.0.steps=5", "logging_steps=2"]
    )
    train(recipe, output=tmp_path / "out", show=silent)
    log = (tmp_path / "out" / "stages" / "0-fs" / "log.jsonl").read_text().splitlines()
    counts = {entry["step"]: entry["num_cut"] for entry in map(json.loads, log) if "loss" in entry}
    assert set(counts) == {2, 4, 5}  # the last step, too
    num_cut = sum(counts.values())
    assert 0 < num_cut <= 20
    said = f"stage fs: {num_cut} of 20 sequences were cut at their longest length"
    assert said in (tmp_path / "out" / "README.md").read_text()
    (tmp_path / "out" / "README.md").unlink()
    train(recipe, output=tmp_path / "out", resume=True, show=silent)
    assert said in (tmp_path / "out" / "README.md").read_text()


class Recorder(TrainerCallback):
    """A tracker: keeps what it is told."""

    told: ClassVar[list[tuple[int, dict[str, float]]]] = []

    def on_log(self, args, state, control, logs=None, **_):
        self.told.append((state.global_step, dict(logs)))


def test_trackers_and_the_terminal_are_told_how_it_goes(
    tmp_path, causal, rows, probe_rows, monkeypatch
):
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "recorder", Recorder)
    path, lines = write_recipe(tmp_path, causal, rows), []
    evaluation = {"every": 3, "probe": str(probe_rows), "held_out": str(rows), "num_samples": 2}
    told = load_recipe(path, [f"evaluation={json.dumps(evaluation)}", "report_to=[recorder]"])
    train(told, output=tmp_path / "told", show=lines.append)
    of_training = [logs for _, logs in Recorder.told if "loss" in logs]
    assert len(of_training) == 6 + 4
    for logs in of_training:
        assert 0 <= logs["masked_accuracy"] <= 1
        assert logs["tokens_per_second"] > 0
    measured = [(step, logs) for step, logs in Recorder.told if "nelbo" in logs]
    assert [step for step, _ in measured] == [3, 6, 3, 4]
    for _, logs in measured:
        assert {"probe_nll_sequential", "probe_accuracy_sequential", "probe_nll_parallel"} < {*logs}
    number = r"[\d,.]+"
    line = rf"fs 3/6  loss {number}  masked accuracy {number}  {number} tokens/s  ETA 0:\d\d:\d\d"
    assert any(re.fullmatch(line, shown) for shown in lines)
    assert any(shown.startswith("step 3  probe nll sequential ") for shown in lines)
    # Measuring draws no number that training draws.
    train(load_recipe(path), output=tmp_path / "untold", show=silent)
    assert losses(tmp_path / "untold") == losses(tmp_path / "told")


def test_the_command_trains_and_goes_on_where_it_was(tmp_path, causal, rows):
    path, out = write_recipe(tmp_path, causal, rows), tmp_path / "out"
    command = ["train", str(path), "--set", "stages.0.steps=2", "--output", str(out)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "rows.jsonl: 4 of 4 rows (0 bad, 0 cut, 0 too long and dropped)" in done.output
    assert done.output.endswith(f"{out} is ready for load_denoiser\n")
    card = (out / "README.md").read_text()
    (out / "README.md").unlink()
    assert CliRunner().invoke(app, [*command, "--resume"]).exit_code == 0
    assert (out / "README.md").read_text() == card


def test_the_command_says_on_one_line_what_is_wrong_with_the_data(
    tmp_path, causal, monkeypatch, capsys
):
    bad = tmp_path / "bad.jsonl"
    bad.write_bytes(b'{"prompt": "Say a.", "response": "a"}\n{"prompt": "\xff", "response": "a"}\n')
    path = write_recipe(tmp_path, causal, bad)
    words = ["dspy-infill", "train", str(path), "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert capsys.readouterr().err == (
        f"dspy-infill: {bad}:2: invalid UTF-8 at byte 12 of the line (0xff); "
        "save the file as UTF-8\n"
    )


def test_the_module_says_on_one_line_what_is_wrong(tmp_path, causal, rows, monkeypatch, capsys):
    path = write_recipe(tmp_path, causal, rows)
    (tmp_path / "file").touch()
    command = ["-m", str(path), "--output", str(tmp_path / "file")]
    for rank, said in (
        ("0", f"{tmp_path / 'file'} is a file: name a folder as --output\n"),
        ("1", ""),
    ):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as caught:
            run_module()
        assert caught.value.code == 2
        assert (
            capsys.readouterr().err.removeprefix("python -m dspy_diffusion_infill.training: ")
            == said
        )


def test_a_warm_up_that_never_ends_is_said(tmp_path, causal, rows):
    path, lines = write_recipe(tmp_path, causal, rows), []
    recipe = load_recipe(path, ["optimizer.warmup_steps=5", "stages.0.steps=6"])
    train(recipe, output=tmp_path / "out", show=lines.append)
    said = [line for line in lines if "warmup_steps=5" in line]
    assert len(said) == 1 and said[0].startswith(
        "stage ro has 4 steps, no more than warmup_steps=5"
    )
