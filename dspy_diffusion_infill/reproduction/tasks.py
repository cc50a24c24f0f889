"""The three benchmarks behind the tables: judging, GSM8K and HoVer.

A benchmark has its program, what is measured on one row, and the figures of a set of rows. Rows are
plain dicts of JSON values, since they go through the run's journal.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import dspy
from dspy.signatures.signature import make_signature
from dspy.utils.exceptions import AdapterParseError

from dspy_diffusion_infill.evaluation.agreement import agreement
from dspy_diffusion_infill.evaluation.examples import FEEDBACK_FIELDS, as_feedback
from dspy_diffusion_infill.evaluation.gsm8k import exact_match, gsm8k_answer
from dspy_diffusion_infill.evaluation.hover import (
    PAGES_PER_HOP,
    HoverProgram,
    hover_f1,
    hover_metric,
    hover_recall,
)
from dspy_diffusion_infill.evaluation.judges import (
    ClosenessMetric,
    Judge,
    JudgeCounts,
    total_counts,
)
from dspy_diffusion_infill.evaluation.retrieval import PageIndex
from dspy_diffusion_infill.evaluation.templates import judge_template, read_prompt
from dspy_diffusion_infill.programs import signature_of
from dspy_diffusion_infill.reproduction.experiment import JudgeSpec, ModelSpec
from dspy_diffusion_infill.template_adapter import TemplateAdapter

RowResult = dict[str, Any]
Figures = dict[str, float | None]
CountTokens = Callable[[str], int]


COEFFICIENTS = ("pearson", "spearman", "kendall")
"""Measures of a judge's scores against human ones."""
MEANS: Mapping[str, tuple[str, float]] = {
    "em": ("flexible", 100.0),
    "em_strict": ("strict", 100.0),
    "tokens": ("tokens", 1.0),
    "recall": ("recall", 1.0),
    "f1": ("f1", 1.0),
    "label_accuracy": ("is_right", 1.0),
}
"""Measures that are the mean of a field over the rows, with that field, times a number."""


class Benchmark(Protocol):
    """A program, and what is measured with it. Subclasses state what differs from the defaults."""

    @property
    def identity(self) -> dict[str, Any]:
        """What results depend on besides model, prompt and row: a part of the journals' keys."""
        ...

    @property
    def num_calls(self) -> int:
        """LM calls that one row takes at most."""
        return 1

    @property
    def expected_calls(self) -> int:
        """LM calls that one row takes where every answer can be read."""
        return self.num_calls

    @property
    def context_chars(self) -> int:
        """Characters of a prompt, about, that are neither instructions nor the row's."""
        return 0

    def program(self, template: str, model: ModelSpec, *, seed: int = 0) -> dspy.Module:
        """The program of a prompt template as the model needs it, not yet bound to its LM."""
        ...

    def adapter(self, program: dspy.Module) -> dspy.Adapter | None:
        """The adapter that the program's prompts are rendered with; None is the model's."""
        return getattr(program, "adapter", None)

    def prepared(self, example: dspy.Example, template: str) -> dspy.Example:
        """The example with the inputs and the gold response of the template."""
        return example

    def metric(self, example: dspy.Example, prediction: Any, trace: Any = None) -> float:
        """What prompts are searched with, in [0, 1]; higher is better."""
        ...

    def feedback(self, example: dspy.Example, prediction: Any) -> str:
        """A prediction's fault in words, for GEPA."""
        ...

    def row(self, example: dspy.Example, prediction: Any, count_tokens: CountTokens) -> RowResult:
        """What the journal keeps of one row."""
        ...

    def figures(self, rows: Sequence[RowResult]) -> Figures:
        """The benchmark's measures over rows; None where one is not defined."""
        ...

    def remarks(self, rows: Sequence[RowResult]) -> list[str]:
        """Counts of readable answers, for the table's footer."""
        ...


@dataclass(frozen=True, slots=True)
class JudgeTask(Benchmark):
    """SummEval and BiGGen-Bench: a judge's scores against human ones.

    Attributes:
        spec: how often, and how, a judge is asked.
    """

    spec: JudgeSpec

    @property
    def identity(self) -> dict[str, Any]:
        """The task and how judges are asked."""
        return {"task": "judge", **asdict(self.spec)}

    @property
    def num_calls(self) -> int:
        """All runs of the judge with all of their retries."""
        return self.spec.runs * (self.spec.retries + 1)

    @property
    def expected_calls(self) -> int:
        """All runs of the judge."""
        return self.spec.runs

    def program(self, template: str, model: ModelSpec, *, seed: int = 0) -> Judge:
        """A judge with this template; the model decides the system text and the seeds."""
        spec = self.spec
        return Judge(
            template,
            runs=spec.runs,
            retries=spec.retries,
            temperature=spec.temperature,
            seed=seed,
            seeded=model.is_local,
            system=read_prompt(model.system) if model.system else None,
        )

    def prepared(self, example: dspy.Example, template: str) -> dspy.Example:
        """Adds the gold verdict; Judge templates get SummEval in Feedback Collection's fields."""
        prompt = judge_template(template)
        if set(prompt.fields) <= set(FEEDBACK_FIELDS) and "source" in example:
            example = as_feedback(example)
        gold = prompt.gold_verdict(example.score)
        return dspy.Example(example, verdict=gold).with_inputs(*prompt.fields)

    def metric(self, example: dspy.Example, prediction: Any, trace: Any = None) -> float:
        """Closeness to the human score; 0 for an unreadable verdict."""
        return ClosenessMetric()(example, prediction)

    def feedback(self, example: dspy.Example, prediction: Any) -> str:
        """Names the human score and the judge's."""
        if prediction.score is None:
            return f"No score could be read. It must end like this: {example.verdict}"
        return f"The judge gave {prediction.score:g}, humans gave {example.score:g}."

    def row(self, example: dspy.Example, prediction: Any, count_tokens: CountTokens) -> RowResult:
        """Both scores, article and system, the counts of verdicts, and the last completion."""
        counts: JudgeCounts = prediction.counts
        return {
            "score": prediction.score,
            "human": example.score,
            "article": example.doc_id,
            "system": example.system_id,
            "verdict": prediction.verdict,
            "runs": counts.runs,
            "read": counts.read,
            "retries": counts.retries,
            "problems": dict(counts.problems),
        }

    def figures(self, rows: Sequence[RowResult]) -> Figures:
        """Sample-level coefficients, as in the paper's tables."""
        found = agreement([row["score"] for row in rows], [row["human"] for row in rows])
        return {"pearson": found.pearson, "spearman": found.spearman, "kendall": found.kendall}

    def remarks(self, rows: Sequence[RowResult]) -> list[str]:
        """Counts verdicts: asked for, read, and unreadable by reason."""
        total = total_counts(
            [
                JudgeCounts(
                    row["runs"], row["read"], row["retries"], tuple(row["problems"].items())
                )
                for row in rows
            ]
        )
        reasons = ", ".join(f"{reason} {count}" for reason, count in total.problems)
        return [
            f"Verdicts: {total.runs} asked for, {total.read} read, {total.unreadable} unreadable "
            f"and not scored, {total.retries} retries; unreadable answers: {reasons or 'none'}."
        ]


class GsmProgram(dspy.Module):
    """Answers a question in the form "Q: … A: …"."""

    def __init__(self, template: str) -> None:
        super().__init__()
        self.adapter = TemplateAdapter()
        self.solve = dspy.Predict(make_signature("question -> answer", read_prompt(template)))

    def forward(self, question: str) -> dspy.Prediction:
        """Answers one question.

        Returns:
            ``answer``: the whole completion, empty where the LM gave none; ``prompt``: what was
            sent.
        """
        signature = signature_of(self.solve)
        demos = [dict(demo) for demo in self.solve.demos]
        messages = self.adapter.format(signature, demos, {"question": question})
        prompt = "\n".join(message["content"] for message in messages)
        with dspy.context(adapter=self.adapter):
            try:
                answer = self.solve(question=question).answer
            except AdapterParseError:
                answer = ""
        return dspy.Prediction(answer=answer, prompt=prompt)


@dataclass(frozen=True, slots=True)
class Gsm8kTask(Benchmark):
    """GSM8K: exact match of the last number, and how long the prompts are."""

    @property
    def identity(self) -> dict[str, Any]:
        """The task's name: it has no options."""
        return {"task": "gsm8k"}

    def program(self, template: str, model: ModelSpec, *, seed: int = 0) -> GsmProgram:
        """One predictor, which gets the question under the template."""
        return GsmProgram(template)

    def metric(self, example: dspy.Example, prediction: Any, trace: Any = None) -> float:
        """Exact match by the flexible rule, 0 or 1."""
        return exact_match(example, prediction)

    def feedback(self, example: dspy.Example, prediction: Any) -> str:
        """Names the right answer."""
        return f"The right answer is {example.number}."

    def row(self, example: dspy.Example, prediction: Any, count_tokens: CountTokens) -> RowResult:
        """Exact match by both rules, the prompt's length in tokens, and the answer."""
        answer = prediction.answer or ""
        return {
            "flexible": exact_match(example, prediction),
            "strict": exact_match(example, prediction, rule="strict"),
            "has_number": gsm8k_answer(answer, rule="flexible") is not None,
            "tokens": count_tokens(prediction.prompt),
            "answer": answer,
        }

    def figures(self, rows: Sequence[RowResult]) -> Figures:
        """Exact match in per cent; ``tokens`` is the mean length of a prompt."""
        return {name: _mean(rows, *MEANS[name]) for name in ("em", "em_strict", "tokens")}

    def remarks(self, rows: Sequence[RowResult]) -> list[str]:
        """Counts answers without a number."""
        missing = sum(not row["has_number"] for row in rows)
        return [f"Answers: {len(rows)}, of which {missing} hold no number and count as wrong."]


@dataclass(frozen=True, slots=True)
class HoverTask(Benchmark):
    """HoVer: retrieval and label over three hops.

    Attributes:
        index: where to search.
        num_pages: pages a hop.
    """

    index: PageIndex
    num_pages: int = PAGES_PER_HOP

    @property
    def identity(self) -> dict[str, Any]:
        """The task, its corpus, and how many pages are shown."""
        corpus = self.index.fingerprint
        return {"task": "hover", "corpus": corpus, "pages_per_hop": self.num_pages}

    @property
    def num_calls(self) -> int:
        """One call of each predictor."""
        return len(self.program("", ModelSpec(lm="")).predictors())

    @property
    def context_chars(self) -> int:
        """The length of the pages of one hop, on average."""
        return int(self.num_pages * self.index.page_chars)

    def program(self, template: str, model: ModelSpec, *, seed: int = 0) -> HoverProgram:
        """The three-hop program, which has prompts of its own: the template is not used."""
        return HoverProgram(self.index, num_pages=self.num_pages)

    def prepared(self, example: dspy.Example, template: str) -> dspy.Example:
        """Adds the gold verdict in the words of the program's output field."""
        verdict = example.label.replace("_", " ").lower()
        return dspy.Example(example, verdict=verdict).with_inputs("claim")

    def metric(self, example: dspy.Example, prediction: Any, trace: Any = None) -> float:
        """The mean of recall and a right label, in [0, 1]; higher is better."""
        return hover_metric(example, prediction)

    def feedback(self, example: dspy.Example, prediction: Any) -> str:
        """Names the pages that were not found and the right label."""
        missing = sorted(set(example.titles) - set(prediction.titles))
        return f"Pages not found: {', '.join(missing) or 'none'}. The label is {example.label}."

    def row(self, example: dspy.Example, prediction: Any, count_tokens: CountTokens) -> RowResult:
        """Recall, F1, and whether the label is right."""
        return {
            "recall": hover_recall(example.titles, prediction.titles),
            "f1": hover_f1(example.titles, prediction.titles),
            "label": prediction.label,
            "is_right": prediction.label == example.label,
        }

    def figures(self, rows: Sequence[RowResult]) -> Figures:
        """Means over claims, in [0, 1]."""
        return {name: _mean(rows, *MEANS[name]) for name in ("recall", "f1", "label_accuracy")}

    def remarks(self, rows: Sequence[RowResult]) -> list[str]:
        """Counts labels that could not be read."""
        missing = sum(row["label"] is None for row in rows)
        return [
            f"Claims: {len(rows)}; labels that could not be read and count as wrong: {missing}."
        ]


def drawn(examples: Sequence[dspy.Example], num: int | None, *, seed: int) -> list[dspy.Example]:
    """``num`` of the examples, drawn with the seed; all of them, in order, where it is None."""
    if num is None or num >= len(examples):
        return list(examples)
    return random.Random(seed).sample(list(examples), num)


def shortened(example: dspy.Example, max_chars: int | None) -> dspy.Example:
    """The example with every longer text cut; gold answers stay."""
    if max_chars is None:
        return example
    cut = {k: v[:max_chars] for k, v in example.inputs().items() if isinstance(v, str)}
    return dspy.Example(example, **cut).with_inputs(*example.inputs().keys())


def _mean(rows: Sequence[RowResult], name: str, times: float) -> float | None:
    """The mean of a field over the rows, times a number; None where there are none."""
    return times * sum(row[name] for row in rows) / len(rows) if rows else None
