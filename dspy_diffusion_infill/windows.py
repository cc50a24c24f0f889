"""Windows: the spans of the instructions that are masked, cut on the denoiser's tokens.

A window says which characters are taken out and how many mask tokens are put in their place; these
are two numbers (paper, appendix E). It has several pieces where several spans are filled at once
(paper, appendix J.2).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from dspy_diffusion_infill.marks import read_marks
from dspy_diffusion_infill.protection import Span, merge_spans
from dspy_diffusion_infill.value_checks import check_whole


@dataclass(frozen=True, slots=True, order=True)
class Piece:
    """Takes out characters ``start:end`` (none where equal), and puts in ``num_masks`` masks."""

    start: int
    end: int
    num_masks: int


@dataclass(frozen=True, slots=True)
class Window:
    """The pieces that are masked together, in the order of the text."""

    pieces: tuple[Piece, ...]

    @property
    def start(self) -> int:
        """First character of the first piece."""
        return self.pieces[0].start

    @property
    def end(self) -> int:
        """One past the last character of the last piece."""
        return self.pieces[-1].end

    @property
    def num_masks(self) -> int:
        """Mask tokens of all pieces."""
        return sum(piece.num_masks for piece in self.pieces)

    def text_of(self, instructions: str) -> str:
        """What is taken out; pieces are joined with " … "."""
        return " … ".join(instructions[piece.start : piece.end] for piece in self.pieces)

    def splice(self, instructions: str, fills: Sequence[str]) -> str:
        """Puts one text into each piece; all other characters stay what they are."""
        if len(fills) != len(self.pieces):
            raise ValueError(
                f"a window of {len(self.pieces)} pieces needs as many texts, got {len(fills)}"
            )
        for piece, fill in reversed(list(zip(self.pieces, fills, strict=True))):
            instructions = instructions[: piece.start] + fill + instructions[piece.end :]
        return instructions

    def after_splice(self, fills: Sequence[str]) -> "Window":
        """The same window in the spliced text: its pieces now span what was put in."""
        shift, pieces = 0, list[Piece]()
        for piece, fill in zip(self.pieces, fills, strict=True):
            start = piece.start + shift
            pieces.append(Piece(start, start + len(fill), piece.num_masks))
            shift += len(fill) - (piece.end - piece.start)
        return Window(tuple(pieces))


class Masking(Protocol):
    """Decides what is masked. Implement ``windows`` to plug in another scheme."""

    def windows(
        self, instructions: str, offsets: Sequence[Span], protected: Sequence[Span]
    ) -> list[Window]:
        """Windows over ``instructions``, none of which touches a protected span.

        Args:
            instructions: the text.
            offsets: (start, end) characters of each of its tokens.
            protected: merged character spans.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SlidingWindow:
    """Windows of ``window`` tokens, every ``stride`` tokens (paper, appendix E).

    ``mask`` masks are put in for each. A run of free tokens that is shorter than the window is one
    window, and its masks shrink with it. The last window of a run ends where the run ends, so every
    free token is in a window.
    """

    window: int = 8
    stride: int = 4
    mask: int = 8

    def __post_init__(self) -> None:
        for name in ("window", "stride", "mask"):
            least = None if name == "stride" else 1
            check_whole(name, getattr(self, name), least=least, unit="tokens")
        if not 1 <= self.stride <= self.window:
            raise ValueError(f"stride must be in 1..window={self.window}, got stride={self.stride}")

    def windows(
        self, instructions: str, offsets: Sequence[Span], protected: Sequence[Span]
    ) -> list[Window]:
        """One-piece windows from left to right."""
        windows: list[Window] = []
        for run in free_runs(instructions, offsets, protected):
            size = min(self.window, len(run))
            num_masks = max(1, round(self.mask * size / self.window))
            starts = list(range(0, len(run) - size + 1, self.stride))
            if starts[-1] != len(run) - size:
                starts.append(len(run) - size)
            for first in starts:
                span = (run[first][0], run[first + size - 1][1])
                windows.append(Window((Piece(*span, num_masks),)))
        return windows


@dataclass(frozen=True, slots=True)
class Prefix:
    """The beginning of the instructions (paper, Table 1).

    ``mask`` masks are put in for the first ``window`` tokens.
    ``window`` is ``mask`` unless it is given; with ``window=0`` the masks are put in front and
    nothing is taken out.
    """

    mask: int
    window: int | None = None

    def __post_init__(self) -> None:
        check_whole("mask", self.mask, least=1, unit="tokens")
        check_whole("window", self.window, least=0, unit="tokens", optional=True)

    def windows(
        self, instructions: str, offsets: Sequence[Span], protected: Sequence[Span]
    ) -> list[Window]:
        """At most one window; it ends before the first protected text."""
        limit = self.mask if self.window is None else self.window
        end = 0
        for token in offsets[:limit]:
            if any(_overlap(token, span) for span in protected):
                break
            end = token[1]
        if end == 0 and limit > 0 and offsets:
            return []
        return [Window((Piece(0, end, self.mask),))]


def take_marks(instructions: str) -> tuple[str, Window | None]:
    """Takes the marks out of a text.

    Returns the text without marks and the window of the places of ``[[infill:n]]``, or None where
    there are none.

    Raises:
        ValueError: as ``read_marks``.
    """
    marked = read_marks(instructions)
    pieces = tuple(Piece(place, place, num_masks) for place, num_masks in marked.places)
    return marked.text, Window(pieces) if pieces else None


def free_runs(text: str, offsets: Sequence[Span], protected: Sequence[Span]) -> list[list[Span]]:
    """Runs of neighbouring tokens that hold text and touch no protected span."""
    blocked = merge_spans(protected)
    runs: list[list[Span]] = [[]]
    for token in offsets:
        if any(_overlap(token, span) for span in blocked):
            runs.append([])
        elif token[1] > token[0]:
            runs[-1].append(token)
    return [run for run in runs if run and text[run[0][0] : run[-1][1]].strip()]


def _overlap(a: Span, b: Span) -> bool:
    return a[0] < b[1] and b[0] < a[1]
