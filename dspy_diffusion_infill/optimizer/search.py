"""The search: sweeps over predictors and windows, proposals, trials (paper, §3.2 and §5.3)."""

import logging
import random
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import dspy

from dspy_diffusion_infill.contexts import Slot
from dspy_diffusion_infill.errors import ContextTooLongError
from dspy_diffusion_infill.identity import identity_of, key_of
from dspy_diffusion_infill.infiller.infiller import Infiller
from dspy_diffusion_infill.infiller.proposals import Proposal, ProposalFilter
from dspy_diffusion_infill.journal import Journal
from dspy_diffusion_infill.optimizer.guidance import Gain, Guide, loses_a_label
from dspy_diffusion_infill.optimizer.results import Trial
from dspy_diffusion_infill.optimizer.validation import (
    Evaluation,
    Validator,
    evaluation_from_json,
    evaluation_to_json,
)
from dspy_diffusion_infill.programs import with_instructions
from dspy_diffusion_infill.protection import Protect, protected_spans
from dspy_diffusion_infill.windows import Masking, Window

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOptions:
    """How wide and how long.

    Attributes:
        maskings: the windows, one scheme a sweep in turn; marked spans have their own.
        sweeps: passes over all windows of all predictors.
        num_proposals: proposals for each window and sweep.
        num_validated: with guidance, how many of them are validated, the likeliest first.
        protect: the user's protected text.
        seed: decides every random choice.
    """

    maskings: tuple[Masking, ...]
    sweeps: int
    num_proposals: int
    num_validated: int
    protect: Protect
    seed: int

    def identity(self) -> list[Any]:
        """What a journal knows the options by; a masking of the user's own by what it says."""
        plain = [self.sweeps, self.num_proposals, self.num_validated, self.seed]
        return [*plain, identity_of(self.maskings), [str(entry) for entry in self.protect]]


@dataclass(slots=True)
class Target:
    """One predictor under search: its examples, its current instructions, and their likelihood.

    Attributes:
        slot: what renders its contexts.
        text: the best instructions so far.
        agent_text: generated text that is protected.
        marked: the marked window, if the instructions had marks.
        filter: drops worthless proposals.
        log_likelihoods: of the gold responses under ``text``; None without guidance.
        position: where the window that was tried last begins; -1 where the next sweep begins at
            the start of the text.
    """

    slot: Slot
    text: str
    agent_text: Sequence[str]
    marked: Window | None
    filter: ProposalFilter
    log_likelihoods: tuple[float, ...] | None = None
    position: int = -1


@dataclass(slots=True)
class Search:
    """The state of one ``compile``; what ``run`` has found stays readable at any time.

    Attributes:
        student: the program, its marks taken out; never changed.
        targets: the predictors under search, by name.
        infiller: makes proposals.
        validator: scores programs and keeps the budget.
        valset: what programs are scored on.
        labels: of the valset's rows, none of which an edit may lose; None without guidance.
        guide: likelihood guidance; None is the paper's procedure.
        options: how wide and how long.
        journal: remembers what was paid for.
        best: the best program's evaluation; the student's own at first.
        first_calls: program runs that are made before the first trial.
        on_trial: called after every trial.
        trials: all trials so far.
        screened: proposals that guidance dropped.
        out_of_budget: the next trial would have passed ``max_metric_calls``.
    """

    student: dspy.Module
    targets: dict[str, Target]
    infiller: Infiller
    validator: Validator
    valset: Sequence[dspy.Example]
    labels: Sequence[Hashable] | None
    guide: Guide | None
    options: SearchOptions
    journal: Journal
    best: Evaluation
    first_calls: int
    on_trial: Callable[["Search"], None] = lambda search: None
    trials: list[Trial] = field(default_factory=list)
    screened: int = 0
    out_of_budget: bool = False

    def run(self) -> None:
        """Sweeps until all are done or the budget is spent."""
        for target in self.targets.values():
            if self.guide is not None:
                (target.log_likelihoods,) = self._log_likelihoods(target, [target.text])
        num_windows = self.num_windows()
        for sweep in range(self.options.sweeps):
            for name, target in self.targets.items():
                self._sweep(target, sweep, num_windows[name, sweep])
                if self.out_of_budget:
                    logger.info("max_metric_calls=%s is spent", self.validator.max_metric_calls)
                    return

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

    def windows_of(self, target: Target, sweep: int = 0) -> list[Window]:
        """The windows of a predictor's current instructions."""
        if target.marked is not None:
            return [target.marked]
        spans = protected_spans(
            target.text,
            target.slot.signature,
            protect=self.options.protect,
            agent_text=target.agent_text,
        )
        offsets = self.infiller.denoiser.encode(target.text).offsets
        masking = self.options.maskings[sweep % len(self.options.maskings)]
        return masking.windows(target.text, offsets, spans)

    def num_windows(self) -> dict[tuple[str, int], int]:
        """How many windows each sweep tries at most, by predictor and sweep: those of the start."""
        return {
            (name, sweep): len(self.windows_of(target, sweep))
            for name, target in self.targets.items()
            for sweep in range(self.options.sweeps)
        }

    def _sweep(self, target: Target, sweep: int, num_windows: int) -> None:
        """Left to right; after an accepted edit, on over the new text from the same place.

        Edits can make the text longer. A sweep still tries no more windows than were estimated, and
        the next one goes on where this one stopped.
        """
        for _ in range(num_windows):
            windows = self.windows_of(target, sweep)
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
            if any(w.start > target.position for w in self.windows_of(target, sweep)):
                return
        target.position = -1

    def _try_window(self, target: Target, window: Window, sweep: int) -> None:
        old = target.text
        proposals = target.filter.keep(self._propose(target, window, sweep), old)
        for proposal, gain, log_likelihoods in self._screen(target, proposals):
            evaluation = self._validate(target, proposal)
            if evaluation is None:
                self.out_of_budget = True
                return
            if self.guide and log_likelihoods is not None and target.log_likelihoods is not None:
                gain = self.guide.gain(target.slot, log_likelihoods, target.log_likelihoods)
            accepted = is_better(evaluation, self.best, gain) and not loses_a_label(
                evaluation.scores, self.best.scores, self.labels
            )
            self.trials.append(
                _trial(len(self.trials) + 1, sweep, proposal, old, evaluation, gain, accepted)
            )
            if accepted:
                target.text, self.best = proposal.instructions, evaluation
                target.log_likelihoods = log_likelihoods
                if target.marked is not None:
                    target.marked = window.after_splice(proposal.fills)
            self.on_trial(self)

    def _propose(self, target: Target, window: Window, sweep: int) -> list[Proposal]:
        """From the journal where it has them, else from the denoiser."""
        pieces = [[piece.start, piece.end, piece.num_masks] for piece in window.pieces]
        key = ("proposals", target.slot.name, target.text, pieces, sweep)
        if (known := self.journal.get(key_of(*key))) is None:
            seed = random.Random(f"{self.options.seed}/{key}").randrange(2**31)
            made = self.infiller.propose(
                target.slot, target.text, window, num=self.options.num_proposals, seed=seed
            )
            known = [[list(p.fills), p.confidence] for p in made]
            self.journal.put(key_of(*key), known, about=key[0])
        return [
            Proposal(
                target.slot.name,
                window,
                tuple(fills),
                window.splice(target.text, fills),
                confidence,
            )
            for fills, confidence in known
        ]

    def _screen(
        self, target: Target, proposals: list[Proposal]
    ) -> list[tuple[Proposal, Gain | None, tuple[float, ...] | None]]:
        """Without guidance all; with it those that make gold responses likelier, best first."""
        if self.guide is None or target.log_likelihoods is None:
            return [(proposal, None, None) for proposal in proposals]
        scored = []
        found = self._log_likelihoods(target, [proposal.instructions for proposal in proposals])
        for proposal, log_likelihoods in zip(proposals, found, strict=True):
            gain = self.guide.gain(target.slot, log_likelihoods, target.log_likelihoods)
            if gain.mean > 0:
                scored.append((proposal, gain, log_likelihoods))
        scored.sort(key=lambda item: -item[1].mean)
        chosen = scored[: self.options.num_validated]
        for proposal, *_ in scored[len(chosen) :]:  # outranked here, and welcome in a later sweep
            target.filter.forget(proposal)
        self.screened += len(proposals) - len(chosen)
        return chosen

    def _log_likelihoods(self, target: Target, texts: Sequence[str]) -> list[tuple[float, ...]]:
        """Of the gold responses under each text; from the journal where it has them."""
        assert self.guide is not None
        keys = [("likelihood", target.slot.name, text) for text in texts]
        new = [
            text
            for text, key in zip(texts, keys, strict=True)
            if self.journal.get(key_of(*key)) is None
        ]
        scored = self.guide.log_likelihoods(target.slot, new) if new else []
        for text, log_likelihoods in zip(new, scored, strict=True):
            self.journal.put(
                key_of("likelihood", target.slot.name, text),
                list(log_likelihoods),
                about="likelihood",
            )
        return [tuple(self.journal.get(key_of(*key)) or ()) for key in keys]

    def _validate(self, target: Target, proposal: Proposal) -> Evaluation | None:
        """Evaluates the best program with this proposal in it; None where no budget is left."""
        if not self.validator.room_for(len(self.valset)):
            return None
        changes = {**self.instructions(), target.slot.name: proposal.instructions}
        key = ("trial", changes)
        if (known := self.journal.get(key_of(*key))) is not None:
            evaluation = evaluation_from_json(known)
            self.validator.replay(evaluation)
            return evaluation
        evaluation = self.validator.evaluate(with_instructions(self.student, changes), self.valset)
        self.journal.put(key_of(*key), evaluation_to_json(evaluation), about=key[0])
        return evaluation


def is_better(new: Evaluation, best: Evaluation, gain: Gain | None) -> bool:
    """The metric decides.

    On a tie the original stays, unless the gold responses became clearly likelier.
    """
    difference = sum(new.scores) - sum(best.scores)
    if abs(difference) > 1e-9:
        return difference > 0
    return gain is not None and gain.is_clear


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
