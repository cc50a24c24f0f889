import pytest

from dspy_diffusion_infill.denoisers.checkpoints.hub import KNOWN
from dspy_diffusion_infill.errors import DataError
from dspy_diffusion_infill.evaluation.loading import load_dataset
from dspy_diffusion_infill.evaluation.templates import judge_template, read_prompt
from dspy_diffusion_infill.reproduction.experiment import PaperFigure, PromptStep
from dspy_diffusion_infill.reproduction.experiment_files import (
    TABLES,
    load_experiments,
    load_models,
    parse_experiment,
    with_checkpoints,
    with_lm,
)
from dspy_diffusion_infill.reproduction.tables import HEADINGS
from dspy_diffusion_infill.training.recipe import load_recipe

SMALL = {
    "title": "Small",
    "task": "summeval",
    "test": {"name": "summeval", "split": "test"},
    "shots": {"name": "summeval", "split": "dev", "num": 4},
    "seeds": [0],
    "measures": ["pearson", "spearman"],
    "conditions": [
        {
            "label": {"Prompt": "plain", "Shots": 0},
            "model": "a",
            "template": "c_gen",
            "paper": [[0.1, 0.2], 0.3],
        },
        {
            "label": {"Prompt": "infilled", "Shots": 4},
            "model": "a",
            "template": "c_gen_masked",
            "steps": [{"copro": "b"}, {"infill": "c", "prefix": 8}],
            "paper": [None, 0.4],
        },
    ],
    "scales": {"smoke": {"keep": {"Prompt": ["plain"]}, "shots": {"num": 1}, "seeds": [1, 2]}},
}


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("scale", ["full", "smoke"])
def test_every_shipped_table_names_known_models_templates_and_measures(
    table: str, scale: str
) -> None:
    for experiment in load_experiments(table, scale=scale):
        models = load_models(experiment.scale)
        assert set(experiment.models) <= set(models)
        assert set(experiment.measures) <= set(HEADINGS)
        assert set(experiment.plot.measures) <= set(experiment.measures)
        for condition in experiment.conditions:
            assert set(condition.paper) <= set(experiment.measures)
            assert tuple(condition.label) == experiment.columns
            if experiment.task in ("summeval", "biggen"):
                judge_template(condition.template)
            elif condition.template:
                read_prompt(condition.template)
            for step in condition.steps:
                assert step.kind != "infill" or models[step.by].denoiser
        assert bool(experiment.caution) == (scale == "smoke")


@pytest.mark.parametrize("table", TABLES)
def test_every_split_that_is_asked_for_exists(table: str) -> None:
    for scale in ("full", "smoke"):
        for experiment in load_experiments(table, scale=scale):
            for spec in (experiment.test, experiment.shots):
                with pytest.raises(DataError, match="holds none of"):
                    load_dataset(spec.name, data="/nowhere", split=spec.split)


def test_table_2_has_the_papers_forty_rows_and_eight_of_ours() -> None:
    (table,) = load_experiments("table2")
    with_figures = [c for c in table.conditions if c.paper]
    assert (len(table.conditions), len(with_figures)) == (48, 40)
    label = {"Model": "LLaDA", "Train": "FS+RO", "Prompt": "Judge Infill"}
    (best,) = [c for c in table.conditions if c.label == label]
    assert best.paper["spearman"] == PaperFigure(0.535, 0.007)
    assert best.steps == (PromptStep(kind="infill", by="llada-fs-ro"),)
    assert (table.search.window, table.search.stride, table.search.mask) == (8, 4, 8)
    assert (table.shots.num, table.search.steps) == (16, 128)


@pytest.mark.parametrize("scale", ["full", "smoke"])
@pytest.mark.parametrize(
    "table", ["table1", "table2", "table3", "table4", "table7", "figure4", "figure5", "figure6"]
)
def test_what_the_paper_does_not_forbid_may_be_filled_in(table: str, scale: str) -> None:
    for experiment in load_experiments(table, scale=scale):
        if any(step.kind == "infill" for one in experiment.conditions for step in one.steps):
            assert (experiment.search.forbid_special, experiment.search.filters) == (False, False)
            if scale == "full":
                assert experiment.search.examples == 16
        else:
            assert experiment.name == "table3b"
        assert experiment.perplexity_over == "sequence"


def test_the_papers_sampling_of_models() -> None:
    models = load_models("full")
    assert models["llada"].options == {"max_tokens": 128, "steps": 128, "temperature": 0.8}
    assert models["dream"].options["temperature"] == 0.1
    assert models["llada-fs-ro"].denoiser == "llada-fs-ro"
    prometheus = models["prometheus-8x7b"].options
    sampling = (prometheus["temperature"], prometheus["top_p"], prometheus["extra_body"])
    assert sampling == (1.0, 0.9, {"repetition_penalty": 1.03})
    assert models["prometheus-13b"].system == "system_v1"


def test_a_scale_overrides_entry_by_entry() -> None:
    full = parse_experiment(SMALL, name="small", scale="full")
    smoke = parse_experiment(SMALL, name="small", scale="smoke")
    assert (full.shots.num, full.shots.split, full.seeds) == (4, "dev", (0,))
    assert (smoke.shots.num, smoke.shots.split, smoke.seeds) == (1, "dev", (1, 2))
    assert len(full.conditions) == 2
    assert [c.label["Prompt"] for c in smoke.conditions] == ["plain"]


def test_conditions_say_steps_and_paper_figures() -> None:
    plain, infilled = parse_experiment(SMALL, name="small", scale="full").conditions
    assert plain.paper == {"pearson": PaperFigure(0.1, 0.2), "spearman": PaperFigure(0.3)}
    assert infilled.paper == {"spearman": PaperFigure(0.4)}
    assert infilled.steps == (
        PromptStep(kind="copro", by="b"),
        PromptStep(kind="infill", by="c", prefix=8),
    )
    assert infilled.label == {"Prompt": "infilled", "Shots": "4"}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"seed": [0]}, "small.yaml has no key 'seed': did you mean 'seeds'"),
        ({"test": {"name": "summeval"}}, "small.yaml.test needs split"),
        (
            {"search": {"windows": 3}},
            "search has no key 'windows': did you mean 'window'",
        ),
        ({"search": {"xyz": 3}}, "small.yaml.search has no key 'xyz'; it has window, stride"),
        ({"judge": [1]}, "small.yaml.judge must be a mapping"),
        (
            {"search": {"window": "wide"}},
            "small.yaml.search.window must be a valid integer.*'wide'",
        ),
        ({"seeds": [0, "one"]}, "small.yaml.seeds.1 must be a valid integer.*, got 'one'"),
        (
            {"plot": {"kind": "pie"}},
            "small.yaml.plot.kind must be one of bars, scatter; got 'pie'",
        ),
        (
            {"conditions": [{"label": {}, "model": "a", "steps": [{"infill": "b", "prefx": 1}]}]},
            "small.yaml.conditions.0.steps.0 has no key 'prefx': did you mean 'prefix'",
        ),
        ({"conditions": []}, "no condition is left at scale 'full'"),
        (
            {"conditions": [{"label": {}, "model": "a", "steps": [{"mipro": "b"}]}]},
            "names one of copro, gepa and infill",
        ),
        (
            {"conditions": [{"label": {}, "model": "a", "paper": [1, 2, 3]}]},
            "paper has 3 figures for 2 measures",
        ),
        ({"conditions": [{"label": {}}]}, "small.yaml.conditions.0 needs model"),
    ],
)
def test_a_typo_in_a_file_is_named(change: dict, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        parse_experiment({**SMALL, **change}, name="small", scale="full")


def test_every_checkpoint_is_on_the_hub_or_has_a_recipe_for_one_gpu_and_its_folder() -> None:
    for name, spec in load_models("full").items():
        if not spec.recipe:
            assert spec.denoiser is None or spec.denoiser in KNOWN
            continue
        recipe = load_recipe(spec.recipe)
        assert spec.recipe == f"{name}-lora" and recipe.model.form == "lora"
        assert spec.denoiser == f"runs/{name}" == f"runs/{load_recipe(name).name}"


def test_unknown_tables_and_scales_are_refused() -> None:
    with pytest.raises(ValueError, match="table must be one of table1, table2, table3"):
        load_experiments("table9")
    with pytest.raises(ValueError, match="scale must be one of full, smoke, got 'tiny'"):
        load_experiments("table1", scale="tiny")


def test_models_can_be_given_other_checkpoints_and_lms() -> None:
    models = load_models("full")
    changed = with_checkpoints(models, ["llada-ro=/my/folder"])
    assert changed["llada-ro"].denoiser == "/my/folder"
    assert changed["llada"] == models["llada"]
    other = with_lm(models, "openai/x", api_base="http://localhost:1")
    assert {spec.lm for spec in other.values()} == {"openai/x"}
    assert other["llada"].denoiser == "llada"
    assert other["prometheus-8x7b"].options == {
        "temperature": 1.0,
        "max_tokens": 2048,  # the largest of all: the models differ in what they ask, not in this
        "top_p": 0.9,
        "api_base": "http://localhost:1",
        "api_key": "none",
    }
    smoke = with_lm(load_models("smoke"), "openai/x")
    assert smoke["llada"].options == smoke["dream"].options
    for text in ("llada", "llada=", "nobody=x"):
        with pytest.raises(ValueError, match=r"NAME=CHECKPOINT|model must be one of"):
            with_checkpoints(models, [text])
