import argparse
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from accelerate.commands import launch
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from typer.testing import CliRunner

from dspy_diffusion_infill.cli.app import app
from dspy_diffusion_infill.training.options import Recipe
from dspy_diffusion_infill.training.recipe import (
    accelerate_config,
    as_yaml,
    load_recipe,
    recipe_names,
)
from dspy_diffusion_infill.yaml_settings import validated

PAPER = [f"{model}-{kind}" for model in ("llada", "dream") for kind in ("fs", "ro", "fs-ro")]


ONE_GPU = [f"{name}-{form}" for name in PAPER for form in ("lora", "qlora")]
SMOLLM2 = [
    f"smollm2-{kind}"
    for kind in (
        *("adapt", "adapt-fs", "adapt-fs-more", "adapt-fs-plain"),
        *("adapt-fs-gpu", "adapt-fs-gpu-more", "fs", "ro", "fs-ro"),
    )
]


def test_every_recipe_of_the_package_loads_under_its_name():
    assert sorted([*PAPER, *ONE_GPU, *SMOLLM2]) == recipe_names()
    assert all(load_recipe(name).name == name for name in recipe_names())


@pytest.mark.parametrize("name", ONE_GPU)
def test_recipes_for_one_gpu_differ_from_the_papers_in_form_rate_and_batch_alone(name):
    paper, form = name.rsplit("-", 1)
    recipe, full = load_recipe(name), load_recipe(paper)
    assert recipe.model == replace(full.model, form=form)
    assert (recipe.data, recipe.seed) == (full.data, full.seed)
    for stage, other in zip(recipe.stages, full.stages, strict=True):
        own, of_paper = stage.optimizer, other.optimizer
        assert own.batch_size * own.accumulation == of_paper.batch_size * of_paper.accumulation
        changed = {"learning_rate": 1e-4, "batch_size": own.batch_size}
        changed["accumulation"] = own.accumulation
        assert stage == replace(other, optimizer=replace(of_paper, **changed))


@pytest.mark.parametrize("name", ["smollm2-fs", "smollm2-ro", "smollm2-fs-ro"])
def test_recipes_of_an_adapted_smollm2_start_from_the_output_of_the_adapt_recipe(name):
    recipe, adapt = load_recipe(name), load_recipe("smollm2-adapt")
    assert recipe.model == replace(adapt.model, adapter="runs/smollm2-adapt")
    assert recipe.data.sources == load_recipe("llada-fs").data.sources
    assert [stage.name for stage in recipe.stages] == name.split("-")[1:]
    assert [stage.epochs for stage in recipe.stages] == [
        {"fs": 8, "ro": 4}[stage.name] for stage in recipe.stages
    ]


@pytest.mark.parametrize("name", [*PAPER, *ONE_GPU, *SMOLLM2])
def test_responses_are_padded_with_end_of_text_and_full_sequences_are_not(name):
    for stage in load_recipe(name).stages:
        assert stage.masking.eos_padding == (64 if stage.name == "ro" else 0)


def test_the_recipe_of_the_embedded_denoiser_is_what_it_was_trained_with():
    recipe = load_recipe("smollm2-adapt-fs")
    assert [stage.steps for stage in recipe.stages] == [150, 660]
    assert recipe.data.too_long == "cut" and recipe.data.max_length == 416
    assert {stage.loss for stage in recipe.stages} == {"masked_mean"}


def test_a_recipe_extends_another_key_by_key_and_replaces_its_lists(tmp_path):
    below = tmp_path / "below.yaml"
    below.write_text(yaml.safe_dump({"extends": "llada-fs", "optimizer": {"eps": 0.1}}))
    (tmp_path / "folder").mkdir()
    above = tmp_path / "folder" / "above.yaml"
    stage = {"name": "ro", "steps": 3, "masking": {"response_only": 1.0}}
    tree = {"extends": "../below.yaml", "name": "above", "model": {"form": "lora"}}
    above.write_text(yaml.safe_dump({**tree, "stages": [stage]}))
    recipe, base = load_recipe(above, ["seed=4"]), load_recipe("llada-fs")
    assert recipe.model == replace(base.model, form="lora")
    assert recipe.data == base.data
    assert [stage.name for stage in recipe.stages] == ["ro"]
    assert recipe.stages[0].optimizer == replace(base.stages[0].optimizer, eps=0.1)
    assert (recipe.name, recipe.seed) == ("above", 4)


@pytest.mark.parametrize(
    ("extends", "message"),
    [
        ("loop.yaml", "extends itself"),
        ("none.yaml", "does not exist"),
        ("lada-fs", "no recipe 'lada-fs'"),
        (3, "must be a recipe's name or file"),
    ],
)
def test_a_recipe_that_extends_none_is_refused(tmp_path, extends, message):
    path = tmp_path / "loop.yaml"
    path.write_text(yaml.safe_dump({"extends": extends, "name": "loop"}))
    with pytest.raises(ValueError, match=message):
        load_recipe(path)


@pytest.mark.parametrize("name", PAPER)
def test_recipes_hold_the_numbers_of_table_5(name):
    model, *kinds = name.split("-")
    recipe = load_recipe(name)
    assert [stage.name for stage in recipe.stages] == kinds
    for stage in recipe.stages:
        optimizer = stage.optimizer
        assert optimizer.learning_rate == {"llada": 1e-5, "dream": 2e-6}[model]
        assert (optimizer.batch_size, optimizer.accumulation) == {
            "llada": (1, 32),
            "dream": (2, 64),
        }[model]
        assert (optimizer.schedule, optimizer.warmup_steps) == ("cosine", 500)
        assert (optimizer.betas, optimizer.eps) == ((0.9, 0.999), 1e-8)
        assert (optimizer.weight_decay, optimizer.max_grad_norm) == (0.01, 1.0)
        assert stage.epochs == {"fs": 8, "ro": 4}[stage.name]
        assert stage.loss == "masked_mean"
        shares = (stage.masking.full_sequence, stage.masking.response_only)
        assert shares == {"fs": (1, 0), "ro": (0, 1)}[stage.name]
    assert recipe.model.form == "full"
    assert recipe.model.gradient_checkpointing


def test_a_recipe_is_read_back_from_what_it_is_written_as():
    for name in recipe_names():
        recipe = load_recipe(name)
        assert validated(Recipe, yaml.safe_load(as_yaml(recipe)), "recipe") == recipe


def test_overrides_are_typed_and_reach_every_stage_that_does_not_say_otherwise():
    recipe = load_recipe(
        "smollm2-adapt-fs",
        [
            "optimizer.learning_rate=1e-4",
            "model.form=full",
            "data.sources.0.path=other.jsonl",
            "stages.1.masking.window_lengths=[2, 8]",
            "evaluation.every=5",
        ],
    )
    assert [stage.optimizer.learning_rate for stage in recipe.stages] == [1e-3, 1e-4]
    assert recipe.model.form == "full"
    assert recipe.data.sources[0].path == "other.jsonl"
    assert recipe.stages[1].masking.window_lengths == (2, 8)
    assert recipe.evaluation.every == 5


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.forn=lora", "recipe.model has no key 'forn': did you mean 'form'?"),
        ("stages.0.epochs=many", "recipe.stages.0.epochs must be a number, got 'many'"),
        ("stages.0.epochs=0", "must be above 0"),
        ("stages.0.steps=1.5", "stages.0.steps must be of type int, got 1.5"),
        ("stages.7.steps=1", "'7' must be the number of an item"),
        ("stages.0.masking.window=0.5", "add up to 1"),
        ("stages.0.loss=mean", "must be one of masked_mean, elbo"),
        ("data.sources.0.shape=table", "must be one of rows, ungrouped"),
        ("data.sources=[]", "at least one file or data set"),
        ("data.max_length=true", "must be of type int, got True"),
        ("save_steps=7", "multiple of logging_steps=10"),
        ("model.form", "must be key=value"),
        ("model.base.x=1", "which has no keys"),
        ("model.adapter=somewhere", "needs form=lora"),
        ("stages.0.weights=[1, 2]", "one weight for each of 1 sources"),
        ("stages=[]", "at least one stage"),
        ("nonsense=1", "has no key 'nonsense'"),
        ("stages.0.weights=[0]", "one of them above 0, got [0.0]"),
        ("stages.0.weights=[-1]", "weights must be 0 or more"),
        ("stages.0.weights=[.nan]", "weights.0 must be a finite number, got nan"),
        ("stages.0.epochs=.inf", "epochs must be a finite number, got inf"),
        ("stages.0.masking.full_sequence=.nan", "must be a finite number"),
        ("stages.0.masking.tokens_per_window=0", "tokens_per_window must be at least 1"),
        ("stages.0.masking.low_discrepancy=-1", "low_discrepancy must be at least 0"),
        ("stages.0.masking.eos_padding=-8", "eos_padding must be at least 0"),
        ("stages.0.optimizer=5", "stages.0.optimizer must be a mapping, got 5"),
        ("optimizer=5", "recipe.optimizer must be a mapping, got 5"),
        ("optimizer.learning_rate=0", "learning_rate must be above 0"),
        ("optimizer.warmup_steps=-1", "warmup_steps must be at least 0"),
        ("stages=5", "recipe.stages must be a list, got 5"),
        ("logging_steps=0", "logging_steps must be at least 1"),
        ("save_steps=0", "save_steps must be at least 1"),
        ("evaluation.num_samples=3", "num_samples must be an even number from 2, got 3"),
        ("evaluation.probe_rows=0", "probe_rows must be at least 1"),
        ("stages.0.weights=[0.1, 0.2", "override 'stages.0.weights=[0.1, 0.2' is no YAML"),
    ],
)
def test_a_wrong_override_is_named(override, message):
    with pytest.raises(ValueError) as caught:
        load_recipe("llada-fs", [override])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("!!python/object/apply:os.mkdir [ran]", "could not determine a constructor"),
        ("name: !!python/name:os.system", "could not determine a constructor"),
        ("a: &a [x]\nb: [*a, *a]", r"it has an alias \(\*name\)"),
        ("a: !!int ''", "is no YAML"),
        ("a: !!bool x", "is no YAML"),
        ("a: !!timestamp x", "is no YAML"),
        ("[" * 10_000, "is no YAML"),
        ("a: \0", "is no YAML"),
        ("extends: ../../etc/passwd", "no recipe '../../etc/passwd'"),
        ("steps: " + "9" * 5000, "is no YAML"),
    ],
    ids=lambda text: text[:30],
)
def test_a_recipe_made_to_do_harm_is_refused(text, match, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "hostile.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=match):
        load_recipe(path)
    assert not (tmp_path / "ran").exists()


def test_a_recipe_that_is_no_yaml_is_named(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("name: a: b\n")
    with pytest.raises(ValueError, match=r"recipe .*broken\.yaml is no YAML: mapping values"):
        load_recipe(path)


def test_masking_and_data_that_do_not_go_together_are_refused():
    prompt_only = "data.sources=[{path: rows.jsonl, prompt_only: true}]"
    with pytest.raises(ValueError, match="prompt_only"):
        load_recipe("llada-ro", [prompt_only])
    windows = ["stages.0.masking={window: 1.0}", "stages.0.loss=elbo"]
    with pytest.raises(ValueError, match="loss=elbo is a bound only without window masking"):
        load_recipe("llada-fs", windows)


def test_an_unknown_recipe_lists_those_known(tmp_path):
    with pytest.raises(ValueError, match="llada-fs-ro"):
        load_recipe("lada-fs")
    with pytest.raises(ValueError, match="does not exist"):
        load_recipe(tmp_path / "no.yaml")


def test_the_command_prints_where_a_configuration_is():
    done = CliRunner().invoke(app, ["accelerate-config", "fsdp2"])
    path = Path(done.output.removesuffix("\n"))
    assert path.is_absolute() and path.name == "fsdp2.yaml" and path.is_file()
    with pytest.raises(ValueError, match="give one of deepspeed_zero3, fsdp2"):
        accelerate_config("fsdp")


def launched(name: str, monkeypatch) -> argparse.Namespace:
    """What ``accelerate launch`` reads of a configuration, put into the environment as it does."""
    config = str(accelerate_config(name))
    words = ["--config_file", config, "-m", "dspy_diffusion_infill.training", "x"]
    options, defaults, _ = launch._validate_launch_command(
        launch.launch_command_parser().parse_args(words)
    )
    options.deepspeed_fields_from_accelerate_config = list(defaults.deepspeed_config)
    if options.use_deepspeed:
        _, environment = prepare_deepspeed_cmd_env(options)
    else:
        environment = prepare_multi_gpu_env(options)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    return options


@pytest.mark.parametrize("name", ["fsdp2", "deepspeed_zero3"])
def test_accelerate_configs_are_valid_for_the_installed_accelerate(name):
    config = load_config_from_file(str(accelerate_config(name)))  # refuses an unknown key
    assert isinstance(config, ClusterConfig)
    assert (config.mixed_precision, config.num_machines) == ("bf16", 1)
    for recipe in map(load_recipe, PAPER):
        assert all(s.optimizer.accumulation % config.num_processes == 0 for s in recipe.stages)


def test_the_fsdp_config_launches_version_2_and_saves_whole_weights(monkeypatch):
    options = launched("fsdp2", monkeypatch)
    assert options.use_fsdp and not options.use_deepspeed
    plugin = FullyShardedDataParallelPlugin()  # of what launch has put into the environment
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.state_dict_type.name == "FULL_STATE_DICT"
    # The recipe's gradient_checkpointing does it; both at once would compute everything twice.
    assert not plugin.activation_checkpointing


def test_the_deepspeed_config_launches_stage_3_and_saves_whole_weights(monkeypatch):
    options = launched("deepspeed_zero3", monkeypatch)
    assert options.use_deepspeed and not options.use_fsdp
    plugin = DeepSpeedPlugin()
    assert plugin.zero_stage == 3
    settings = plugin.hf_ds_config.config
    assert settings["zero_optimization"]["stage"] == 3
    assert settings["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] is True
    # Trainer fills in the recipe's numbers where the config says auto.
    assert settings["gradient_accumulation_steps"] == settings["gradient_clipping"] == "auto"
