"""What one ``compile`` is going to do, and the journal that it goes by."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import dspy
from filelock import FileLock, Timeout

from dspy_diffusion_infill import disk
from dspy_diffusion_infill.identity import (
    describe,
    describe_lms,
    describe_program,
    describe_rows,
    key_of,
)
from dspy_diffusion_infill.infiller.infiller import Infiller
from dspy_diffusion_infill.infiller.proposals import Rules
from dspy_diffusion_infill.journal import Journal
from dspy_diffusion_infill.marks import read_marks
from dspy_diffusion_infill.optimizer.acceptance import Acceptance, MetricFirst
from dspy_diffusion_infill.optimizer.budget import Budget
from dspy_diffusion_infill.optimizer.guidance import Guide
from dspy_diffusion_infill.optimizer.options import Scoring, SearchOptions
from dspy_diffusion_infill.optimizer.spending import Spending
from dspy_diffusion_infill.optimizer.targets import Target
from dspy_diffusion_infill.optimizer.trace_json import TraceJson
from dspy_diffusion_infill.optimizer.traces import Worked, make_slots
from dspy_diffusion_infill.programs import Part
from dspy_diffusion_infill.protection import Protection, generated_text
from dspy_diffusion_infill.windows import Window, take_marks

JOURNAL_FILE = "journal.jsonl"
LOCK_FILE = "journal.lock"
ANSWERS_FILE = "answers.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What one ``compile`` is going to do. Nothing in it changes while it runs.

    Attributes:
        student: the program as it was handed in; never changed.
        base: the program that trials change: a copy, its marks taken out, bound to the LM that
            trials are run with.
        teacher: a program whose runs give the responses of steps without labels; None is the base.
        trainset: what the denoiser sees in its contexts.
        valset: what programs are scored on; the very trainset where they are equal.
        holdout: rows that take no part in the search; the result is scored on them at the end.
        names: the predictors to optimise.
        before: the student's instructions, and other texts that are edited, marks included, by
            the name of their ``Part``.
        infiller: makes proposals.
        guide: likelihood guidance; None is the paper's procedure.
        acceptance: decides whether a trial is kept.
        scoring: how programs are scored.
        spending: what its runs cost.
        options: how wide and how long.
        log_dir: folder of the journal; None keeps no file.
        labelled: the worked examples that labels alone give.
        traces_wanted: whether runs must give the others.
    """

    student: dspy.Module
    base: dspy.Module
    teacher: dspy.Module | None
    trainset: Sequence[dspy.Example]
    valset: Sequence[dspy.Example]
    holdout: Sequence[dspy.Example]
    names: tuple[str, ...]
    before: Mapping[str, str]
    infiller: Infiller
    guide: Guide | None
    acceptance: Acceptance
    scoring: Scoring
    spending: Spending
    options: SearchOptions
    log_dir: Path | None
    labelled: Worked = field(repr=False)
    traces_wanted: bool

    @property
    def baseline_is_traced(self) -> bool:
        """Whether the runs that score the student give the traces too."""
        return self.teacher is None and self.valset is self.trainset

    @property
    def contrasts(self) -> bool:
        """Whether guidance sets gold responses against wrong answers."""
        return self.guide is not None and self.options.signal == "contrast"

    def traces_of(self, runner: dspy.Module) -> TraceJson:
        """How traces of its runs over the trainset are journaled."""
        return TraceJson(self.base, runner, self.names, self.trainset)

    @property
    def first_calls(self) -> int:
        """Program runs before the first trial."""
        more = self.traces_wanted and not self.baseline_is_traced
        return self.num_runs(self.valset) + (len(self.trainset) if more else 0)

    @property
    def last_calls(self) -> int:
        """Program runs after the last trial: student and result on what was held out."""
        return 2 * self.num_runs(self.holdout)

    def num_runs(self, rows: Sequence[object]) -> int:
        """Program runs that score these rows."""
        return len(rows) * self.scoring.num_repeats

    @property
    def is_race(self) -> bool:
        """Whether a trial may end before all rows: racing asks what can win by ``MetricFirst``."""
        return self.options.validation == "racing" and isinstance(self.acceptance, MetricFirst)

    def targets(self, worked: Worked) -> dict[str, Target]:
        """The texts to search over, at the start, with these worked examples."""
        agents = generated_text(self.base)
        targets, slots = {}, make_slots(self.base, worked)
        for name, part in ((name, Part.named(name)) for name in self.before):
            if part.predictor not in slots or part.kind not in self.options.parts:
                continue
            slot = replace(slots[part.predictor], name=name)
            text, marked = take_marks(self.before[name])
            protection = Protection(
                signature=slot.signature,
                protect=self.options.protect,
                agent_text=agents.get(name, ()),
                kept=read_marks(self.before[name]).kept,
                structure=self.options.protect_structure,
            )
            rules = Rules(
                bounds=self.options.bounds,
                num_tokens=self.num_tokens,
                leaks=self.options.leaks,
                by_content=self.options.filters,
            )
            targets[name] = Target.over(slot, text, protection, marked, rules)
        return targets

    def windows(self, target: Target, sweep: int = 0) -> list[Window]:
        """The windows of a target's current instructions in a sweep."""
        masking = self.options.maskings[sweep % len(self.options.maskings)]
        return target.windows(masking, self.infiller.denoiser)

    def num_tokens(self, text: str) -> int:
        """The denoiser's tokens of a text."""
        return len(self.infiller.denoiser.encode(text).input_ids)

    def identity(self) -> dict[str, Any]:
        """What makes two searches the same; a journal of another one is refused.

        Raises:
            ValueError: the program, the metric, a row or a masking cannot be described.
        """
        repeats = self.scoring.num_repeats
        return {
            **({"num_repeats": repeats} if repeats > 1 else {}),
            "version": version("dspy-diffusion-infill"),
            "program": key_of(dict(self.before), describe_program(self.base)),
            "teacher": key_of(describe_program(self.teacher)),
            "trainset": describe_rows(self.trainset, "trainset"),
            "valset": describe_rows(self.valset, "valset"),
            "holdout": describe_rows(self.holdout, "holdout"),
            "metric": [
                key_of(describe(self.scoring.metric, "metric")),
                self.scoring.failure_score,
            ],
            "lm": describe_lms(self.base),
            "adapter": key_of(describe(dspy.settings.adapter, "adapter")),
            "denoiser": self.infiller.denoiser.name,
            "sampling": repr(self.infiller.sampling),
            "examples_per_context": list(self.infiller.examples_per_context),
            "guidance": None if self.guide is None else self.guide.scorer.name,
            "acceptance": key_of(describe(self.acceptance, "acceptance")),
            "options": self.options.identity(),
        }


def budget_of(plan: Plan, *, started: float) -> Budget:
    """The budget of a search that began then, by the clock of ``time.monotonic``.

    What the runs after the last trial may take is kept back from its caps.
    """
    spending = plan.spending
    caps = plan.scoring.caps.without(plan.last_calls, spending.bound)
    return Budget(caps, prices=spending.prices, bound=spending.bound, started=started)


@contextmanager
def open_journal(plan: Plan) -> Generator[Journal]:
    """The journal of the plan, which no other process uses meanwhile.

    Raises:
        ValueError: the folder holds the journal of another search, or a damaged one, or something
            of this search cannot be described, or another process is at work in the folder.
        OSError: the folder cannot be written.
    """
    if plan.log_dir is None:
        yield Journal(None)
        return
    disk.make_folder(plan.log_dir)
    lock = FileLock(plan.log_dir / LOCK_FILE)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise ValueError(
            f"log_dir={str(plan.log_dir)!r} is in use by another compile: wait until it ends, or "
            "give a new folder"
        ) from error
    try:
        with closing(Journal(plan.log_dir / JOURNAL_FILE, identity=plan.identity())) as journal:
            yield journal
    finally:
        lock.release()


def open_answers(plan: Plan) -> Journal:
    """What the student and the best programs answered; only the report needs it."""
    return Journal(None if plan.log_dir is None else plan.log_dir / ANSWERS_FILE)
