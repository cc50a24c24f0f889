"""Candidates for a trial: programs that differ from the best one by proposals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dspy_diffusion_infill.infiller.proposals import Proposal
from dspy_diffusion_infill.merging import changes_between
from dspy_diffusion_infill.optimizer.guidance import Gain
from dspy_diffusion_infill.optimizer.results import Edit, Trial
from dspy_diffusion_infill.outcomes import Evaluation
from dspy_diffusion_infill.windows import Piece, Window


@dataclass(frozen=True, slots=True)
class Candidate:
    """A program that may be tried.

    Attributes:
        proposals: at least one, of different predictors.
        old: the instructions of all predictors under search that they were made from, by name.
    """

    proposals: tuple[Proposal, ...]
    old: Mapping[str, str]

    @property
    def texts(self) -> dict[str, str]:
        """The instructions of all predictors under search, by name."""
        return {**self.old, **{one.predictor: one.instructions for one in self.proposals}}

    @property
    def predictors(self) -> frozenset[str]:
        """The predictors that the proposals are of."""
        return frozenset(one.predictor for one in self.proposals)

    def joined(self, other: "Candidate") -> "Candidate | None":
        """Both at once; None where they change the same predictor or were made from other texts."""
        if self.predictors & other.predictors or self.old != other.old:
            return None
        return Candidate((*self.proposals, *other.proposals), self.old)

    @property
    def confidence(self) -> float:
        """The lowest confidence of the proposals, in (0, 1]."""
        return min(one.confidence for one in self.proposals)

    def edits(self) -> list[Edit]:
        """Each proposal as a change of its predictor's old instructions."""
        return [
            Edit(
                predictor=one.predictor,
                start=one.window.start,
                end=one.window.end,
                old_text=one.window.text_of(self.old[one.predictor]),
                new_text=" … ".join(one.fills),
                instructions=one.instructions,
            )
            for one in self.proposals
        ]


def proposal_between(predictor: str, old: str, new: str) -> Proposal:
    """The proposal that makes one text of another, as a merge does; no denoiser filled it in."""
    changes = changes_between(old, new)
    window = Window(tuple(Piece(one.start, one.end, 0) for one in changes))
    return Proposal(predictor, window, tuple(one.new for one in changes), new, confidence=1.0)


def trial_of(
    candidate: Candidate,
    number: int,
    sweep: int,
    new: Evaluation,
    rows: Sequence[int],
    gain: Gain | None,
    accepted: bool,
) -> Trial:
    """What the result says of a candidate that was scored on some rows."""
    first, *others = candidate.edits()
    return Trial(
        number=number,
        sweep=sweep,
        predictor=first.predictor,
        start=first.start,
        end=first.end,
        old_text=first.old_text,
        new_text=first.new_text,
        instructions=first.instructions,
        score=new.mean,
        scores=new.scores,
        rows=tuple(rows),
        num_failures=new.num_failures,
        confidence=candidate.confidence,
        log_likelihood_gain=None if gain is None else gain.mean,
        accepted=accepted,
        also=tuple(others),
    )
