"""From checked arguments to a search, and from a search to the result."""

import logging
import random
import time
from collections.abc import Hashable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import dspy

from dspy_diffusion_infill.contexts import Slot, WorkedExample, render_messages
from dspy_diffusion_infill.identity import (
    identity_of,
    identity_of_data,
    identity_of_lms,
    identity_of_program,
)
from dspy_diffusion_infill.infiller.infiller import Infiller
from dspy_diffusion_infill.infiller.proposals import ProposalFilter
from dspy_diffusion_infill.journal import Journal
from dspy_diffusion_infill.optimizer.guidance import Guide, labels_of
from dspy_diffusion_infill.optimizer.results import DetailedResults, ProposalCounts
from dspy_diffusion_infill.optimizer.search import Search, SearchOptions, Target
from dspy_diffusion_infill.optimizer.traces import (
    Worked,
    make_slots,
    needs_traces,
    work_examples,
    worked_from_json,
    worked_to_json,
)
from dspy_diffusion_infill.optimizer.validation import (
    Evaluation,
    Validator,
    evaluation_from_json,
    evaluation_to_json,
)
from dspy_diffusion_infill.programs import (
    copy_program,
    instructions_of,
    with_instructions,
)
from dspy_diffusion_infill.protection import generated_text
from dspy_diffusion_infill.windows import take_marks

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FirstEvaluations:
    """What is known before the first trial.

    Attributes:
        baseline: the student on the valset.
        worked: the worked examples of each predictor.
        is_traced: whether some of them come from runs.
    """

    baseline: Evaluation
    worked: Worked
    is_traced: bool


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
        path = None if self.log_dir is None else Path(self.log_dir) / "journal.jsonl"
        self.journal = Journal(path, identity=self._identity())

    def _identity(self) -> dict[str, Any]:
        """What makes two searches the same; a journal of another one is refused."""
        validator = self.validator
        return {
            "program": identity_of_program(self.student),
            "teacher": identity_of_program(self.teacher),
            "trainset": identity_of_data(self.trainset),
            "valset": identity_of_data(self.valset),
            "metric": [identity_of(validator.metric), validator.failure_score],
            "lm": identity_of_lms(self.student),
            "adapter": identity_of(dspy.settings.adapter),
            "denoiser": self.infiller.denoiser.name,
            "sampling": repr(self.infiller.sampling),
            "examples_per_context": list(self.infiller.examples_per_context),
            "guidance": None if self.guide is None else self.guide.scorer.name,
            "options": self.options.identity(),
        }

    def check(self) -> Search:
        """Checks budget and contexts before anything is paid for; the search as it is planned.

        Raises:
            ValueError: the budget does not cover the first evaluations, or the adapter cannot
                render an example.
            ContextTooLongError: the instructions do not fit the denoiser's context.
        """
        if not self.validator.room_for(self._first_calls()):
            raise ValueError(
                f"max_metric_calls={self.validator.max_metric_calls} does not cover the first "
                f"evaluations: {self._first_calls()} program runs"
            )
        search = self.search(None)
        for target in search.targets.values():
            slot = target.slot
            for example in slot.examples:
                _check_rendering(slot, target.text, example)
            if slot.examples:
                window = search.windows_of(target)[0]
                self.infiller.masked_context(slot, target.text, window, random.Random(0))
        return search

    def first_evaluations(self) -> FirstEvaluations:
        """Scores the student, and runs the trainset where responses must be traced.

        Raises:
            TooManyFailuresError: too many examples raised.
        """
        if not needs_traces(self.base, self.names, self.trainset):
            self.baseline = self._evaluate("baseline", self.base, self.valset)
            return FirstEvaluations(self.baseline, self._labelled(), is_traced=False)
        known = self.journal.get("worked examples")
        self.baseline = self._evaluate("baseline", self.base, self.valset, anew=known is None)
        runner, traced = self.teacher or self.base, self.baseline
        if not self._baseline_is_traced():
            traced = self._evaluate("traced runs", runner, self.trainset, anew=known is None)
        if known is not None:
            return FirstEvaluations(
                self.baseline, worked_from_json(known, self.trainset), is_traced=True
            )
        names = {id(predictor): name for name, predictor in runner.named_predictors()}
        worked = work_examples(self.base, self.names, self.trainset, traced, names)
        if (plain := worked_to_json(worked, self.trainset)) is not None:
            self.journal.put("worked examples", plain, about="worked examples")
        return FirstEvaluations(self.baseline, worked, is_traced=True)

    def _evaluate(
        self, key: str, program: dspy.Module, examples: list[dspy.Example], *, anew: bool = False
    ) -> Evaluation:
        """From the journal where it has it, without traces; else, or ``anew``, by running."""
        known = self.journal.get(key)
        if known is not None and not anew:
            evaluation = evaluation_from_json(known)
            self.validator.replay(evaluation)
            return evaluation
        evaluation = self.validator.evaluate(program, examples)
        self.journal.put(key, evaluation_to_json(evaluation), about=key)
        return evaluation

    def _labelled(self) -> Worked:
        return work_examples(self.base, self.names, self.trainset)

    def _baseline_is_traced(self) -> bool:
        """Whether the first evaluation gives the traces too."""
        return self.teacher is None and self.valset is self.trainset

    def search(self, first: FirstEvaluations | None) -> Search:
        """The search, ready to run; without first evaluations, good enough to be counted."""
        first = first or FirstEvaluations(Evaluation((), ()), self._labelled(), is_traced=False)
        search = Search(
            student=self.base,
            targets=self._targets(first),
            infiller=self.infiller,
            validator=self.validator,
            valset=self.valset,
            labels=self._labels(),
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
            elif first.is_traced and not target.slot.examples:
                self.skipped[name] = "no run gave a response for it"
            if name in self.skipped:
                del search.targets[name]
        return search

    def _labels(self) -> list[Hashable] | None:
        """Of the rows; without guidance the procedure is the paper's, which asks for none."""
        if self.guide is None:
            return None
        gold = [WorkedExample(dict(row.inputs()), dict(row.labels())) for row in self.valset]
        return labels_of(gold)

    def _targets(self, first: FirstEvaluations) -> dict[str, Target]:
        slots = make_slots(self.base, first.worked)
        before, agents = instructions_of(self.student), generated_text(self.student)
        targets = {}
        for name, slot in slots.items():
            text, marked = take_marks(before[name])
            targets[name] = Target(
                slot, text, agents.get(name, ()), marked, ProposalFilter.over(slot.examples)
            )
        return targets

    def _first_calls(self) -> int:
        traces_wanted = needs_traces(self.base, self.names, self.trainset)
        more = traces_wanted and not self._baseline_is_traced()
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
        baseline = self.baseline or Evaluation((), ())
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


def _check_rendering(slot: Slot, text: str, example: WorkedExample) -> None:
    try:
        render_messages(slot, text, [example])
    except Exception as error:
        shown = f"{dict(example.inputs)!r:.100}"
        raise ValueError(
            f"{type(slot.adapter).__name__} cannot render the trainset's example {shown} for the "
            f"predictor {slot.name!r}: {error}"
        ) from error
