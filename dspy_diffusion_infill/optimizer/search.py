"""The search: sweeps over predictors and windows, proposals, trials (paper, §3.2 and §5.3)."""

import logging
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from dspy_diffusion_infill.errors import ContextTooLongError
from dspy_diffusion_infill.identity import key_of
from dspy_diffusion_infill.infiller.proposals import Proposal
from dspy_diffusion_infill.journal import Journal
from dspy_diffusion_infill.optimizer.acceptance import is_better
from dspy_diffusion_infill.optimizer.first_evaluation import FirstEvaluation
from dspy_diffusion_infill.optimizer.guidance import Gain
from dspy_diffusion_infill.optimizer.plan import Plan
from dspy_diffusion_infill.optimizer.results import EndReason, Trial
from dspy_diffusion_infill.optimizer.targets import Target
from dspy_diffusion_infill.optimizer.validation import (
    Validator,
)
from dspy_diffusion_infill.programs import with_instructions
from dspy_diffusion_infill.runs import Evaluation
from dspy_diffusion_infill.windows import Window

__all__ = ["Candidate", "Search", "is_better"]

logger = logging.getLogger(__name__)

LogLikelihoods = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A proposal that is going to be tried.

    Attributes:
        proposal: the new instructions.
        log_likelihoods: of the gold responses under them; None without guidance.
    """

    proposal: Proposal
    log_likelihoods: LogLikelihoods | None = None


@dataclass(slots=True)
class Search:
    """The state of one ``compile``; what ``run`` has found stays readable at any time.

    Attributes:
        plan: what is to be done.
        validator: scores programs and keeps the budget.
        journal: has what was paid for before.
        first: the student's scores and the worked examples; None until ``begin``.
        best: the best program's scores; the student's own at first.
        targets: the predictors under search, by name.
        skipped: predictors that are left alone, and why.
        on_trial: called after every trial.
        trials: all trials so far.
        screened: proposals that guidance dropped.
        out_of_budget: the next trial would have passed ``max_metric_calls``.
        end_reason: why it ended; ``"interrupted"`` until it has.
    """

    plan: Plan
    validator: Validator
    journal: Journal
    first: FirstEvaluation | None = None
    best: Evaluation = field(default_factory=lambda: Evaluation((), ()))
    targets: dict[str, Target] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    on_trial: Callable[["Search"], None] = lambda search: None
    trials: list[Trial] = field(default_factory=list)
    screened: int = 0
    out_of_budget: bool = False
    end_reason: EndReason = "interrupted"

    def begin(self, first: FirstEvaluation) -> None:
        """Takes the first evaluation and settles which predictors are searched over."""
        self.first, self.best = first, first.baseline
        for name, target in self.plan.targets(first.worked).items():
            if not self.plan.windows(target):
                self.skipped[name] = "all of its instructions are protected"
            elif first.is_traced and not target.slot.examples:
                self.skipped[name] = "no run gave a response for it"
            else:
                self.targets[name] = target

    def run(self) -> None:
        """Sweeps until all are done or the budget is spent."""
        if self.first is not None and self.first.is_hopeless:
            ((kind, _),) = self.validator.failure_kinds.most_common(1)
            logger.warning("no run of the student succeeded, so nothing is tried: %s", kind)
            self.end_reason = "no run succeeded"
            return
        for target in self.targets.values():
            if self.plan.guide is not None:
                (target.log_likelihoods,) = self._log_likelihoods(target, [target.text])
        num_windows = self._num_windows()
        for sweep in range(self.plan.options.sweeps):
            for name, target in self.targets.items():
                self._sweep(target, sweep, num_windows[name, sweep])
                if self.out_of_budget:
                    self.end_reason = "max_metric_calls"
                    budget = self.plan.scoring.max_metric_calls
                    logger.info("max_metric_calls=%s is spent", budget)
                    return
        self.end_reason = "all windows tried"

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

    def _num_windows(self) -> dict[tuple[str, int], int]:
        """How many windows each sweep tries at most, by predictor and sweep: those of the start."""
        return {
            (name, sweep): len(self.plan.windows(target, sweep))
            for name, target in self.targets.items()
            for sweep in range(self.plan.options.sweeps)
        }

    def _sweep(self, target: Target, sweep: int, num_windows: int) -> None:
        """Left to right; after an accepted edit, on over the new text from the same place.

        Edits can make the text longer. A sweep still tries no more windows than were estimated, and
        the next one goes on where this one stopped.
        """
        for _ in range(num_windows):
            windows = self.plan.windows(target, sweep)
            window = next((w for w in windows if w.start > target.position), None)
            if window is None:
                break
            target.position = window.start
            try:
                self._try_window(target, window, sweep)
            except ContextTooLongError as error:
                if not self.trials:
                    raise
                logger.warning("a sweep ends early: %s", error)
                break
            if self.out_of_budget:
                return
        else:
            if any(w.start > target.position for w in self.plan.windows(target, sweep)):
                return
        target.position = -1

    def _try_window(self, target: Target, window: Window, sweep: int) -> None:
        old = target.text
        proposals = target.filter.keep(self._propose(target, window, sweep), old)
        for candidate in self._screen(target, proposals):
            proposal = candidate.proposal
            evaluation = self._validate(target, proposal)
            if evaluation is None:
                self.out_of_budget = True
                return
            gain = self._gain(target, candidate)
            accepted = self.plan.acceptance.accepts(evaluation, self.best, gain)
            self.trials.append(
                _trial(len(self.trials) + 1, sweep, proposal, old, evaluation, gain, accepted)
            )
            if accepted:
                target.text, self.best = proposal.instructions, evaluation
                target.log_likelihoods = candidate.log_likelihoods
                if target.marked is not None:
                    target.marked = window.after_splice(proposal.fills)
            self.on_trial(self)

    def _propose(self, target: Target, window: Window, sweep: int) -> list[Proposal]:
        """From the journal where it has them, else from the denoiser."""
        pieces = [[piece.start, piece.end, piece.num_masks] for piece in window.pieces]
        parts = ("proposals", target.name, target.text, pieces, sweep)
        if (known := self.journal.get(key_of(*parts))) is None:
            options = self.plan.options
            seed = random.Random(f"{options.seed}/{parts}").randrange(2**31)
            with self.validator.budget.batch("proposals"):
                made = self.plan.infiller.propose(
                    target.slot, target.text, window, num=options.num_proposals, seed=seed
                )
            known = [[list(p.fills), p.confidence] for p in made]
            self.journal.put(key_of(*parts), known, about=parts[0])
        return [
            Proposal(
                target.name, window, tuple(fills), window.splice(target.text, fills), confidence
            )
            for fills, confidence in known
        ]

    def _screen(self, target: Target, proposals: list[Proposal]) -> list[Candidate]:
        """Without guidance all; with it those that make gold responses likelier, best first."""
        if self.plan.guide is None:
            return [Candidate(proposal) for proposal in proposals]
        found = self._log_likelihoods(target, [proposal.instructions for proposal in proposals])
        candidates = list(map(Candidate, proposals, found))
        gains = {id(one): self._gain(target, one) for one in candidates}
        mean = {key: gain.mean for key, gain in gains.items() if gain is not None}
        likelier = [one for one in candidates if mean[id(one)] > 0]
        likelier.sort(key=lambda one: -mean[id(one)])
        chosen = likelier[: self.plan.options.num_validated]
        for one in likelier[len(chosen) :]:  # outranked here, and welcome in a later sweep
            target.filter.forget(one.proposal)
        self.screened += len(proposals) - len(chosen)
        return chosen

    def _gain(self, target: Target, candidate: Candidate) -> Gain | None:
        """What a candidate gains over the target's instructions as they are now."""
        new, old = candidate.log_likelihoods, target.log_likelihoods
        if self.plan.guide is None or new is None or old is None:
            return None
        return self.plan.guide.gain(target.slot, new, old)

    def _log_likelihoods(self, target: Target, texts: Sequence[str]) -> list[LogLikelihoods]:
        """Of the gold responses under each text; from the journal where it has them."""
        assert self.plan.guide is not None
        keys = [key_of("likelihood", target.name, text) for text in texts]
        new = {key: text for key, text in zip(keys, texts, strict=True) if not self._has(key)}
        if new:
            with self.validator.budget.batch("likelihoods"):
                scored = self.plan.guide.log_likelihoods(target.slot, list(new.values()))
            for key, log_likelihoods in zip(new, scored, strict=True):
                self.journal.put(key, list(log_likelihoods), about="likelihood")
        return [tuple(self.journal.get(key) or ()) for key in keys]

    def _has(self, key: str) -> bool:
        return self.journal.get(key) is not None

    def _validate(self, target: Target, proposal: Proposal) -> Evaluation | None:
        """Evaluates the best program with this proposal in it; None where no budget is left."""
        plan = self.plan
        if not self.validator.room_for(len(plan.valset)):
            return None
        changes = {**self.instructions(), target.name: proposal.instructions}
        return self.validator.evaluate_once(
            with_instructions(plan.base, changes),
            plan.valset,
            self.journal,
            key_of("trial", changes),
            about="trial",
        )


def _trial(
    number: int,
    sweep: int,
    proposal: Proposal,
    old: str,
    new: Evaluation,
    gain: Gain | None,
    accepted: bool,
) -> Trial:
    return Trial(
        number=number,
        sweep=sweep,
        predictor=proposal.predictor,
        start=proposal.window.start,
        end=proposal.window.end,
        old_text=proposal.window.text_of(old),
        new_text=" … ".join(proposal.fills),
        instructions=proposal.instructions,
        score=new.mean,
        scores=new.scores,
        num_failures=new.num_failures,
        confidence=proposal.confidence,
        log_likelihood_gain=None if gain is None else gain.mean,
        accepted=accepted,
    )
