"""What an experiment is: one YAML file in ``experiments/`` for each table or figure of the paper.

A file states data, seeds, measures and conditions. A condition is one row of the table: a model, a
prompt template, the steps that rewrite the prompt, and the paper's figures. ``models.yaml`` says
what the models' names stand for. Each file has two scales: ``full`` is the paper's; ``smoke``
overrides it with settings that run on a laptop in minutes. pydantic checks every value.
"""

from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from dspy_diffusion_infill.yaml_settings import STRICT

StepKind = Literal["copro", "gepa", "infill"]
TaskName = Literal["summeval", "biggen", "gsm8k", "hover"]
Scale = Literal["full", "smoke"]
PerplexityOver = Literal["sequence", "response"]

EMBEDDED = "embedded"
DIFFUSION = "diffusion"

PERPLEXITY = "perplexity"
FILL_MEASURES = ("end_of_text", "only_end_of_text")
"""In per cent: of the filled tokens, and of the prompts that are filled with nothing else."""

_JUDGED = ("pearson", "spearman", "kendall", PERPLEXITY)
MEASURES: Mapping[TaskName, tuple[str, ...]] = {
    "summeval": _JUDGED,
    "biggen": _JUDGED,
    "gsm8k": ("em", "em_strict", "tokens", *FILL_MEASURES),
    "hover": ("recall", "f1", "label_accuracy"),
}

_LABELED = ConfigDict(extra="forbid", coerce_numbers_to_str=True)


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class DataSpec:
    """The source of examples, and how many are taken.

    Attributes:
        name: for ``load_dataset``.
        split: for ``load_dataset``.
        num: how many are drawn (shots: with the run's seed); None is all.
        max_chars: longer texts are cut at this length; None cuts nothing. For smoke runs.
    """

    name: str
    split: str
    num: int | None = None
    max_chars: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class ModelSpec:
    """A model: an LM, a denoiser, or both in one.

    Attributes:
        lm: ``diffusion`` (the denoiser answers), ``embedded``, or a name for ``dspy.LM``.
        denoiser: for ``load_denoiser``; None where the model proposes nothing.
        options: of the LM: ``temperature``, ``max_tokens``, ``api_base``, …
        billions: parameters that a token passes through, of the denoiser where there is one, else
            of the LM; for the cost estimate. None is unknown.
        plain_prompts: whether the LM cannot follow DSPy's chat format, so that plain templates are
            used wherever DSPy asks it for something.
        system: name of the system text in ``prompts/`` that judges of this model get.
        context_length: tokens that the denoiser takes, in place of what its authors state; None is
            what they state.
        stated_context: what the authors state, for checks before a run; None is unknown.
        recipe: trains the denoiser into its folder on one GPU of 80 GB; empty where it is on the
            hub.
        serve: the command that serves the LM at its ``api_base``; ``{prompts}`` stands for the
            folder of the package's prompts.
    """

    lm: str
    denoiser: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    billions: float | None = None
    plain_prompts: bool = False
    system: str = ""
    context_length: Annotated[int, Field(ge=1)] | None = None
    stated_context: Annotated[int, Field(ge=1)] | None = None
    recipe: str = ""
    serve: str = ""

    @property
    def is_local(self) -> bool:
        """Whether the LM runs in this process, costs no money, and takes a seed."""
        return self.lm in (EMBEDDED, DIFFUSION)

    @property
    def max_context(self) -> int | None:
        """The tokens that the model takes; None is unknown."""
        return self.context_length or self.stated_context


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class PromptStep:
    """One rewriting of the prompt.

    Attributes:
        kind: ``infill``, or DSPy's ``copro`` and ``gepa``.
        by: the model that proposes: its denoiser (infill) or its LM.
        prefix: infill only: this many masks are put in front, and nothing is taken out.
    """

    kind: StepKind
    by: str
    prefix: Annotated[int, Field(ge=1)] | None = None


@dataclass(frozen=True, slots=True, config=STRICT)
class PaperFigure:
    """A figure of the paper; ``std`` is None where it gives none."""

    mean: float
    std: float | None = None


def _step_from_file(entry: Any) -> Any:
    """Files write ``{infill: llada, prefix: 128}``."""
    if not isinstance(entry, Mapping):
        return entry
    kinds = [kind for kind in ("copro", "gepa", "infill") if kind in entry]
    if len(kinds) != 1:
        raise ValueError(f"a step names one of copro, gepa and infill, got {entry!r}")
    return {"kind": kinds[0], "by": entry[kinds[0]]} | {
        key: value for key, value in entry.items() if key != kinds[0]
    }


def _figure_from_file(entry: Any) -> Any:
    """Files write ``0.3`` or ``[0.3, 0.02]``."""
    if isinstance(entry, list) and len(entry) == 2:
        return {"mean": entry[0], "std": entry[1]}
    return {"mean": entry} if isinstance(entry, int | float) else entry


@dataclass(frozen=True, slots=True, kw_only=True, config=_LABELED)
class Condition:
    """One row of the table.

    Attributes:
        label: column name to cell.
        model: whose LM answers.
        template: the prompt's name in ``prompts/``; empty where the task has one of its own.
        demos: worked examples in the prompt.
        steps: rewritings, in order.
        found_with: the model whose LM validates during the steps; None is ``model``. Another one
            makes the condition a transfer.
        paper: measure to the paper's mean and standard deviation.
        not_run: why the row is not measured; it stays in the table. Empty where it is.
    """

    label: Mapping[str, str]
    model: str
    template: str = ""
    demos: int = 0
    steps: tuple[Annotated[PromptStep, BeforeValidator(_step_from_file)], ...] = ()
    found_with: str | None = None
    paper: Mapping[str, Annotated[PaperFigure, BeforeValidator(_figure_from_file)]] = field(
        default_factory=dict
    )
    not_run: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class SearchSpec:
    """How prompts are rewritten.

    Window, stride, mask and steps are the paper's (appendices D and E); the rest it does not say.

    Attributes:
        window: tokens masked at a time.
        stride: tokens between windows.
        mask: masks put in for a window.
        steps: reverse-process steps.
        proposals: a window.
        sweeps: over all windows.
        examples: worked examples that the denoiser sees around a window, at most: each proposal
            draws 1 to so many, of which as many stay as fit.
        forbid_special: never fill in special tokens or end-of-text.
        filters: drop proposals by what they say (``DiffusionInfill``).
        max_metric_calls: budget of an infill step; None is unlimited.
        copro_breadth: COPRO's proposals a round, >= 2.
        copro_depth: COPRO's rounds.
        gepa_metric_calls: GEPA's budget.
    """

    window: int = 8
    stride: int = 4
    mask: int = 8
    steps: int = 128
    proposals: int = 4
    sweeps: int = 1
    examples: int = 16
    forbid_special: bool = True
    filters: bool = True
    max_metric_calls: int | None = None
    copro_breadth: int = 10
    copro_depth: int = 3
    gepa_metric_calls: int = 640


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class JudgeSpec:
    """How often, and how, a judge is asked.

    Attributes:
        runs: verdicts averaged for each row.
        retries: further calls for an unreadable verdict.
        temperature: None is the LM's own.
    """

    runs: int = 1
    retries: int = 2
    temperature: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class PlotSpec:
    """The kind of plot and what it shows.

    Attributes:
        kind: ``bars`` (a group a condition) or ``scatter``.
        measures: the bars; for a scatter plot the one on the y axis.
        x: the measure on the x axis of a scatter plot.
    """

    kind: Literal["bars", "scatter"] = "bars"
    measures: tuple[str, ...] = ()
    x: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class Experiment:
    """A table or figure of the paper, at a scale.

    Attributes:
        name: of its file.
        title: its heading.
        task: what is asked and measured.
        test: what it is measured on.
        shots: the few-shot examples that prompts are searched with and demos are taken from.
        seeds: one run each: other shots, other proposals, other samples.
        measures: the columns that hold figures.
        conditions: the rows.
        search: how prompts are rewritten.
        judge: how judges are asked.
        plot: the picture.
        threads: calls under way at once.
        max_errors: failed calls after which the run ends; rows that are too long for a model do not
            count.
        perplexity_rows: rows over which diffusion perplexity is taken; None is all.
        perplexity_samples: draws of masks for each of them; even.
        perplexity_over: ``sequence``, prompt and gold response (paper, appendix B), or
            ``response``, the gold response given the prompt.
        pages_per_hop: HoVer only.
        scale: which scale this is.
        caution: printed above the table: what its figures do not show.
        paper_remarks: printed below the table: what the paper leaves open or contradicts.
    """

    name: str
    title: str
    task: TaskName
    test: DataSpec
    shots: DataSpec
    seeds: tuple[int, ...]
    measures: tuple[str, ...]
    conditions: tuple[Condition, ...]
    search: SearchSpec = SearchSpec()
    judge: JudgeSpec = JudgeSpec()
    plot: PlotSpec = PlotSpec()
    threads: int = 8
    max_errors: int = 20
    perplexity_rows: int | None = None
    perplexity_samples: int = 32
    perplexity_over: PerplexityOver = "sequence"
    pages_per_hop: int = 7
    scale: Scale = "full"
    caution: str = ""
    paper_remarks: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _check_measures(self) -> "Experiment":
        """A measure that cannot be taken or drawn is an error now, not at the end of a run."""
        known, plot = MEASURES[self.task], self.plot
        wrong = [name for name in self.measures if name not in known]
        if wrong or not self.measures:
            found = ", ".join(wrong) or "none"
            raise ValueError(f"measures must be of {', '.join(known)}, got {found}")
        drawn = (*plot.measures, *([plot.x] if plot.kind == "scatter" else []))
        for name in drawn:
            if name not in self.measures:
                raise ValueError(f"plot: {name!r} is none of {', '.join(self.measures)}")
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """The label columns, in order of first appearance."""
        return tuple(dict.fromkeys(key for c in self.conditions for key in c.label))

    @property
    def measured(self) -> tuple[Condition, ...]:
        """The rows that are run."""
        return tuple(condition for condition in self.conditions if not condition.not_run)

    @property
    def only_fills(self) -> bool:
        """Whether no LM is asked anything: what denoisers fill in is counted."""
        return set(self.measures) <= set(FILL_MEASURES)

    @property
    def answers_rows(self) -> bool:
        """Whether test rows are answered: not where only fills or perplexities are taken."""
        return not (self.only_fills or set(self.measures) == {PERPLEXITY})

    @property
    def models(self) -> tuple[str, ...]:
        """The names of all models that take part in rows that are run."""
        names = [name for c in self.measured for name in (c.model, c.found_with or c.model)]
        proposing = [step.by for c in self.measured for step in c.steps]
        return tuple(dict.fromkeys([*names, *proposing]))


def selected(conditions: Sequence[Condition], keep: Mapping[str, Sequence[str]]) -> list[Condition]:
    """The conditions whose labels are among those to keep, column by column."""
    return [
        condition
        for condition in conditions
        if all(condition.label.get(column) in names for column, names in keep.items())
    ]
