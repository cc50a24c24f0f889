"""The ablations of the embedded denoiser's recipe, on a tiny model."""

import json
from dataclasses import fields, is_dataclass

import pytest
from benchmarks import adapt_ablations
from benchmarks.adapt_ablations import VARIANTS, main, parse, recipe_of
from tiny_models import MASK, save_causal

ARGUMENTS = ["--data", "rows", "--probe", "probe.jsonl", "--json", "out.json"]


def differences(one, other, place="") -> set[str]:
    """The keys in which two recipes differ."""
    if is_dataclass(one) and type(one) is type(other):
        pairs = [(f.name, getattr(one, f.name), getattr(other, f.name)) for f in fields(one)]
    elif isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other):
        pairs = [(str(k), a, b) for k, (a, b) in enumerate(zip(one, other, strict=True))]
    else:
        return set() if one == other else {place}
    return {key for name, a, b in pairs for key in differences(a, b, f"{place}.{name}".strip("."))}


MASKING = "stages.0.masking"
CHANGED = {
    "the recipe": set(),
    "no windows": {f"{MASKING}.full_sequence", f"{MASKING}.window"},
    "windows in half": {f"{MASKING}.full_sequence", f"{MASKING}.window"},
    "windows only": {f"{MASKING}.full_sequence", f"{MASKING}.window"},
    "windows of 4 to 16": {
        f"{MASKING}.{key}" for key in ("window_lengths.0", "window_lengths.1", "tokens_per_window")
    },
    "windows of 8": {f"{MASKING}.window_lengths.0", f"{MASKING}.tokens_per_window"},
    "windows in the instructions only": {f"{MASKING}.tokens_per_window"},
    "annealed over a fifth": {"model.adapt.annealing_steps"},
    "annealed over half": {"model.adapt.annealing_steps"},
    "learning rate 2.5e-4": {"stages.0.optimizer.learning_rate"},
    "learning rate 1e-3": {"stages.0.optimizer.learning_rate"},
    "learning rate 2e-3": {"stages.0.optimizer.learning_rate"},
    "rank 8": {"model.lora.rank", "model.lora.alpha"},
    "rank 64": {"model.lora.rank", "model.lora.alpha"},
    "no worked examples": {f"data.sources.{k}.max_examples" for k in (1, 2, 3, 4)},
    "worked examples first": {f"data.sources.{k}.examples" for k in (1, 3)},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_changes_what_it_is_named_after_and_nothing_else(name):
    options = parse(ARGUMENTS)
    recipes = [
        adapt_ablations.with_steps(recipe_of(VARIANTS[each], options), 50, VARIANTS[each].annealing)
        for each in ("the recipe", name)
    ]
    assert differences(*recipes) == CHANGED[name]
    assert [stage.name for stage in recipes[1].stages] == ["fs"]
    assert recipes[1].model.adapter is None  # from the causal LM


@pytest.fixture
def arguments(tmp_path) -> list[str]:
    """A tiny model, a few rows of each kind, and one probe row."""
    examples = [[f"Input: {k}\nOutput:", str(k + 1)] for k in range(6)]
    group = {"instructions": "Add one to the number.", "examples": examples}
    prompts = [f"Add one to the number.\n\n{question}" for question, _ in examples]
    text = [{"prompt": p, "response": a} for p, (_, a) in zip(prompts, examples, strict=True)]
    text.append({"prompt": "You are a pirate, and speak as one.", "response": ""})
    files = {
        "instruct_text.jsonl": text,
        "worked_tasks.jsonl": [group],
        "feedback.jsonl": [{"prompt": "Judge the answer.", "response": "It is right."}],
        "probe.jsonl": [{"text": "Add two to the number.", "start": 4, "end": 11}],
    }
    for name, rows in files.items():
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = ["--data", str(tmp_path), "--probe", str(tmp_path / "probe.jsonl")]
    found += ["--json", str(tmp_path / "out.json"), "--output", str(tmp_path / "runs")]
    found += ["--tokens", "900", "--rows", "1"]
    base = save_causal(tmp_path / "base")
    overrides = [f"model.base={base}", f"model.adapt.mask_token={MASK}", "model.compile=false"]
    overrides += ["stages.1.optimizer.batch_size=2", "stages.1.optimizer.accumulation=2"]
    return found + [f"--set={override}" for override in overrides]


def test_variants_are_trained_probed_and_not_run_again(arguments, tmp_path, capsys, monkeypatch):
    main([*arguments, "--variants", "the recipe"])
    results = json.loads((tmp_path / "out.json").read_text())
    first = results["variants"]["the recipe"]
    assert first["tokens"] >= 900 and first["nll_sequential"] > 0
    main([*arguments, "--variants", "the recipe,annealed over half"])
    results = json.loads((tmp_path / "out.json").read_text())
    assert results["variants"]["the recipe"] == first
    other = results["variants"]["annealed over half"]
    assert (other["steps"], other["tokens"]) == (first["steps"], first["tokens"])
    assert other["nll_sequential"] != first["nll_sequential"]
    lines = capsys.readouterr().out.splitlines()[-4:]
    assert [line.split(" | ")[0] for line in lines] == [
        "| variant", "| ---", "| the recipe", "| annealed over half",
    ]  # fmt: skip
    assert {line.count("|") for line in lines} == {9}

    def run_variant(name, options):
        raise AssertionError("it has run already")

    monkeypatch.setattr(adapt_ablations, "run_variant", run_variant)
    main([*arguments, "--table"])
    assert "annealed over half" in capsys.readouterr().out


def test_results_of_other_settings_and_unknown_variants_are_refused(arguments, tmp_path):
    main([*arguments, "--variants", "the recipe"])
    with pytest.raises(SystemExit, match="name another --json"):
        main([*arguments, "--tokens", "901"])
    with pytest.raises(SystemExit, match="no variant 'rank 7'; there are: the recipe"):
        main([*arguments, "--variants", "rank 7"])
