"""What is scored: a prompt as messages, and a response. Light: no torch."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ScoredPair:
    """A response whose likelihood is asked.

    Attributes:
        messages: what the program's adapter sends, each with ``role`` and ``content``.
        response: the gold response, as the LM should write it.
    """

    messages: tuple[Mapping[str, str], ...]
    response: str
