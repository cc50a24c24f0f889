"""Journal keys: whatever a result depends on makes another key, and nothing else does."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import dspy
import pytest
from doubles import WordDenoiser
from loopback import loopback
from small_experiment import FilledIn, infilled_by, small_experiment, specs, write_summeval

from dspy_diffusion_infill.evaluation.loading import Examples, load_dataset
from dspy_diffusion_infill.evaluation.retrieval import Bm25Index, Page
from dspy_diffusion_infill.journal import Journal
from dspy_diffusion_infill.reproduction import perplexity as perplexity_module
from dspy_diffusion_infill.reproduction.experiment import JudgeSpec, ModelSpec, PromptStep
from dspy_diffusion_infill.reproduction.infill_step import InfillStep
from dspy_diffusion_infill.reproduction.journals import Stop
from dspy_diffusion_infill.reproduction.models import Models
from dspy_diffusion_infill.reproduction.perplexity import GoldPerplexity
from dspy_diffusion_infill.reproduction.prompt_search import PromptSearch, SearchTask
from dspy_diffusion_infill.reproduction.runner import Cell, Runner
from dspy_diffusion_infill.reproduction.tasks import Benchmark, Gsm8kTask, HoverTask, JudgeTask

NOWHERE = specs("http://127.0.0.1:9/v1")
CLAIM = dspy.Example(claim="It rains.", titles=("Rain",), label="SUPPORTED").with_inputs("claim")
PAGES = [Page("Rain", "It rains in Oslo."), Page("Snow", "It snows in Bergen.")]
INFILL, COPRO = PromptStep(kind="infill", by="a"), PromptStep(kind="copro", by="b")


class Loaded:
    """What ``load_denoiser`` gives: the same folder, with weights that a test changes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.weights = "first"
        monkeypatch.setattr(
            "dspy_diffusion_infill.reproduction.models.load_denoiser",
            lambda checkpoint: WordDenoiser(name=f"{checkpoint}@{self.weights}"),
        )


@pytest.fixture(autouse=True)
def loaded(monkeypatch: pytest.MonkeyPatch) -> Loaded:
    return Loaded(monkeypatch)


def hover(pages: list[Page] = PAGES, num_pages: int = 1) -> HoverTask:
    return HoverTask(Bm25Index(pages), num_pages)


def changed(**changes: Any) -> dict[str, ModelSpec]:
    return {**NOWHERE, "a": replace(NOWHERE["a"], **changes)}


def runner_of(
    folder: Path,
    task: Benchmark,
    models: dict[str, ModelSpec],
    **changes: Any,
) -> Runner:
    experiment, stop, shared = small_experiment(**changes), Stop(), Models(models)
    journal = Journal(folder / "rows.jsonl")
    prompts = PromptSearch(
        task, shared, experiment.search, Journal(folder / "p.jsonl"), folder, 1, stop
    )
    none = Examples(source="none")
    return Runner(experiment, task, shared, prompts, journal, none, none, stop)


def row_key(
    folder: Path, task: Benchmark, models: dict[str, ModelSpec] = NOWHERE, seed: int = 0
) -> str:
    runner = runner_of(folder, task, models)
    condition = replace(runner.experiment.conditions[0], template="gsm8k")
    program = task.program("c_gen" if isinstance(task, JudgeTask) else "gsm8k", models["a"])
    return runner.row_key(Cell(condition, seed), program, CLAIM)


def search_key(
    folder: Path, task: Benchmark, models: dict[str, ModelSpec] = NOWHERE, step: PromptStep = INFILL
) -> str:
    """The key of the step, by the name of the folder that its search gets."""
    search = runner_of(folder, task, models).prompts
    template = "c_gen_masked" if isinstance(task, JudgeTask) else "gsm8k"
    asked = SearchTask(template=template, steps=(step,), lm="a", shots=(CLAIM,), seed=0)
    return search._key(asked, step, {"judge": "Judge."})


def test_equal_circumstances_have_equal_keys(tmp_path: Path) -> None:
    elsewhere = specs("http://127.0.0.1:10/v1")
    for key in (row_key, search_key):
        assert key(tmp_path / "one", hover()) == key(tmp_path / "two", hover(), elsewhere)


@pytest.mark.parametrize("key", [row_key, search_key])
def test_hover_depends_on_its_corpus_and_on_the_pages_of_a_hop(tmp_path: Path, key: Any) -> None:
    other = [PAGES[0], Page("Snow", "It snows in Bergen!")]
    tasks = [hover(), hover(num_pages=2), hover(other), hover(PAGES[::-1]), hover(PAGES[:1])]
    assert len({key(tmp_path, task) for task in tasks}) == len(tasks)


@pytest.mark.parametrize("key", [row_key, search_key])
def test_judges_depend_on_how_they_are_asked_and_on_their_system_text(
    tmp_path: Path, key: Any
) -> None:
    judges = [JudgeSpec(), JudgeSpec(runs=3), JudgeSpec(retries=0), JudgeSpec(temperature=1.0)]
    keys = {key(tmp_path, JudgeTask(spec)) for spec in judges}
    for system in ("system_v1", "system_v2"):
        keys.add(key(tmp_path, JudgeTask(JudgeSpec()), changed(system=system)))
    assert len(keys) == len(judges) + 2


@pytest.mark.parametrize("key", [row_key, search_key])
def test_answers_depend_on_the_lm_its_options_and_the_form_of_its_prompts(
    tmp_path: Path, key: Any
) -> None:
    options = {**NOWHERE["a"].options, "max_tokens": 7}
    models = [
        NOWHERE,
        changed(lm="openai/c"),
        changed(options=options),
        changed(plain_prompts=True),
    ]
    assert len({key(tmp_path, Gsm8kTask(), specs) for specs in models}) == len(models)


def test_a_search_depends_on_the_weights_behind_the_denoisers_name(
    tmp_path: Path, loaded: Loaded
) -> None:
    first, copro = (search_key(tmp_path, Gsm8kTask(), step=step) for step in (INFILL, COPRO))
    loaded.weights = "second"
    assert search_key(tmp_path, Gsm8kTask()) != first
    assert search_key(tmp_path, Gsm8kTask(), step=COPRO) == copro
    assert search_key(tmp_path, Gsm8kTask(), changed(context_length=99)) != first


def test_a_row_depends_on_the_weights_of_a_denoiser_that_answers(
    tmp_path: Path, loaded: Loaded
) -> None:
    models = changed(lm="diffusion", options={"max_tokens": 4})
    first = row_key(tmp_path, Gsm8kTask(), models)
    assert row_key(tmp_path, Gsm8kTask(), models) == first
    loaded.weights = "second"
    assert row_key(tmp_path, Gsm8kTask(), models) != first


def test_perplexity_is_measured_again_for_other_weights_and_another_context(
    tmp_path: Path, loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_summeval(tmp_path / "data")
    asked: list[str] = []

    def perplexity(denoiser: Any, prompts: Any, *_: Any, **__: Any) -> GoldPerplexity:
        asked.append(denoiser.name)
        return GoldPerplexity(4.0, 0.1, len(prompts), 0)

    monkeypatch.setattr(perplexity_module, "measure_perplexity", perplexity)

    def measure(models: dict[str, ModelSpec]) -> None:
        plain = {"label": {"Prompt": "C-gen"}, "model": "a", "template": "c_gen"}
        changes = {"measures": ["perplexity"], "seeds": [0], "conditions": [plain]}
        task = JudgeTask(JudgeSpec())
        runner = runner_of(tmp_path / "out", task, models, **changes)
        runner.test = runner.shots = load_dataset("summeval", data=data)
        (cell,) = runner.cells()
        found = [runner.run_cell(cell) for _ in range(2)]
        assert found[0] == found[1]
        assert found[0].perplexity == GoldPerplexity(4.0, 0.1, 18, 0)

    measure(NOWHERE)
    measure(NOWHERE)
    assert asked == ["a-denoiser@first"]
    measure(changed(context_length=99))
    loaded.weights = "second"
    measure(NOWHERE)
    assert asked == ["a-denoiser@first", "a-denoiser@first", "a-denoiser@second"]


def test_a_denoiser_that_answers_gets_a_batch_of_calls_at_a_time(tmp_path: Path) -> None:
    found: list[int] = []

    class Counting(FilledIn):
        def __call__(self, program: Any, shots: Any, step: InfillStep) -> dspy.Module:
            found.append(step.threads)
            return program

    with loopback(lambda *_: "[RESULT] 3") as server:
        served = specs(server.url)
        diffusion = {**served, "a": replace(served["a"], lm="diffusion", options={"max_batch": 4})}
        for models in (served, diffusion):
            search = runner_of(tmp_path / str(len(found)), Gsm8kTask(), models).prompts
            search.threads = 8
            with infilled_by(Counting()):
                search.find(SearchTask(template="gsm8k", steps=(INFILL,), lm="a", shots=(), seed=0))
    assert found == [8, 4]
