"""The estimate bounds what a run really takes: calls counted at a loopback server."""

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from doubles import WordDenoiser
from loopback import loopback
from small_experiment import (
    NOWHERE,
    NUM_TEST,
    PLAIN,
    FilledIn,
    run_small,
    small_experiment,
    specs,
    write_summeval,
)

from dspy_diffusion_infill.evaluation.hover import HoverProgram
from dspy_diffusion_infill.evaluation.retrieval import Bm25Index, Page
from dspy_diffusion_infill.reproduction.costs import ModelCost, remaining_costs
from dspy_diffusion_infill.reproduction.experiment import ModelSpec
from dspy_diffusion_infill.reproduction.experiment_run import make_runner
from dspy_diffusion_infill.reproduction.infill_step import infill
from dspy_diffusion_infill.reproduction.journals import RunStopped, Stop
from dspy_diffusion_infill.reproduction.models import Models
from dspy_diffusion_infill.reproduction.runner import Runner
from dspy_diffusion_infill.reproduction.tasks import HoverTask

SEARCH = {"proposals": 2, "examples": 2, "steps": 4}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_summeval(tmp_path / "data")


@pytest.fixture
def denoiser(monkeypatch: pytest.MonkeyPatch) -> WordDenoiser:
    made = WordDenoiser(words=[f"word{k}" for k in range(400)])  # so many that few are repeated
    monkeypatch.setattr(Models, "denoiser", lambda self, name: made)
    return made


def runner_of(
    data: Path, output: Path, models: dict[str, ModelSpec] | None = None, **changes: Any
) -> Runner:
    """What ``run_experiment`` would run in this folder."""
    shared = Models(models or specs(NOWHERE))
    return make_runner(small_experiment(**changes), shared, Stop(), data=data, output=output)


def costs(*arguments: Any, **changes: Any) -> dict[str, ModelCost]:
    return {cost.model: cost for cost in remaining_costs(runner_of(*arguments, **changes))}


def step(*steps: dict, template: str = "c_gen") -> dict:
    return {"label": {"P": str(steps)}, "model": "a", "template": template, "steps": list(steps)}


def test_calls_of_rows_are_exact_where_no_verdict_is_asked_for_twice(data, tmp_path) -> None:
    options = {"conditions": PLAIN, "judge": {"runs": 2, "retries": 0, "temperature": 1.0}}
    found = costs(data, tmp_path / "none", **options)
    with loopback(lambda *_: "[RESULT] 3") as server:
        run_small(data, tmp_path / "out", server.url, **options)
        assert found["a"].calls == len(server.bodies) == 2 * 2 * NUM_TEST


def test_retries_of_unreadable_verdicts_are_part_of_the_bound(data, tmp_path) -> None:
    options = {"conditions": PLAIN, "judge": {"retries": 2}}
    with loopback(lambda *_: "no verdict") as server:
        run_small(data, tmp_path / "out", server.url, **options)
        assert costs(data, tmp_path / "none", **options)["a"].calls == len(server.bodies)


def test_an_estimate_asks_nobody_and_opens_no_model(data, tmp_path, monkeypatch) -> None:
    def opened(self: Models, name: str, **_: Any) -> None:
        raise AssertionError(f"{name} was opened")

    for method in ("lm", "denoiser", "identity"):
        monkeypatch.setattr(Models, method, opened)
    assert costs(data, tmp_path / "out")["a"].calls > 0


def test_what_is_journaled_costs_nothing(data, tmp_path, denoiser) -> None:
    options = {"judge": {"retries": 0}}
    with loopback(lambda *_: "[RESULT] 3") as server:
        run_small(data, tmp_path / "out", server.url, infill=FilledIn(), **options)
        left = costs(data, tmp_path / "out", specs(server.url), **options)
    assert {str(cost) for cost in left.values()} == {
        "a: nothing left to do",
        "b: nothing left to do",
    }


@pytest.mark.parametrize("num_answers", [1, 7])
def test_after_a_stop_the_estimate_is_what_the_rest_takes(data, tmp_path, num_answers) -> None:
    def stopping(number: int, body: dict) -> str:
        if number == num_answers:
            os.kill(os.getpid(), signal.SIGTERM)
        return "[RESULT] 3"

    options = {"conditions": PLAIN, "judge": {"retries": 0}, "threads": 1}
    with loopback(stopping) as server:
        with pytest.raises(RunStopped):
            run_small(data, tmp_path / "out", server.url, **options)
        before = len(server.bodies)
        left = costs(data, tmp_path / "out", specs(server.url), **options)["a"].calls
        run_small(data, tmp_path / "out", server.url, **options)
        assert left == len(server.bodies) - before == 2 * NUM_TEST - before


@pytest.mark.parametrize("template", ["c_gen", "c_gen_masked"])
@pytest.mark.parametrize("prefix", [None, 5])
@pytest.mark.parametrize("budget", [None, 6])
def test_a_search_stays_below_its_estimate(
    data, tmp_path, denoiser, template, prefix, budget
) -> None:
    condition = step({"infill": "a"} | ({"prefix": prefix} if prefix else {}), template=template)
    options = {
        "conditions": [condition],
        "seeds": [0],
        "judge": {"retries": 0},
        "search": SEARCH | {"max_metric_calls": budget, "window": 16, "stride": 16},
    }
    found = costs(data, tmp_path / "none", **options)["a"]
    with loopback(lambda *_: "[RESULT] 3") as server:
        run_small(data, tmp_path / "out", server.url, infill=infill, **options)
        assert NUM_TEST < len(server.bodies) <= found.calls
    assert 0 < denoiser.num_passes <= found.denoiser_passes
    if budget is not None:
        assert found.calls == NUM_TEST + budget


def test_passes_are_counted_by_the_masks_of_a_window(data, tmp_path) -> None:
    def passes(condition: dict, **search: int) -> int:
        found = costs(data, tmp_path, conditions=[condition], seeds=[0], search=SEARCH | search)
        return found["a"].denoiser_passes

    in_front = step({"infill": "a", "prefix": 100})
    assert passes(in_front, steps=128) == 2 * 100
    assert passes(in_front, steps=10) == 2 * 10
    assert passes(in_front, steps=10, sweeps=3) == 3 * 2 * 10
    # c_gen_masked has two marks of 32.
    assert passes(step({"infill": "a"}, template="c_gen_masked"), steps=128) == 2 * 64
    narrow, wide = passes(step({"infill": "a"}), stride=4), passes(step({"infill": "a"}), stride=8)
    assert narrow == pytest.approx(2 * wide, abs=2 * 4)


def test_what_chains_begin_with_is_counted_once(data, tmp_path) -> None:
    copro, more = {"copro": "b"}, {"infill": "a"}
    alone = costs(data, tmp_path, conditions=[step(copro)], search=SEARCH)
    both = costs(data, tmp_path, conditions=[step(copro), step(copro, more)], search=SEARCH)
    assert both["b"].calls == alone["b"].calls == 2 * 10 * 3
    assert both["a"].denoiser_passes > 0


def test_gepa_is_counted_by_its_budget(data, tmp_path) -> None:
    options = {"judge": {"retries": 0}, "seeds": [0], "search": {"gepa_metric_calls": 40}}
    found = costs(data, tmp_path, conditions=[step({"gepa": "b"})], **options)
    assert (found["a"].calls, found["b"].calls) == (NUM_TEST + 40, 10)


def test_perplexity_takes_passes_and_no_calls(data, tmp_path) -> None:
    options = {"measures": ["perplexity"], "perplexity_rows": 3, "perplexity_samples": 8}
    plain = [{"label": {"P": "plain"}, "model": "a", "template": "c_gen"}]
    found = costs(data, tmp_path, conditions=plain, **options)["a"]
    assert (found.calls, found.denoiser_passes) == (0, 2 * 3 * 8)


def test_demos_make_prompts_longer(data, tmp_path) -> None:
    def tokens(num_demos: int) -> int:
        condition = {"label": {}, "model": "a", "template": "c_gen", "demos": num_demos}
        return costs(data, tmp_path, conditions=[condition])["a"].prompt_tokens

    # Each demo brings the template again, a row and its response.
    assert 3 * tokens(0) < tokens(2) < 3.05 * tokens(0)


def test_prompt_tokens_are_near_those_that_are_sent(data, tmp_path) -> None:
    options = {"conditions": PLAIN, "seeds": [0], "judge": {"retries": 0}}
    found = costs(data, tmp_path / "none", **options)["a"]
    with loopback(lambda *_: "[RESULT] 3") as server:
        run_small(data, tmp_path / "out", server.url, **options)
        sent = sum(len(str(body["messages"][0]["content"])) for body in server.bodies) / 4
    assert found.prompt_tokens == pytest.approx(sent, rel=0.1)


def test_money_and_gpu_hours(data, tmp_path) -> None:
    litellm = pytest.importorskip("litellm")
    options = {"conditions": PLAIN, "seeds": [0], "judge": {"retries": 0}}
    priced = ModelSpec(lm="openai/gpt-4o-mini", options={"max_tokens": 10})
    found = costs(data, tmp_path, {"a": priced}, **options)["a"]
    assert found.completion_tokens == 10 * found.calls
    exact = litellm.cost_per_token(
        model="openai/gpt-4o-mini",
        prompt_tokens=found.prompt_tokens,
        completion_tokens=found.completion_tokens,
    )
    assert found.dollars == pytest.approx(sum(exact)) and found.gpu_hours is None
    served = ModelSpec(lm="hosted_vllm/nobody/knows", options={"max_tokens": 10}, billions=13)
    found = costs(data, tmp_path, {"a": served}, **options)["a"]
    tokens = found.prompt_tokens + found.completion_tokens
    assert found.gpu_hours == pytest.approx(2 * 13e9 * tokens / 1e14 / 3600, rel=0.001)
    assert found.dollars is None


def test_a_diffusion_lm_reads_prompt_and_answer_in_every_step(data, tmp_path) -> None:
    options = {"conditions": PLAIN, "seeds": [0], "judge": {"retries": 2}}
    of_dlm = {"max_tokens": 1000, "steps": 5}
    diffusion = ModelSpec(lm="diffusion", denoiser="x", options=of_dlm, billions=8)
    found = costs(data, tmp_path, {"a": diffusion}, **options)["a"]
    tokens = found.prompt_tokens + found.completion_tokens  # with all retries
    most = 5 * 2 * 8e9 * tokens / 4e14 / 3600
    assert found.most_gpu_hours == pytest.approx(most, rel=0.001)
    assert found.gpu_hours == pytest.approx(most / 3, rel=0.001)
    # A pass of a short text takes 22 ms.
    short = replace(diffusion, options={"max_tokens": 1, "steps": 1})
    found = costs(data, tmp_path, {"a": short}, **options)["a"]
    assert found.most_gpu_hours == pytest.approx(found.calls * 0.022 / 3600)


def test_a_claim_takes_as_many_calls_as_its_program_makes() -> None:
    index = Bm25Index([Page("Rain", "It rained in town. " * 5), Page("Snow", "It snowed.")])
    task = HoverTask(index, num_pages=2)
    with loopback(lambda *_: "nothing") as server:
        import dspy

        with dspy.context(
            lm=server.lm(), adapter=dspy.ChatAdapter(use_json_adapter_fallback=False)
        ):
            HoverProgram(index, num_pages=2)(claim="It rained and snowed.")
        assert len(server.bodies) == task.num_calls
    lengths = [len(str(page)) for page in index.pages]
    assert task.context_chars == sum(lengths)


def test_the_line_of_a_model_says_what_it_takes() -> None:
    cost = ModelCost("a", 1200, 34000, 9600, 80, 0.125, 1234, 1234.5)
    assert str(cost) == (
        "a: 1,200 calls, 34,000 prompt tokens, up to 9,600 completion tokens, up to 80 denoiser "
        "passes, about 0.12 GPU hours (at most 1,200), up to $1,234.50"
    )
    assert str(ModelCost("b", 0, 0, 0, 0, 0.0, 0.0, None)) == "b: nothing left to do"
