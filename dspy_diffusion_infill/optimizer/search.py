"""The state of a search, and its steps: proposals, their likelihood, trials (paper, §3.2 and §5.3).

Which window is next, and how long the search goes on, ``orders`` decide.
"""

import math
import random
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import dspy
from pydantic import TypeAdapter

from dspy_diffusion_infill.identity import key_of
from dspy_diffusion_infill.infiller.leaks import Likeness
from dspy_diffusion_infill.infiller.proposals import Proposal
from dspy_diffusion_infill.journal import Journal
from dspy_diffusion_infill.merging import merged_texts
from dspy_diffusion_infill.optimizer.acceptance import is_better
from dspy_diffusion_infill.optimizer.budget import Spent
from dspy_diffusion_infill.optimizer.callbacks import ProposalEvent
from dspy_diffusion_infill.optimizer.candidates import Candidate, proposal_between, trial_of
from dspy_diffusion_infill.optimizer.contrast import wrong_answers
from dspy_diffusion_infill.optimizer.first_evaluation import FirstEvaluation
from dspy_diffusion_infill.optimizer.guidance import Gain, WrongAnswers, total_gain
from dspy_diffusion_infill.optimizer.plan import Plan
from dspy_diffusion_infill.optimizer.pool import Member, Pool
from dspy_diffusion_infill.optimizer.racing import RowHistory
from dspy_diffusion_infill.optimizer.results import EndReason, Refused, Trial
from dspy_diffusion_infill.optimizer.targets import Target
from dspy_diffusion_infill.optimizer.traces import draw_weight, names_in_traces
from dspy_diffusion_infill.optimizer.trial_runs import TrialRuns
from dspy_diffusion_infill.optimizer.validation import Validator
from dspy_diffusion_infill.outcomes import Evaluation
from dspy_diffusion_infill.programs import with_instructions
from dspy_diffusion_infill.protection import Protected
from dspy_diffusion_infill.windows import Window

__all__ = ["Search", "is_better"]

LogLikelihoods = tuple[float, ...]
_TRIALS_PER_POOL = 16  # trials after which contexts are drawn anew

_NUMBERS = TypeAdapter(list[float | None])
_FILLS = TypeAdapter(list[tuple[list[str], float]])
MOST_REFUSED = 2000
"""Refused proposals that the records keep: the last ones."""


@dataclass(slots=True)
class Search:
    """The state of one ``compile``; what was found stays readable at any time.

    Attributes:
        plan: what is to be done.
        validator: scores programs and keeps the budget.
        journal: has what was paid for before.
        first: the student's scores and the worked examples; None until ``begin``.
        best: the best program's scores; the student's own at first.
        targets: the predictors under search, by name.
        skipped: predictors that are left alone, and why.
        protected: what of the student's instructions is never masked, by predictor.
        on_trial: called after every trial.
        on_proposal: called after every window that was filled.
        trials: all trials so far.
        tried: the candidate of each trial.
        pool: the programs that are the best on some row.
        start: the instructions that the search begins with, by predictor.
        screened: proposals that guidance dropped.
        history: every score so far, by row of the valset.
        wrong: what the best programs so far answered where they were wrong, by predictor; empty
            where guidance does not contrast.
        holdout: the student and the best program on the rows that were held out; None until they
            are scored.
        refused: the last proposals that a check dropped.
        answers: what the best programs answered, kept for a search that is resumed.
        settings: the options, as plain values.
        spent_before: what was taken before the first trial.
        passes_before: forward passes of the denoiser before this search.
        end_reason: why it ended; ``"interrupted"`` until it has.
    """

    plan: Plan
    validator: Validator
    journal: Journal
    first: FirstEvaluation | None = None
    best: Evaluation = field(default_factory=lambda: Evaluation((), ()))
    targets: dict[str, Target] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    protected: dict[str, tuple[Protected, ...]] = field(default_factory=dict)
    on_trial: Callable[["Search"], None] = lambda search: None
    on_proposal: Callable[[ProposalEvent], None] = lambda event: None
    trials: list[Trial] = field(default_factory=list)
    tried: list[Candidate] = field(default_factory=list)
    pool: Pool = field(default_factory=Pool)
    start: Mapping[str, str] = field(default_factory=dict[str, str])
    screened: int = 0
    history: RowHistory = field(default_factory=lambda: RowHistory.over(0))
    wrong: dict[str, WrongAnswers] = field(default_factory=dict[str, WrongAnswers])
    holdout: tuple[Evaluation, Evaluation] | None = None
    refused: deque[Refused] = field(default_factory=lambda: deque[Refused](maxlen=MOST_REFUSED))
    answers: Journal = field(default_factory=lambda: Journal(None))
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    spent_before: Spent = field(default_factory=Spent)
    passes_before: int = 0
    end_reason: EndReason = "interrupted"

    def begin(self, first: FirstEvaluation) -> None:
        """Takes the first evaluation and settles which predictors are searched over."""
        self.first = first
        self.history = RowHistory.over(len(first.baseline.scores))
        self.history.add(dict(enumerate(first.baseline.scores)))
        for name, target in self.plan.targets(first.worked).items():
            self.protected[name] = tuple(target.protection.found(target.text))
            if not self.plan.windows(target):
                self.skipped[name] = "all of its instructions are protected"
            elif first.is_traced and not target.slot.examples:
                self.skipped[name] = "no run gave a response for it"
            else:
                self.targets[name] = target
        self.start, self.spent_before = self.instructions(), self.validator.budget.spent
        self.best = replace(first.baseline, length=_length(self.start))
        self.pool.add(Member(self.start, self.best.scores))
        self._note_wrong_answers(self.plan.base)

    def score_present_texts(self) -> None:
        """Has guidance score the instructions that the search begins with."""
        if self.plan.guide is not None:
            for target in self.targets.values():
                self._log_likelihoods(target, [target.text])

    def instructions(self) -> dict[str, str]:
        """The best instructions so far, of the predictors under search."""
        return {name: target.text for name, target in self.targets.items()}

    def counts(self) -> Counter[str]:
        """What became of the proposals so far."""
        total = Counter(validated=len(self.trials), screened=self.screened)
        for target in self.targets.values():
            total.update(target.filter.counts)
        total["accepted"] = sum(trial.accepted for trial in self.trials)
        return total

    def propose(
        self, target: Target, window: Window, sweep: int, temperature: float | None = None
    ) -> list[Proposal]:
        """The proposals for a window that are worth a metric call.

        They are from the journal where it has them, else from the denoiser.

        Args:
            target: the predictor.
            window: of its present text.
            sweep: number of the pass or move; with the other arguments it decides the seed.
            temperature: in place of the sampling's.
        """
        pieces = [[piece.start, piece.end, piece.num_masks] for piece in window.pieces]
        parts = ("proposals", target.name, target.text, pieces, sweep, *_beside(target))
        if (known := self.journal.read(key_of(*parts), _FILLS.validate_python)) is None:
            options = self.plan.options
            seed = random.Random(f"{options.seed}/{parts}").randrange(2**31)
            with self.validator.budget.batch("proposals"):
                made = self.plan.infiller.propose(
                    target.slot,
                    target.text,
                    window,
                    num=options.num_proposals,
                    seed=seed,
                    temperature=temperature,
                    weights=self._example_weights(target),
                    pool=self._pool(target),
                )
            known = [(list(p.fills), p.confidence) for p in made]
            self.journal.put(key_of(*parts), known, about=parts[0])
        made = [
            Proposal(
                target.name, window, tuple(fills), window.splice(target.text, fills), confidence
            )
            for fills, confidence in known
        ]
        return self._checked(target, made, sweep)

    def _checked(self, target: Target, made: Sequence[Proposal], sweep: int) -> list[Proposal]:
        """The proposals against which nothing speaks; all of them are told."""
        reasons = target.filter.judge(made, target.text)
        event = ProposalEvent(
            sweep=sweep, old=target.text, proposals=tuple(made), reasons=tuple(reasons)
        )
        self.refused.extend(event.refused())
        self.on_proposal(event)
        return [one for one, reason in zip(made, reasons, strict=True) if reason is None]

    def candidates(
        self, target: Target, proposals: Sequence[Proposal], parent: Mapping[str, str] | None = None
    ) -> list[Candidate]:
        """The proposals as candidates; with guidance, likelihood says how promising they are.

        Args:
            target: the predictor.
            proposals: for its text in the parent.
            parent: the instructions of the program that they change; None is the best one.
        """
        if self.plan.guide is not None and proposals:
            texts = [proposal.instructions for proposal in proposals]
            self._log_likelihoods(self.targets[target.name], texts)
        old = self.instructions() if parent is None else parent
        return [Candidate((proposal,), old) for proposal in proposals]

    def merge(self, base: Mapping[str, str], one: Mapping[str, str]) -> Candidate | None:
        """The best program with the edits that made ``one`` of ``base``.

        None where they overlap with what made the best program of it, or where nothing new comes
        of it that is worth a metric call.
        """
        best = self.instructions()
        texts = merged_texts(base, one, best)
        if texts is None:
            return None
        changed = [name for name, text in best.items() if texts[name] != text]
        if any(self.targets[name].marked for name in changed):
            return None
        made: list[Proposal] = []
        for name in changed:
            proposal = proposal_between(name, best[name], texts[name])
            made += self.targets[name].filter.keep([proposal], best[name])
        if not made or len(made) < len(changed):
            return None
        for proposal in made if self.plan.guide is not None else []:
            self._log_likelihoods(self.targets[proposal.predictor], [proposal.instructions])
        return Candidate(tuple(made), best)

    def gain(self, candidate: Candidate) -> Gain | None:
        """What a candidate gains over the best program as it is now; None without guidance."""
        guide, texts = self.plan.guide, candidate.texts
        if guide is None:
            return None
        gains = []
        for name, target in self.targets.items():
            if texts[name] != target.text:
                new, old = self._log_likelihoods(target, [texts[name], target.text])
                gains.append(guide.gain(target.slot, new, old))
        return total_gain(gains)

    def mean_gain(self, candidate: Candidate) -> float:
        """What a candidate gains as things are now, nats an example; 0 without guidance.

        Minus infinity where nothing can be said: both texts are too long for the scorer.
        """
        gain = self.gain(candidate)
        if gain is None:
            return 0.0
        return -math.inf if math.isnan(gain.mean) else gain.mean

    def try_candidate(self, candidate: Candidate, sweep: int) -> Trial | None:
        """Scores a candidate, and makes it the best program where it is accepted.

        Returns None, with ``end_reason`` set, where the budget has no room for it.
        """
        gain = self.gain(candidate)
        program = with_instructions(self.plan.base, candidate.texts)
        runs = TrialRuns(self.plan, self.validator, self.journal, self.history)
        found = runs.score(program, candidate.texts, self.best.scores, gain)
        if found is None:
            self.end_reason = self.validator.budget.end_reason or "max_metric_calls"
            return None
        evaluation, rows = replace(found[0], length=_length(candidate.texts)), found[1]
        is_whole = len(rows) == len(self.plan.valset)
        accepted = is_whole and self.plan.acceptance.accepts(evaluation, self.best, gain)
        trial = trial_of(candidate, len(self.trials) + 1, sweep, evaluation, rows, gain, accepted)
        trial = replace(
            trial,
            spent=self.validator.budget.spent,
            nearest=self._nearest(candidate),
        )
        self.trials.append(trial)
        self.tried.append(candidate)
        self.history.add(dict(zip(rows, evaluation.scores, strict=True)))
        if is_whole:
            self.pool.add(Member(candidate.texts, evaluation.scores))
        if accepted:
            self._take(candidate, evaluation)
            self._note_wrong_answers(program)
        self.on_trial(self)
        return trial

    def _nearest(self, candidate: Candidate) -> tuple[Likeness | None, ...]:
        """Of each proposal, what it has in common with an example."""
        return tuple(
            self.targets[one.predictor].filter.likeness(one) for one in candidate.proposals
        )

    def _take(self, candidate: Candidate, evaluation: Evaluation) -> None:
        """Makes a candidate the best program."""
        self.best = evaluation
        for target in self.targets.values():
            target.move_to(candidate.texts)
        for proposal in candidate.proposals:
            target = self.targets[proposal.predictor]
            if target.marked is not None:
                target.marked = proposal.window.after_splice(proposal.fills)

    def _note_wrong_answers(self, program: dspy.Module) -> None:
        """What the best program answered where it was wrong, for guidance that contrasts."""
        if not self.plan.contrasts:
            return
        names, bounds = names_in_traces(program), self.history.bounds
        for name, target in self.targets.items():
            before = self.wrong.get(name, {})
            self.wrong[name] = wrong_answers(target.slot, self.best, names, bounds, before)

    def _example_weights(self, target: Target) -> list[float] | None:
        """How likely each worked example is drawn: more so the more often its row went wrong.

        None, each alike, where the contexts' rows are not those that are scored.
        """
        plan = self.plan
        if plan.options.examples == "random" or plan.valset is not plan.trainset:
            return None
        rates = self.history.rates()
        return [
            1.0 if one.row is None else draw_weight(rates[one.row]) for one in target.slot.examples
        ]

    def _pool(self, target: Target) -> str:
        """Of the contexts: another one for other instructions, and after so many trials."""
        epoch = len(self.trials) // _TRIALS_PER_POOL
        names = "/".join([target.name, target.text, *target.slot.others.values()])
        return f"{self.plan.options.seed}/{names}/{epoch}"

    def _log_likelihoods(self, target: Target, texts: Sequence[str]) -> list[LogLikelihoods]:
        """Of the gold responses under each text; from the journal where it has them."""
        assert self.plan.guide is not None
        wrong = self.wrong.get(target.name, {})
        known_by = [*([wrong] if wrong else []), *_beside(target)]
        keys = [key_of("likelihood", target.name, text, *known_by) for text in texts]
        new = {key: text for key, text in zip(keys, texts, strict=True) if not self._has(key)}
        if new:
            with self.validator.budget.batch("likelihoods"):
                scored = self.plan.guide.log_likelihoods(target.slot, list(new.values()), wrong)
            for key, log_likelihoods in zip(new, scored, strict=True):
                plain = [None if math.isinf(one) else one for one in log_likelihoods]
                self.journal.put(key, plain, about="likelihood")
        known = [self.journal.read(key, _NUMBERS.validate_python) or () for key in keys]
        return [tuple(-math.inf if one is None else one for one in own) for own in known]

    def _has(self, key: str) -> bool:
        return self.journal.get(key) is not None


def _beside(target: Target) -> list[Mapping[str, str]]:
    """What keys say of the predictor's other texts: nothing where they are the student's."""
    return [target.slot.others] if target.slot.others else []


def _length(texts: Mapping[str, str]) -> int:
    return sum(map(len, texts.values()))
