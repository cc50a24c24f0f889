"""What results depend on, described alike in every process."""

import datetime
import enum
import functools
import json
import logging
import os
import re
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import dspy
import numpy as np
import pydantic
import pytest

from dspy_diffusion_infill.identity import (
    describe,
    describe_lms,
    describe_program,
    describe_rows,
    key_of,
)
from dspy_diffusion_infill.template_adapter import TemplateAdapter


def key(thing) -> str:
    return key_of(describe(thing, "thing"))


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Place(pydantic.BaseModel):
    city: str


@dataclass
class Weighted:
    weight: float

    def __call__(self, example, prediction, trace=None):
        return self.weight

    def score(self, example, prediction):
        return self.weight


class Document:
    def __init__(self, text):
        self.text = text


def weighted(weight):
    def metric(example, prediction, trace=None):
        return weight

    return metric


def nested(weight):
    return lambda example, prediction: (lambda: weight)()


def plain(example, prediction, trace=None, weight=1.0):
    return weight


def helper():
    return HELPERS["points"]


HELPERS = {"points": 1.0}


def with_helper(example, prediction):
    return helper()


DIFFERENT = {
    "closure": (weighted(0.25), weighted(0.75)),
    "closure of a closure": (nested(0.25), nested(0.75)),
    "partial": (functools.partial(plain, weight=0.25), functools.partial(plain, weight=0.75)),
    "bound object": (Weighted(0.25).score, Weighted(0.75).score),
    "callable object": (Weighted(0.25), Weighted(0.75)),
    "lambdas of one line": (lambda e, p: 0.25, lambda e, p: 0.75),
    "defaults": (lambda e, p, w=0.25: w, lambda e, p, w=0.75: w),
    "number and text": (1, "1"),
    "number and bool": (1, True),
    "enum members": (Colour.RED, Colour.BLUE),
    "models": (Place(city="Rome"), Place(city="Oslo")),
    "arrays": (np.arange(3), np.arange(3.0)),
    "dates": (datetime.date(2024, 1, 1), datetime.date(2024, 1, 2)),
    "sets": ({1, 2}, {1, 3}),
    "keys of a dict": ({1: "a"}, {"1": "a"}),
    "keys that JSON has not": ({(1, 2): "a"}, {(1, 3): "a"}),
    "bytes": (b"a", b"b"),
    "objects": (Document("a"), Document("b")),
    "patterns of an adapter": (
        TemplateAdapter(pattern="(?P<label>a)"),
        TemplateAdapter(pattern="(?P<label>b)"),
    ),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_differs_is_described_differently(name):
    one, other = DIFFERENT[name]
    assert key(one) != key(other)


EQUAL = {
    "closure": lambda: weighted(0.25),
    "partial": lambda: functools.partial(plain, weight=0.25),
    "bound object": lambda: Weighted(0.25).score,
    "set": lambda: {"alpha", "beta", "gamma"},
    "dict in another order": lambda: {"a": 1, "b": 2},
    "array": lambda: np.arange(6).reshape(2, 3),
    "object with a lock": lambda: Document(threading.Lock()),
    "adapter": lambda: TemplateAdapter(pattern="(?P<label>a)"),
    "program": lambda: Program("a"),
    "not a number": lambda: float("nan"),
}


@pytest.mark.parametrize("name", EQUAL)
def test_what_is_equal_is_described_alike(name):
    assert key(EQUAL[name]()) == key(EQUAL[name]())


def test_a_helper_of_a_metric_is_a_part_of_it(monkeypatch):
    before = key(with_helper)
    monkeypatch.setitem(HELPERS, "points", 2.0)
    assert key(with_helper) != before


USED: object = None


def with_global(example, prediction):
    return USED


GLOBALS = {
    "array": (np.arange(3), np.arange(4)),
    "object": (Weighted(0.25), Weighted(0.75)),
    "pattern": (re.compile("a"), re.compile("b")),
    "partial": (functools.partial(plain, weight=0.25), functools.partial(plain, weight=0.75)),
    "judge": (dspy.Predict("text -> score"), dspy.Predict("text, label -> score")),
    "date": (datetime.date(2024, 1, 1), datetime.date(2024, 1, 2)),
}


@pytest.mark.parametrize("name", GLOBALS)
def test_a_global_that_a_metric_uses_is_a_part_of_it(name, monkeypatch):
    keys = set()
    for value in GLOBALS[name]:
        monkeypatch.setattr(sys.modules[__name__], "USED", value)
        keys.add(key(with_global))
    assert len(keys) == 2


@pytest.mark.parametrize("value", [json, np.mean, np.ndarray, logging.getLogger("a")])
def test_a_global_that_is_of_a_library_ends_no_search(value, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "USED", value)
    assert key(with_global) == key(with_global)


def test_an_open_file_is_its_name(tmp_path):
    keys = set()
    for name in ("a.txt", "b.txt"):
        with open(tmp_path / name, "w") as file:
            keys.add(key(weighted(file)))
    assert len(keys) == 2


class Program(dspy.Module):
    def __init__(self, answer, instructions="Say the kind of it."):
        super().__init__()
        self.step = dspy.Predict(dspy.Signature("text -> label", instructions))
        self.answer = answer

    def forward(self, text):
        return dspy.Prediction(label=self.answer)


class Shouting(Program):
    def forward(self, text):
        return dspy.Prediction(label=self.answer.upper())


def test_a_program_is_its_code_attributes_predictors_and_demos():
    def changed(change):
        program = Program("a")
        change(program)
        return program

    programs = [
        Program("a"),
        Program("b"),
        Shouting("a"),
        Program("a", "Name the kind."),
        changed(lambda p: p.step.demos.append(dspy.Example(text="x", label="y"))),
        changed(lambda p: p.step.config.update(temperature=1.0)),
    ]
    assert len({key_of(describe_program(program)) for program in programs}) == len(programs)
    assert key_of(describe_program(Program("a"))) == key_of(describe_program(Program("a")))


def test_an_lm_is_told_beside_the_program_without_its_key():
    program, before = Program("a"), key_of(describe_program(Program("a")))
    program.step.lm = dspy.LM("openai/none", api_key="secret")
    program.history.append({"prompt": "x"})
    assert key_of(describe_program(program)) == before
    told = json.dumps([describe_program(program), describe_lms(program)])
    assert "secret" not in told and "openai/none" in told


def test_input_fields_and_odd_values_of_rows_are_told_apart():
    row = dspy.Example(text="a", label="b", extra={(1, 2): np.ones(2)})
    rows = [row.with_inputs("text"), row.with_inputs("text", "extra")]
    assert len({describe_rows([one], "trainset") for one in rows}) == 2


def test_an_object_may_say_itself_what_it_is():
    class Index:
        def __init__(self, name):
            self.file, self.name = (line for line in ()), name

        def journal_identity(self):
            return self.name

    assert key(Index("a")) == key(Index("a")) != key(Index("b"))


@pytest.mark.parametrize("make", [lambda: (n for n in ()), lambda: memoryview(b"a"), sys._getframe])
def test_what_cannot_be_described_is_refused_with_its_name(make):
    row = dspy.Example(text="a", tool=[make()]).with_inputs("text")
    with pytest.raises(ValueError, match=r"trainset\[0\]\.tool\[0\] is, and .*journal_identity"):
        describe_rows([row], "trainset")


def test_another_process_describes_alike(tmp_path: Path):
    module = tmp_path / "described.py"
    module.write_text(
        "import functools, dspy\n"
        "class Document: pass\n"
        "def metric(e, p, trace=None, w=1): return w\n"
        "class Program(dspy.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.step = dspy.Predict('text -> label')\n"
        "        self.kinds, self.document = {'alpha', 'beta', 'gamma'}, Document()\n"
        "    def forward(self, text): return dspy.Prediction(label=text)\n"
        "THINGS = [Program(), functools.partial(metric, w=2), Document(), {'x', 'y', 'z'}]\n"
    )
    script = (
        "from described import THINGS\n"
        "from dspy_diffusion_infill.identity import describe, key_of\n"
        "print([key_of(describe(thing, 'thing')) for thing in THINGS])"
    )
    told = set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        told.add(done.stdout)
    assert len(told) == 1
