"""Judges' prompts: text files in ``prompts/``, and what belongs to each.

``judge_v1`` is Feedback Collection's prompt (the paper, appendix J.1, to the character), and what
denoisers are trained on; ``judge_v2`` is that of Prometheus 2, which asks for another form.
The two with ``_summeval`` are the same prompts for SummEval alone: its rubric, which is one for all
rows, stands in them as text that can be edited. ``judge_masked`` is J.2, its masks written as
``[[infill:n]]`` marks; ``c_gen`` is J.4; ``g_eval`` has the parts of G-Eval's prompts in our own
words. The masked forms of the last two are ours: the paper does not show its own.
"""

import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal, get_args

import dspy
from dspy.signatures.signature import make_signature

from dspy_diffusion_infill.windows import take_marks

TemplateName = Literal[
    "judge_v1",
    "judge_v2",
    "judge_v1_summeval",
    "judge_v2_summeval",
    "judge_masked",
    "c_gen",
    "c_gen_masked",
    "g_eval",
    "g_eval_masked",
]

_PLACEHOLDER = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class JudgeTemplate:
    """A judge's prompt.

    Attributes:
        name: its file in ``prompts/``.
        text: the prompt with ``{field}`` placeholders, without a final line break.
        gold: how a scored example is answered, with ``{score}`` and perhaps ``{feedback}``; without
            feedback everything before ``[RESULT]`` is left out. No ``Feedback:`` stands in front of
            it: the prompt ends with that, and Feedback Collection's own answers go on from there.
        cue: what the completion goes on from (``Score:``), so that a bare number is a verdict.
    """

    name: str
    text: str
    gold: str
    cue: str = ""

    @property
    def fields(self) -> tuple[str, ...]:
        """The placeholders, in order."""
        return tuple(dict.fromkeys(_PLACEHOLDER.findall(self.text)))

    @property
    def is_masked(self) -> bool:
        """Whether the text holds ``[[infill:n]]`` marks."""
        return take_marks(self.text)[1] is not None

    def signature(self) -> type[dspy.Signature]:
        """The prompt as a DSPy signature: the placeholders as inputs, ``verdict`` as output."""
        inputs = {name: (str, dspy.InputField()) for name in self.fields}
        return make_signature({**inputs, "verdict": (str, dspy.OutputField())}, self.text)

    def gold_verdict(self, score: float, feedback: str | None = None) -> str:
        """The response that gives ``score``: ``[RESULT] 4.25``; at most two decimals."""
        number = f"{score:.2f}".rstrip("0").rstrip(".")
        form = self.gold if feedback else self.gold[max(self.gold.find("[RESULT]"), 0) :]
        return form.format(score=number, feedback=feedback)


_WITH_RUBRIC = "_summeval"
_GOLD = {"g_eval": "{score}"}
_CUES = {"g_eval": "Score:"}


def judge_template(name: str) -> JudgeTemplate:
    """A template by name.

    Raises:
        ValueError: there is none.
    """
    names = get_args(TemplateName)
    if name not in names:
        raise ValueError(f"template must be one of {', '.join(names)}, got {name!r}")
    kind = name.removesuffix("_masked")
    gold = _GOLD.get(kind, "{feedback} [RESULT] {score}")
    return JudgeTemplate(name, _text(name), gold, _CUES.get(kind, ""))


def summeval_rubric() -> dict[str, str]:
    """SummEval's criterion and score descriptions, by the fields of a judge's prompt."""
    criteria, *descriptions = read_prompt("summeval_rubric").split("\n")
    numbered = enumerate(descriptions, start=1)
    return {"orig_criteria": criteria, **{f"orig_score{k}_description": d for k, d in numbered}}


def _text(name: str) -> str:
    text = read_prompt(name.removesuffix(_WITH_RUBRIC))
    if name.endswith(_WITH_RUBRIC):
        for field, value in summeval_rubric().items():
            text = text.replace(f"{{{field}}}", value)
    return text


@cache
def read_prompt(name: str) -> str:
    """The text of ``prompts/<name>.txt``, without its final line break."""
    folder = files("dspy_diffusion_infill.evaluation") / "prompts"
    return (folder / f"{name}.txt").read_text(encoding="utf-8").removesuffix("\n")
