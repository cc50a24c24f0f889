import argparse
from importlib import resources
from pathlib import Path

import pytest
import yaml
from accelerate.commands import launch
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

from dspy_diffusion_infill.training.options import Recipe
from dspy_diffusion_infill.training.recipe import as_yaml, build, load_recipe, recipe_names

PAPER = [f"{model}-{kind}" for model in ("llada", "dream") for kind in ("fs", "ro", "fs-ro")]


def test_every_recipe_of_the_package_loads_under_its_name():
    assert {*PAPER, "smollm2-adapt-fs"} <= set(recipe_names())
    assert all(load_recipe(name).name == name for name in recipe_names())


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
        assert build(Recipe, yaml.safe_load(as_yaml(recipe)), "recipe") == recipe


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
        ("model.forn=lora", r"recipe\.model has no key 'forn': did you mean 'form'\?"),
        ("stages.0.epochs=many", r"recipe\.stages\.0\.epochs must be a number, got 'many'"),
        ("stages.0.epochs=0", "must be above 0"),
        ("stages.0.steps=1.5", r"stages\.0\.steps must be of type int, got 1\.5"),
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
    ],
)
def test_a_wrong_override_is_named(override, message):
    with pytest.raises(ValueError, match=message):
        load_recipe("llada-fs", [override])


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


ACCELERATE = Path(str(resources.files("dspy_diffusion_infill.training") / "recipes" / "accelerate"))


def launched(name: str, monkeypatch) -> argparse.Namespace:
    """What ``accelerate launch --config_file NAME`` reads, put into the environment as it does."""
    words = ["--config_file", str(ACCELERATE / name), "-m", "dspy_diffusion_infill.training", "x"]
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


@pytest.mark.parametrize("name", ["fsdp2.yaml", "deepspeed_zero3.yaml"])
def test_accelerate_configs_are_valid_for_the_installed_accelerate(name):
    config = load_config_from_file(str(ACCELERATE / name))  # refuses a key that it does not know
    assert isinstance(config, ClusterConfig)
    assert (config.mixed_precision, config.num_machines) == ("bf16", 1)
    for recipe in map(load_recipe, PAPER):
        assert all(s.optimizer.accumulation % config.num_processes == 0 for s in recipe.stages)


def test_the_fsdp_config_launches_version_2_and_saves_whole_weights(monkeypatch):
    options = launched("fsdp2.yaml", monkeypatch)
    assert options.use_fsdp and not options.use_deepspeed
    plugin = FullyShardedDataParallelPlugin()  # of what launch has put into the environment
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.state_dict_type.name == "FULL_STATE_DICT"
    # The recipe's gradient_checkpointing does it; both at once would compute everything twice.
    assert not plugin.activation_checkpointing


def test_the_deepspeed_config_launches_stage_3_and_saves_whole_weights(monkeypatch):
    options = launched("deepspeed_zero3.yaml", monkeypatch)
    assert options.use_deepspeed and not options.use_fsdp
    plugin = DeepSpeedPlugin()
    assert plugin.zero_stage == 3
    settings = plugin.hf_ds_config.config
    assert settings["zero_optimization"]["stage"] == 3
    assert settings["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] is True
    # Trainer fills in the recipe's numbers where the config says auto.
    assert settings["gradient_accumulation_steps"] == settings["gradient_clipping"] == "auto"
