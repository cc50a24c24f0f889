"""From checked arguments to a search, and from a search to the result."""

import logging
import time
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import dspy

from dspy_diffusion_infill.infiller.infiller import Infiller
from dspy_diffusion_infill.infiller.proposals import ProposalFilter
from dspy_diffusion_infill.optimizer.guidance import Guide
from dspy_diffusion_infill.optimizer.journal import (
    Journal,
    evaluation_from_json,
    evaluation_to_json,
    key_of,
)
from dspy_diffusion_infill.optimizer.programs import (
    copy_program,
    instructions_of,
    with_instructions,
)
from dspy_diffusion_infill.optimizer.results import DetailedResults, ProposalCounts
from dspy_diffusion_infill.optimizer.search import Search, SearchOptions, Target
from dspy_diffusion_infill.optimizer.slots import make_slots, needs_traces
from dspy_diffusion_infill.optimizer.validation import BudgetSpentError, Evaluation, Validator
from dspy_diffusion_infill.protection import generated_text
from dspy_diffusion_infill.signatures import signature_of
from dspy_diffusion_infill.windows import take_marks

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FirstEvaluations:
    """The student's own score, and the runs that responses are taken from.

    Attributes:
        baseline: the student on the valset.
        traced: the student or the teacher on the trainset; None where labels suffice.
        traced_names: predictor names by the ``id`` of the predictor objects in the traces.
    """

    baseline: Evaluation
    traced: Evaluation | None
    traced_names: dict[int, str]


@dataclass(slots=True)
class Setup:
    """Everything that one ``compile`` works with."""

    student: dspy.Module
    teacher: dspy.Module | None
    trainset: list[dspy.Example]
    valset: list[dspy.Example]
    names: list[str]
    infiller: Infiller
    guide: Guide | None
    validator: Validator
    options: SearchOptions
    log_dir: str | Path | None
    started: float = field(default_factory=time.perf_counter)
    skipped: dict[str, str] = field(default_factory=dict)
    base: dspy.Module = field(init=False)
    journal: Journal = field(init=False)
    passes_before: int = field(init=False)
    baseline: Evaluation | None = None

    def __post_init__(self) -> None:
        texts = {name: take_marks(text)[0] for name, text in instructions_of(self.student).items()}
        self.base = with_instructions(self.student, texts)
        self.passes_before = self.infiller.denoiser.num_passes
        self.journal = Journal(self.log_dir, self._identity())

    def _identity(self) -> dict[str, Any]:
        """What makes two searches the same; a journal of another one is refused."""
        metric = self.validator.metric
        lms = [getattr(p.lm or dspy.settings.lm, "model", None) for p in self.student.predictors()]
        return {
            "program": key_of(_described(self.student)),
            "trainset": key_of([example.toDict() for example in self.trainset]),
            "valset": key_of([example.toDict() for example in self.valset]),
            "metric": getattr(metric, "__qualname__", type(metric).__qualname__),
            "lm": lms,
            "denoiser": self.infiller.denoiser.name,
            "sampling": repr(self.infiller.sampling),
            "examples_per_context": list(self.infiller.examples_per_context),
            "guidance": None if self.guide is None else self.guide.scorer.name,
            "options": repr(self.options),
        }

    def first_evaluations(self) -> FirstEvaluations:
        """Scores the student, and runs the trainset where responses must be traced.

        Raises:
            ValueError: the budget does not even allow these.
            TooManyFailuresError: too many examples raised.
        """
        traces_wanted = needs_traces(self.base, self.names, self.trainset)
        known = self.journal.get("baseline")
        try:
            if known is not None and not traces_wanted:
                self.validator.metric_calls += len(self.valset)
                self.baseline = evaluation_from_json(known)
            else:
                self.baseline = self.validator.evaluate(self.base, self.valset)
                self.journal.put(evaluation_to_json(self.baseline), "baseline")
            if not traces_wanted:
                return FirstEvaluations(self.baseline, None, {})
            runner = self.teacher or self.base
            reuse = self.teacher is None and self.valset is self.trainset
            traced = self.baseline if reuse else self.validator.evaluate(runner, self.trainset)
        except BudgetSpentError as error:
            raise ValueError(
                f"max_metric_calls={self.validator.max_metric_calls} does not cover the first "
                f"evaluations: {self._first_calls()} program runs"
            ) from error
        return FirstEvaluations(
            self.baseline, traced, {id(p): name for name, p in runner.named_predictors()}
        )

    def search(self, first: FirstEvaluations | None) -> Search:
        """The search, ready to run; without first evaluations, good enough to be counted."""
        first = first or FirstEvaluations(Evaluation((0.0,), (None,), 0), None, {})
        search = Search(
            student=self.base,
            targets=self._targets(first),
            infiller=self.infiller,
            validator=self.validator,
            valset=self.valset,
            guide=self.guide,
            options=self.options,
            journal=self.journal,
            best=first.baseline,
            first_calls=self._first_calls(),
        )
        self.skipped = {}
        for name, target in list(search.targets.items()):
            if not search.windows_of(target):
                self.skipped[name] = "all of its instructions are protected"
            elif first.traced is not None and not target.slot.examples:
                self.skipped[name] = "no run gave a response for it"
            if name in self.skipped:
                del search.targets[name]
        return search

    def _targets(self, first: FirstEvaluations) -> dict[str, Target]:
        slots = make_slots(self.base, self.names, self.trainset, first.traced, first.traced_names)
        before, agents = instructions_of(self.student), generated_text(self.student)
        targets = {}
        for name, slot in slots.items():
            text, marked = take_marks(before[name])
            targets[name] = Target(
                slot, text, agents.get(name, ()), marked, ProposalFilter.over(slot.examples)
            )
        return targets

    def _first_calls(self) -> int:
        reuse = self.teacher is None and self.valset is self.trainset
        more = needs_traces(self.base, self.names, self.trainset) and not reuse
        return len(self.valset) + (len(self.trainset) if more else 0)

    def result(self, search: Search | None) -> dspy.Module:
        """The best program with its records; the student's copy where no search began."""
        for name, reason in self.skipped.items():
            logger.warning("the instructions of %r are left alone: %s", name, reason)
        if failed := self.validator.num_failures:
            ((kind, times),) = self.validator.failure_kinds.most_common(1) or [("", 0)]
            runs = self.validator.metric_calls
            logger.warning("%d of %d runs raised, most often (%d): %s", failed, runs, times, kind)
        best = with_instructions(self.base, search.instructions() if search else {})
        records = self._records(search, instructions_of(best))
        vars(best).update(
            detailed_results=records,
            total_calls=records.metric_calls,
            candidate_programs=self._candidates(search),
        )
        return best

    def _records(self, search: Search | None, after: dict[str, str]) -> DetailedResults:
        baseline = self.baseline or Evaluation((0.0,), (None,), 0)
        best = search.best if search else baseline
        counts = search.counts() if search else {}
        names = {f.name for f in fields(ProposalCounts)}
        return DetailedResults(
            instructions_before=instructions_of(self.student),
            instructions_after=after,
            score_before=baseline.mean,
            score_after=best.mean,
            scores_before=baseline.scores,
            scores_after=best.scores,
            trials=tuple(search.trials) if search else (),
            counts=ProposalCounts(**{name: n for name, n in counts.items() if name in names}),
            metric_calls=self.validator.metric_calls,
            num_failures=self.validator.num_failures,
            denoiser_passes=self.infiller.denoiser.num_passes - self.passes_before,
            seconds=time.perf_counter() - self.started,
            denoiser=self.infiller.denoiser.name,
            guidance=None if self.guide is None else self.guide.scorer.name,
            skipped=dict(self.skipped),
        )

    def _candidates(self, search: Search | None) -> list[dict[str, Any]]:
        """The programs of student and trials, best first, as DSPy's other optimizers give them."""
        if search is None or self.baseline is None:
            return []
        rows: list[tuple[float, dspy.Module]] = [(self.baseline.mean, copy_program(self.base))]
        current: dict[str, str] = {}
        for trial in search.trials:
            changes = {**current, trial.predictor: trial.instructions}
            rows.append((trial.score, with_instructions(self.base, changes)))
            if trial.accepted:
                current = changes
        rows.sort(key=lambda row: -row[0])
        return [{"score": score, "program": program} for score, program in rows]


def _described(program: dspy.Module) -> dict[str, list[Any]]:
    """What an LM gets from each predictor: instructions, fields, demos."""
    described = {}
    for name, predictor in program.named_predictors():
        signature = signature_of(predictor)
        demos = [dict(demo) for demo in predictor.demos]
        described[name] = [signature.instructions, repr(signature.fields), demos]
    return described
