"""How far new instructions may be from those that a search began with."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from rapidfuzz.distance import Levenshtein

from dspy_diffusion_infill.value_checks import check_number, check_whole
from dspy_diffusion_infill.words import words_of

BoundReason = Literal["edited_too_much", "too_long", "grew_too_much"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Bounds on the sum of all edits; None is no bound.

    Attributes:
        max_edit_fraction: words changed, inserted or deleted, as a share of the original's words,
            above 0 and at most 1.
        max_instruction_tokens: tokens of the denoiser, at least 1.
        max_growth: tokens of the denoiser, as a multiple of the original's, at least 1.

    Raises:
        TypeError: a bound is no number.
        ValueError: it is out of its range.
    """

    max_edit_fraction: float | None = None
    max_instruction_tokens: int | None = None
    max_growth: float | None = None

    def __post_init__(self) -> None:
        check_number(
            "max_edit_fraction",
            self.max_edit_fraction,
            "above 0 and at most 1",
            lambda share: 0 < share <= 1,
            none="no bound",
        )
        check_whole(
            "max_instruction_tokens",
            self.max_instruction_tokens,
            least=1,
            unit="tokens",
            optional=True,
        )
        check_number(
            "max_growth",
            self.max_growth,
            "a finite factor of at least 1",
            lambda factor: 1 <= factor < math.inf,
            none="no bound",
        )

    def check_original(self, name: str, num_tokens: int) -> None:
        """Raises ValueError if the instructions with which a search begins are too long.

        Args:
            name: of the predictor.
            num_tokens: of its instructions.
        """
        most = self.max_instruction_tokens
        if most is not None and num_tokens > most:
            raise ValueError(
                f"max_instruction_tokens must be at least {num_tokens}, the tokens of the "
                f"instructions of {name!r}, got {most}: raise it, or shorten the instructions"
            )

    def reason_against(
        self, text: str, original: str, num_tokens: Callable[[str], int]
    ) -> BoundReason | None:
        """The bound that a text is beyond; None where it keeps within all.

        Args:
            text: new instructions.
            original: those that the search began with.
            num_tokens: counts the tokens of a text.
        """
        if self.max_edit_fraction is not None:
            before = words_of(original)
            num_edits = Levenshtein.distance(before, words_of(text))
            if num_edits > self.max_edit_fraction * len(before):
                return "edited_too_much"
        if self.max_instruction_tokens is not None:
            if num_tokens(text) > self.max_instruction_tokens:
                return "too_long"
        if self.max_growth is not None:
            if num_tokens(text) > self.max_growth * num_tokens(original):
                return "grew_too_much"
        return None


NO_BOUNDS = Bounds()
