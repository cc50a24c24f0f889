"""Judges as DSPy programs; unreadable verdicts are counted and never scored."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import dspy
from dspy.utils.exceptions import AdapterParseError

from dspy_diffusion_infill.evaluation.templates import JudgeTemplate, judge_template, read_prompt
from dspy_diffusion_infill.evaluation.verdicts import Verdict, read_verdict
from dspy_diffusion_infill.template_adapter import TemplateAdapter

PrometheusVersion = Literal[1, 2]

_HUB_IDS: dict[PrometheusVersion, str] = {
    1: "prometheus-eval/prometheus-13b-v1.0",
    2: "prometheus-eval/prometheus-8x7b-v2.0",
}


@dataclass(frozen=True, slots=True)
class JudgeCounts:
    """Counts of a judge's runs, by outcome.

    Attributes:
        runs: verdicts asked for.
        read: verdicts that were read.
        retries: further calls after an unreadable answer.
        problems: answers that could not be read, by reason; the retried ones too.
    """

    runs: int
    read: int
    retries: int
    problems: tuple[tuple[str, int], ...]

    @property
    def unreadable(self) -> int:
        """Runs that gave no verdict, retries included."""
        return self.runs - self.read


class Judge(dspy.Module):
    """A program that scores one response with each call.

    The optimizer rewrites the instructions of its one predictor, ``judge``. Run it, and compile it,
    under ``dspy.context(adapter=judge.adapter)``: outside of that its calls use the same adapter,
    but an optimizer that renders contexts could not know it.
    """

    def __init__(
        self,
        template: str | JudgeTemplate = "judge_v1",
        *,
        system: str | None = None,
        runs: int = 1,
        retries: int = 2,
        temperature: float | None = None,
        low: float = 1,
        high: float = 5,
        seed: int = 0,
        seeded: bool = False,
    ) -> None:
        """Makes the judge; nothing is called.

        Args:
            template: a template or the name of one.
            system: a system message, or None.
            runs: verdicts that are averaged, >= 1.
            retries: further calls for a run whose verdict cannot be read, >= 0.
            temperature: of the LM; None is the LM's own. Several runs and retries need one above 0.
            low: lowest score.
            high: highest score.
            seed: another seed is another sample of verdicts (through ``rollout_id``).
            seeded: send each sample's number as ``seed`` too, so that an LM that takes one repeats
                its samples in another process.

        Raises:
            ValueError: a number is out of its range.
        """
        super().__init__()
        if runs < 1 or retries < 0:
            raise ValueError(
                f"runs must be at least 1 and retries at least 0, got {runs} and {retries}"
            )
        if not low < high:
            raise ValueError(f"low must be below high, got low={low} and high={high}")
        self.template = judge_template(template) if isinstance(template, str) else template
        self.adapter = TemplateAdapter(system=system)
        self.judge = dspy.Predict(self.template.signature())
        self.runs, self.retries, self.temperature = runs, retries, temperature
        self.low, self.high, self.seed, self.seeded = low, high, seed, seeded

    def forward(self, **inputs: Any) -> dspy.Prediction:
        """Scores one response.

        Returns:
            ``score``: mean over the readable runs, None where there is none; ``scores``: one a
            readable run; ``verdict``: the last completion; ``counts``: a ``JudgeCounts``.
        """
        fields = {name: inputs[name] for name in self.template.fields if name in inputs}
        scores, problems, verdict, retries = [], Counter(), "", 0
        for run in range(self.runs):
            for attempt in range(self.retries + 1):
                retries += attempt > 0
                verdict = self._complete(fields, run * (self.retries + 1) + attempt)
                found = self.read(verdict)
                if found.score is not None:
                    scores.append(found.score)
                    break
                problems[str(found.problem)] += 1
        counts = JudgeCounts(self.runs, len(scores), retries, tuple(sorted(problems.items())))
        mean = sum(scores) / len(scores) if scores else None
        return dspy.Prediction(score=mean, scores=tuple(scores), verdict=verdict, counts=counts)

    def read(self, completion: str) -> Verdict:
        """The verdict of a completion; after a cue (``Score:``) a bare number is one."""
        cued = f"{self.template.cue} {completion}" if completion.strip() else completion
        return read_verdict(cued, low=self.low, high=self.high)

    def _complete(self, fields: dict[str, Any], sample: int) -> str:
        """A fresh completion for each sample; empty where the LM gave nothing."""
        config: dict[str, Any] = {}
        if self.temperature is not None:
            config["temperature"] = self.temperature
        number = self.seed * self.runs * (self.retries + 1) + sample
        if self.temperature != 0 and number:
            config["rollout_id"] = number  # the very first sample is a plain call: caches share it
        if self.seeded:
            config["seed"] = number
        with dspy.context(adapter=self.adapter):
            try:
                return self.judge(**fields, config=config).verdict
            except AdapterParseError:
                return ""


def prometheus(version: PrometheusVersion, *, runs: int = 3, retries: int = 2) -> Judge:
    """Prometheus 13B v1.0 or 8x7B v2.0: its prompt, its system text, three runs averaged.

    Raises:
        ValueError: the version is neither 1 nor 2.
    """
    _check_version(version)
    system = read_prompt(f"system_v{version}")
    return Judge(f"judge_v{version}", system=system, runs=runs, retries=retries, temperature=1.0)


def prometheus_lm(
    version: PrometheusVersion,
    *,
    api_base: str = "http://localhost:8000/v1",
    api_key: str = "local",
    max_tokens: int = 1024,
) -> dspy.LM:
    """The LM of a Prometheus judge that vLLM serves, with its authors' sampling.

    Temperature 1.0, top-p 0.9, repetition penalty 1.03.

    Raises:
        ValueError: the version is neither 1 nor 2.
    """
    _check_version(version)
    return dspy.LM(
        f"hosted_vllm/{_HUB_IDS[version]}",
        api_base=api_base,
        api_key=api_key,
        temperature=1.0,
        max_tokens=max_tokens,
        top_p=0.9,
        extra_body={"repetition_penalty": 1.03},
    )


@dataclass(frozen=True, slots=True)
class ClosenessMetric:
    """How close a judge's score is to the human one: 1 - |difference| / (high - low), in [0, 1].

    Correlation is a figure of a whole set and cannot score one example; this one can, and an
    unreadable verdict scores 0.
    """

    low: float = 1
    high: float = 5

    def __call__(self, example: dspy.Example, prediction: Any, trace: Any = None) -> float:
        """The closeness, in [0, 1]; higher is better."""
        if prediction.score is None:
            return 0.0
        return max(0.0, 1 - abs(prediction.score - example.score) / (self.high - self.low))


def total_counts(counts: Sequence[JudgeCounts]) -> JudgeCounts:
    """The sum of several counts."""
    problems: Counter[str] = Counter()
    for one in counts:
        problems.update(dict(one.problems))
    return JudgeCounts(
        sum(one.runs for one in counts),
        sum(one.read for one in counts),
        sum(one.retries for one in counts),
        tuple(sorted(problems.items())),
    )


def _check_version(version: int) -> None:
    if version not in _HUB_IDS:
        raise ValueError(f"Prometheus has the versions 1 and 2, got version={version!r}")
