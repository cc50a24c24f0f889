"""The seam to a response scorer: what is scored, and what a scorer says. Light: no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True, slots=True)
class ScoredPair:
    """A response whose likelihood is asked.

    Attributes:
        messages: what the program's adapter sends, each with ``role`` and ``content``.
        response: the gold response, as the LM should write it.
    """

    messages: tuple[Mapping[str, str], ...]
    response: str


class ResponseScorer(Protocol):
    """Says how likely responses are."""

    @property
    def name(self) -> str:
        """What journals call it; changes whenever its numbers would."""
        ...

    def log_likelihoods(self, pairs: Sequence[ScoredPair]) -> list[float]:
        """One number a pair, in nats: the log-probability of the whole response.

        Summed over its tokens and the one that ends the turn; higher is better. Numbers of one
        scorer can be compared for equal responses only.
        """
        ...


@runtime_checkable
class BoundedScorer(ResponseScorer, Protocol):
    """A scorer that can say whether a pair fits its context; guidance then shortens what does not.

    A scorer that cannot say is given everything as it is.
    """

    def room(self, pair: ScoredPair) -> int:
        """Tokens of the context that a pair leaves free; below 0 where it does not fit."""
        ...
