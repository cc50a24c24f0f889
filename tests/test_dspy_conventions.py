"""What DSPy expects of an optimizer, one test a convention."""

import asyncio
import copy
import enum
import inspect
import pickle
import random
import re
import threading
from collections import Counter
from typing import Literal

import cloudpickle
import dspy
import numpy
import pydantic
import pytest
from doubles import WordDenoiser, rule_lm
from dspy.adapters.baml_adapter import BAMLAdapter
from dspy.teleprompt.teleprompt import Teleprompter
from dspy.utils.callback import BaseCallback

from dspy_diffusion_infill.optimizer.diffusion_infill import DiffusionInfill
from dspy_diffusion_infill.programs import instructions_of
from dspy_diffusion_infill.template_adapter import TemplateAdapter

FIND, NAME = "Find the clue in what it says", "Name the colour that is meant"
ROWS = [
    dspy.Example(text=f"number {k} is {colour}", colour=colour).with_inputs("text")
    for k, colour in enumerate(["red", "blue", "green", "grey"])
]


class Steps(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.find = dspy.Predict(dspy.Signature("text -> clue", FIND))
        self.name = dspy.Predict(dspy.Signature("clue -> colour", NAME))

    def forward(self, text: str) -> dspy.Prediction:
        return self.name(clue=self.find(text=text).clue)


def repeat_if_asked(prompt: str) -> str:
    """Finds any clue, and names the colour of row 0, or of all if the prompt holds "word"."""
    field, value = re.findall(r"(Text|Clue): (.+)", prompt)[-1]
    return value if field == "Text" or "number 0" in prompt or "word" in prompt else "no idea"


def ends_with_colour(example, prediction, trace=None) -> bool:
    return prediction.colour.endswith(example.colour)


def optimizer(metric=ends_with_colour, **options) -> DiffusionInfill:
    options = {"num_proposals": 2, "sweeps": 1, "num_threads": 1, **options}
    return DiffusionInfill(metric, WordDenoiser(), guidance=None, display_progress=False, **options)


def compiled(student=None, rows=ROWS, metric=ends_with_colour, lm=None, **options) -> dspy.Module:
    arguments = {name: options.pop(name) for name in ("teacher", "valset") if name in options}
    with dspy.context(lm=lm or rule_lm(repeat_if_asked)[0], adapter=TemplateAdapter()):
        return optimizer(metric, **options).compile(student or Steps(), rows, **arguments)


def test_01_it_is_a_teleprompter_whose_compile_takes_dspys_keywords():
    assert isinstance(optimizer(), Teleprompter)
    asked = inspect.signature(Teleprompter.compile).parameters
    taken = inspect.signature(DiffusionInfill.compile).parameters
    assert set(asked) - {"kwargs"} == set(taken)
    assert taken["teacher"].default is taken["valset"].default is None


def test_02_the_student_is_left_as_it_was():
    student = Steps()
    predictors, state = student.predictors(), copy.deepcopy(student.dump_state())
    attributes = set(vars(student))
    compiled(student)
    assert all(a is b for a, b in zip(student.predictors(), predictors, strict=True))
    assert student.dump_state() == state
    assert set(vars(student)) == attributes


def test_03_the_result_is_a_new_program_of_the_same_kind_and_shape():
    student = Steps()
    better = compiled(student)
    assert type(better) is Steps and better is not student
    assert [name for name, _ in better.named_predictors()] == ["find", "name"]
    assert not {id(p) for p in better.predictors()} & {id(p) for p in student.predictors()}
    assert instructions_of(better) != instructions_of(student)


def test_04_the_rows_are_left_as_they_were():
    rows = [row.copy() for row in ROWS]
    given = list(rows)
    compiled(rows=rows, valset=rows[:2])
    assert rows == ROWS and all(a is b for a, b in zip(rows, given, strict=True))
    assert all(row._input_keys == {"text"} for row in rows)


def test_05_the_valset_alone_scores_and_is_the_trainset_where_none_is_given():
    assert len(compiled().detailed_results.scores_before) == len(ROWS)
    results = compiled(valset=ROWS[:2]).detailed_results
    assert len(results.scores_before) == 2
    assert all(len(trial.scores) == 2 for trial in results.trials)


def test_06_the_teacher_is_none_or_a_program_or_a_list():
    teacher = Steps()
    first, second = (compiled(teacher=one, seed=2) for one in (None, [teacher]))
    assert instructions_of(first) == instructions_of(second)
    assert instructions_of(compiled(teacher=teacher, seed=2)) == instructions_of(first)


def test_07_no_rows_and_no_lm_are_errors_before_any_call():
    lm, engine = rule_lm(repeat_if_asked)
    with pytest.raises(ValueError, match="trainset must hold at least one example"):
        compiled(rows=[], lm=lm)
    with dspy.context(lm=None), pytest.raises(ValueError, match="no LM is configured"):
        optimizer().compile(Steps(), ROWS)
    assert engine.prompts == []


def test_08_a_misspelt_argument_is_a_type_error():
    with pytest.raises(TypeError, match="train_set"):
        optimizer().compile(Steps(), ROWS, train_set=ROWS)
    with pytest.raises(TypeError, match="num_proposal"):
        DiffusionInfill(num_proposal=3)


def test_09_parameters_are_a_copy_that_loggers_may_change():
    one = optimizer(seed=3)
    params = one.get_params()
    assert params["seed"] == 3 and params["metric"] is ends_with_colour
    params.clear()
    assert one.seed == 3


def test_10_equal_seeds_give_equal_programs_and_other_seeds_others():
    found = [compiled(seed=seed).detailed_results.trials for seed in (1, 1, 2)]
    assert found[0] == found[1] != found[2]


def test_11_global_random_state_is_left_alone():
    student = Steps()  # DSPy draws a number for each new predictor
    random.seed(7)
    numpy.random.seed(7)
    before = random.getstate(), numpy.random.get_state()[1].tolist()
    compiled(student)
    assert (random.getstate(), numpy.random.get_state()[1].tolist()) == before


def test_12_settings_are_left_alone():
    with dspy.context(lm=rule_lm(repeat_if_asked)[0], adapter=TemplateAdapter(), trace=[]):
        before = dict(dspy.settings.copy())
        optimizer(max_errors=3, num_threads=2).compile(Steps(), ROWS)
        assert dict(dspy.settings.copy()) == before
        assert dspy.settings.trace == []


def test_13_the_number_of_threads_is_that_of_the_settings():
    seen = set()

    def metric(example, prediction, trace=None) -> bool:
        seen.add(threading.current_thread())
        return ends_with_colour(example, prediction)

    with dspy.context(num_threads=1):
        compiled(metric=metric, num_threads=None)
    assert seen == {threading.main_thread()}
    with dspy.context(num_threads=2):
        compiled(metric=metric, num_threads=None)
    assert len(seen) > 1


def test_14_the_number_of_errors_is_that_of_the_settings():
    lm = rule_lm(lambda prompt: str(1 / 0))[0]
    with dspy.context(max_errors=2), pytest.raises(Exception, match="max_errors=2"):
        compiled(lm=lm)


def test_15_demos_are_kept_and_shown():
    student = Steps()
    student.name.demos = [dspy.Example(clue="number 9 is teal", colour="teal")]
    assert compiled(student).name.demos == student.name.demos


def test_16_bound_lms_are_shared_and_each_predictor_asks_its_own():
    student = Steps()
    (finding, found), (naming, named) = rule_lm(repeat_if_asked), rule_lm(repeat_if_asked)
    student.find.lm, student.name.lm = finding, naming
    other, asked = rule_lm(repeat_if_asked)
    better = compiled(student, lm=other)
    assert better.find.lm is finding and better.name.lm is naming
    assert len(found.prompts) == len(named.prompts) == better.detailed_results.metric_calls
    assert asked.prompts == []


def test_17_an_lm_set_on_the_result_is_asked():
    better = compiled()
    lm, engine = rule_lm(lambda prompt: "teal")
    better.set_lm(lm)
    with dspy.context(adapter=TemplateAdapter()):
        assert better(text="x").colour == "teal"
    assert len(engine.prompts) == 2


def test_18_histories_and_traces_do_not_leak_into_programs():
    student = Steps()
    better = compiled(student)
    for program in (student, better, *(row["program"] for row in better.candidate_programs)):
        assert [len(one.history) for one in (program, *program.predictors())] == [0, 0, 0]
        assert all(predictor.traces == [] for predictor in program.predictors())


@pytest.mark.parametrize("num_threads", [1, 3])
def test_19_usage_is_summed_over_threads(num_threads):
    lm, engine = rule_lm(repeat_if_asked)
    with dspy.track_usage() as tracker:
        better = compiled(lm=lm, num_threads=num_threads)
    assert tracker.get_total_tokens()["test/rule"]["total_tokens"] == 2 * len(engine.prompts)
    assert better.detailed_results.lm_tokens == 2 * len(engine.prompts)


class Counting(BaseCallback):
    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def on_lm_start(self, call_id, instance, inputs):
        self.counts["lm"] += 1

    def on_module_start(self, call_id, instance, inputs):
        self.counts[type(instance).__name__] += 1

    def on_compile_start(self, call_id, instance, inputs):
        self.counts["compile"] += 1


def test_20_callbacks_fire_once_a_call():
    (lm, engine), callback = rule_lm(repeat_if_asked), Counting()
    with dspy.context(callbacks=[callback]):
        calls = compiled(lm=lm, num_threads=2).detailed_results.metric_calls
    assert callback.counts == {
        "lm": len(engine.prompts),
        "Predict": 2 * calls,
        "Steps": calls,
        "compile": 1,
    }


@pytest.mark.parametrize("score", [True, 1, 0.5, dspy.Prediction(score=0.25, feedback="fair")])
def test_21_a_metric_returns_what_dspy_takes(score):
    results = compiled(metric=lambda e, p, trace=None: score, max_metric_calls=8).detailed_results
    assert results.score_before == float(getattr(score, "score", score))


def test_22_a_metric_takes_two_arguments_or_a_trace_or_gepas_five():
    given = []

    def five(gold, pred, trace=None, pred_name=None, pred_trace=None) -> bool:
        given.append((trace, pred_name, pred_trace))
        return ends_with_colour(gold, pred)

    def traced(example, prediction, trace) -> bool:
        given.append((trace, None, None))
        return ends_with_colour(example, prediction)

    metrics = [five, traced, lambda example, prediction: ends_with_colour(example, prediction)]
    results = [compiled(metric=one).detailed_results for one in metrics]
    assert results[0].trials == results[1].trials == results[2].trials
    assert set(given) == {(None, None, None)}


def test_23_candidate_programs_are_whole_programs_best_first():
    better = compiled()
    scores = [row["score"] for row in better.candidate_programs]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == better.detailed_results.score_after
    assert better.total_calls == better.detailed_results.metric_calls
    with dspy.context(lm=rule_lm(repeat_if_asked)[0], adapter=TemplateAdapter()):
        for row in better.candidate_programs:
            right = [ends_with_colour(one, row["program"](**one.inputs())) for one in ROWS]
            assert sum(right) / len(ROWS) == row["score"]
            assert not hasattr(row["program"], "candidate_programs")


class Frozen(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.steps, self.last = Steps(), dspy.Predict(dspy.Signature("clue -> colour", NAME))
        self.steps._compiled = True

    def forward(self, text: str) -> dspy.Prediction:
        return self.last(clue=self.steps(text=text).colour)


def test_24_frozen_parts_are_left_alone():
    better = compiled(Frozen())
    assert {trial.predictor for trial in better.detailed_results.trials} == {"last"}
    assert instructions_of(better.steps) == {"find": FIND, "name": NAME}


def test_25_the_result_may_be_optimised_again_and_an_optimised_program_be_the_student():
    bootstrap = dspy.BootstrapFewShot(metric=ends_with_colour, max_labeled_demos=0)
    first = compiled()
    assert not first._compiled
    with dspy.context(lm=rule_lm(repeat_if_asked)[0], adapter=TemplateAdapter()):
        second = bootstrap.compile(first, trainset=ROWS)
    assert second._compiled and second.find.demos
    third = compiled(second, seed=1)
    assert instructions_of(second) == instructions_of(first)
    assert third.find.demos == second.find.demos
    assert third.detailed_results.trials


def test_26_state_is_saved_and_loaded_with_the_instructions(tmp_path):
    better = compiled()
    better.save(tmp_path / "program.json")
    loaded = Steps()
    loaded.load(tmp_path / "program.json")
    assert instructions_of(loaded) == instructions_of(better)


def test_27_whole_programs_are_saved_loaded_copied_and_pickled_and_optimizers_too(tmp_path):
    better = compiled()
    better.save(tmp_path, save_program=True)
    loaded = dspy.load(tmp_path, allow_pickle=True)
    for again in (loaded, better.deepcopy(), cloudpickle.loads(cloudpickle.dumps(better))):
        assert instructions_of(again) == instructions_of(better)
        assert again.detailed_results == better.detailed_results
    assert pickle.loads(pickle.dumps(optimizer(seed=3))).seed == 3


class Kind(enum.Enum):
    WARM, COLD = "warm", "cold"


class Shade(pydantic.BaseModel):
    name: str


TYPED = {
    "Literal": (Literal["warm", "cold"], "warm", "warm"),
    "enum": (Kind, Kind.WARM, "warm"),
    "list": (list[str], ["a", "b"], '["a", "b"]'),
    "pydantic": (Shade, Shade(name="red"), '{"name": "red"}'),
    "optional": (int | None, 3, "3"),
}
ADAPTERS = {
    "chat": dspy.ChatAdapter(),
    "json": dspy.JSONAdapter(),
    "xml": dspy.XMLAdapter(),
    "baml": BAMLAdapter(),
    "template": TemplateAdapter(),
    "two steps": dspy.TwoStepAdapter(rule_lm(lambda prompt: "[[ ## colour ## ]]\nred")[0]),
}


def in_form(adapter: dspy.Adapter, value: str) -> str:
    forms = {
        "ChatAdapter": f"[[ ## colour ## ]]\n{value}\n\n[[ ## completed ## ]]",
        "JSONAdapter": f'{{"colour": "{value}"}}',
        "BAMLAdapter": f'{{"colour": "{value}"}}',
        "XMLAdapter": f"<colour>{value}</colour>",
    }
    return forms.get(type(adapter).__name__, value)


def typed(kind, value, text: str, adapter: dspy.Adapter) -> dspy.Module:
    fields = {"text": (str, dspy.InputField()), "colour": (kind, dspy.OutputField())}
    rows = [dspy.Example(text=f"row {k}", colour=value).with_inputs("text") for k in range(2)]

    def rule(prompt: str) -> str:
        return in_form(adapter, text) if "word" in prompt else "no idea"

    with dspy.context(lm=rule_lm(rule)[0], adapter=adapter):
        student = dspy.Predict(dspy.Signature(fields, FIND))
        return optimizer(None, max_errors=99, num_proposals=8).compile(student, rows)


@pytest.mark.parametrize("name", TYPED)
def test_28_signatures_may_be_typed(name):
    better = typed(*TYPED[name], dspy.ChatAdapter())
    assert better.detailed_results.score_after == 1.0 > better.detailed_results.score_before
    assert better.signature.output_fields["colour"].annotation == TYPED[name][0]


@pytest.mark.parametrize("name", ADAPTERS)
def test_29_any_adapter_will_do(name):
    better = typed(str, "red", "red", ADAPTERS[name])
    assert better.detailed_results.trials and better.detailed_results.score_after == 1.0


def test_30_it_compiles_in_a_running_event_loop_and_off_the_main_thread():
    async def both() -> list[dspy.Module]:
        return [compiled(), await asyncio.to_thread(compiled)]

    first, second = asyncio.run(both())
    assert instructions_of(first) == instructions_of(second) == instructions_of(compiled())
