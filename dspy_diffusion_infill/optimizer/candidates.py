"""Candidates for a trial: programs that differ from the best one by proposals."""

from collections.abc import Mapping
from dataclasses import dataclass

from dspy_diffusion_infill.infiller.proposals import Proposal
from dspy_diffusion_infill.merging import changes_between
from dspy_diffusion_infill.optimizer.results import Edit
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
