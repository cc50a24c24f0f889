"""The code that a report gives, run: it makes the search that it was written for."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import dspy
import pytest
from doubles import WordCountScorer, WordDenoiser, rule_lm
from synthetic_results import synthetic
from test_progress import ROWS, TASK, right_if_told_briefly

from dspy_diffusion_infill import DiffusionInfill, Prefix, Sampling, TemplateAdapter
from dspy_diffusion_infill.optimizer.acceptance import MetricFirst
from dspy_diffusion_infill.optimizer.code import NotCodeError, code_of, description
from dspy_diffusion_infill.optimizer.run_files import read_run
from dspy_diffusion_infill.report.markdown import markdown
from dspy_diffusion_infill.report.snippet import NOT_KNOWN, snippet

KEY = "sk-0123456789abcdef"
LONG = "never touch this " * 17 + "to its end."  # 300 characters
NOT_IN_CODE = ("log_dir", "search_callbacks", "display_progress")


def metric(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> bool:
    return example.colour == prediction.colour


@pytest.fixture
def as_configured():
    before = {name: dspy.settings.get(name) for name in ("lm", "adapter")}
    yield
    dspy.configure(**before)


CASES: dict[str, dict[str, Any]] = {
    "default options": {"guidance": "auto"},
    "no guidance": {},
    "sampling": {"sampling": Sampling(steps=7, temperature=0.5, cache="window")},
    "protect": {"protect": [re.compile("a.b", re.IGNORECASE | re.DOTALL), LONG, "re.compile('x')"]},
    "own guidance": {"guidance": WordCountScorer()},
    "valset": {"valset": ROWS[:2]},
    "prices and acceptance": {
        "prices": {"test/rule": (1, 2.5)},
        "acceptance": MetricFirst(min_gain=0.1),
        "metric": metric,
    },
    "masking": {"masking": Prefix(4), "predictors": ["self"], "order": "left_to_right"},
    "several masks": {"window": 6, "stride": 3, "mask": [3, 6], "sweeps": 1},
}


def searched(given: dict[str, Any], **more: Any) -> tuple[DiffusionInfill, dspy.Module, dict]:
    """The optimizer, its result, and what the code calls by name."""
    options = {"guidance": None, "max_metric_calls": 12, "num_threads": 1, **given, **more}
    data = {"valset": options.pop("valset")} if "valset" in options else {}
    lm = rule_lm(right_if_told_briefly)[0]
    lm.kwargs.update(api_key=KEY, temperature=0.5, extra_headers={"Authorization": KEY})
    denoiser = WordDenoiser()
    student = dspy.Predict(dspy.Signature("text -> colour", TASK))
    optimizer = DiffusionInfill(denoiser=denoiser, display_progress=False, **options)
    with dspy.context(lm=lm, adapter=TemplateAdapter()):
        better = optimizer.compile(student, ROWS, **data)
    names = {"student": student, "trainset": ROWS, "lm": lm, "denoiser": denoiser, **data}
    return optimizer, better, names | {"guidance": options["guidance"], "metric": metric}


def params(optimizer: DiffusionInfill) -> dict[str, Any]:
    return {k: v for k, v in optimizer.get_params().items() if k not in NOT_IN_CODE}


@pytest.mark.parametrize("case", CASES)
def test_the_code_makes_an_equal_search(case: str, as_configured: None):
    optimizer, better, names = searched(CASES[case])
    code = snippet(better.detailed_results)
    exec(compile(code, "again", "exec"), names)
    assert params(names["optimizer"]) == params(optimizer)
    again = names["better"].detailed_results
    assert again.settings == better.detailed_results.settings
    assert again == better.detailed_results


def test_the_code_says_what_it_needs_and_what_that_was():
    _, better, _ = searched({**CASES["own guidance"], **CASES["valset"]})
    lines = snippet(better.detailed_results).splitlines()
    assert lines == [
        "import dspy",
        "from dspy_diffusion_infill import DiffusionInfill, TemplateAdapter",
        "",
        "# Define these first; they are not kept as code:",
        "# student: an object of dspy.predict.predict.Predict",
        "# trainset: 5 examples",
        "# valset: 2 examples",
        "# lm: dspy.LM('test/rule', temperature=0.5), without key and address",
        "# denoiser: an object of doubles.WordDenoiser, named 'word-denoiser'",
        "# guidance: an object of doubles.WordCountScorer, named 'word-count'",
        "dspy.configure(lm=lm, adapter=TemplateAdapter())",
        "optimizer = DiffusionInfill(",
        "    denoiser=denoiser,",
        "    max_metric_calls=12,",
        "    order='adaptive',",
        "    validation='racing',",
        "    examples='failures',",
        "    guidance=guidance,",
        "    num_threads=1,",
        ")",
        "better = optimizer.compile(student, trainset, valset=valset)",
    ]


def test_a_teacher_and_lms_of_the_program_are_named_and_no_lm_is_configured():
    student = dspy.Predict(dspy.Signature("text -> colour", TASK))
    student.set_lm(rule_lm(right_if_told_briefly)[0])
    optimizer = DiffusionInfill(
        denoiser=WordDenoiser(), guidance=None, max_metric_calls=12, display_progress=False
    )
    better = optimizer.compile(student, ROWS, teacher=student.deepcopy())
    lines = snippet(better.detailed_results).splitlines()
    own = ", with LMs of its own: test/rule"
    assert f"# student: an object of dspy.predict.predict.Predict{own}" in lines
    assert "dspy.configure(adapter=None)  # None: DSPy's own choice, ChatAdapter" in lines
    assert "# teacher: an object of dspy.predict.predict.Predict" in lines
    assert lines[-1] == "better = optimizer.compile(student, trainset, teacher=teacher)"


def test_no_key_is_in_the_records_and_the_code_outlives_the_process(tmp_path: Path):
    lm = dspy.LM("test/other", api_key=KEY, api_base="https://secret.example", headers={"k": KEY})
    _, better, _ = searched({}, log_dir=tmp_path)
    code = snippet(better.detailed_results)
    assert snippet(read_run(tmp_path)) == code and code in markdown(better.detailed_results)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert files and not [file for file in files if KEY.encode() in file.read_bytes()]
    assert KEY not in description(lm) and "secret" not in description(lm)


def test_settings_hold_whole_texts_and_prices():
    _, better, _ = searched({**CASES["protect"], "prices": {"test/rule": (1, 2)}})
    options = better.detailed_results.settings["options"]
    pattern = "re.compile('a.b', re.IGNORECASE|re.DOTALL)"
    assert options["protect"] == [pattern, LONG, "re.compile('x')"]
    assert len(LONG) == 300 and options["prices"] == {"test/rule": [1.0, 2.0]}


@pytest.mark.parametrize(
    "value",
    [
        (1,),
        [None, True, -2.5, "a'\"\n\u202e"],
        {"a": (1, 2)},
        Path("some/where"),
        re.compile("(?x) a # b"),
        re.compile("é" * 300),
        Sampling(),
        Sampling(steps=3, top_k=4),
        Prefix(3, window=0),
    ],
)
def test_a_value_comes_back_from_its_code(value: Any):
    imports: set[tuple[str, str]] = set()
    code, names = code_of(value, imports), {}
    for module, name in imports:
        exec(f"from {module} import {name}" if name else f"import {module}", names)
    assert eval(code, names) == value and "\u202e" not in code


@pytest.mark.parametrize("adapter", [dspy.JSONAdapter(), TemplateAdapter(system="Be short.")])
def test_an_adapter_is_written_with_its_arguments(adapter: dspy.Adapter):
    made = eval(code_of(adapter, set()), {"dspy": dspy, "TemplateAdapter": TemplateAdapter})
    assert type(made) is type(adapter) and vars(made) == vars(adapter)


def test_what_has_no_code_is_refused_and_not_guessed():
    for value in (metric, WordCountScorer(), object(), dspy.LM("test/x"), [WordCountScorer()]):
        with pytest.raises(NotCodeError):
            code_of(value, set())
    scorer = WordCountScorer(name=f"vllm/llama@https://me:{KEY}@secret.example/v1?key={KEY}")
    assert description(scorer) == "an object of doubles.WordCountScorer, named 'vllm/llama'"
    assert description(metric) == "test_rerun.metric, a function"


def test_records_without_the_code_say_so():
    assert snippet(replace(synthetic(1), settings={})) == NOT_KNOWN
