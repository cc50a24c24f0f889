"""Neighbourhoods of the present instructions, from small edits to whole new ones.

A search that keeps nothing in one looks in the next wider one as well, and begins with the smallest
again when it has kept an edit.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from dspy_diffusion_infill.protection import Span
from dspy_diffusion_infill.windows import Masking, Piece, SlidingWindow, Window, free_runs

NUM_LEVELS = 4
MOST_MASKS = 48  # of one window; a small denoiser writes no longer text that holds together
_MOST_PAIRS = 4


@dataclass(frozen=True, slots=True)
class MaskableText:
    """Instructions, with what a masking scheme needs to know of them.

    Attributes:
        instructions: the text.
        offsets: (start, end) characters of each of its tokens.
        protected: merged character spans.
    """

    instructions: str
    offsets: Sequence[Span]
    protected: Sequence[Span]

    def windows(self, masking: Masking) -> list[Window]:
        """The scheme's windows of this text."""
        return masking.windows(self.instructions, self.offsets, self.protected)


def neighbourhood(text: MaskableText, maskings: Sequence[Masking], level: int) -> list[Window]:
    """The windows that a level adds to those of the levels below it.

    Args:
        text: the present instructions.
        maskings: the user's schemes, which are level 0. A scheme other than ``SlidingWindow`` has
            no wider levels: the user has said where to look.
        level: 0 to ``NUM_LEVELS`` - 1.
    """
    if level == 0:
        return [window for masking in maskings for window in text.windows(masking)]
    own = [masking for masking in maskings if isinstance(masking, SlidingWindow)]
    if len(own) < len(maskings):
        return []
    base = own[0]
    if level == 1:  # more masks than tokens, and new text in front and at the end
        return [*_longer(text, base, 2), *_insertions(text, base.mask)]
    if level == 2:  # windows twice as wide, and two windows at once
        wide = SlidingWindow(window=2 * base.window, stride=base.window, mask=2 * base.mask)
        return [*text.windows(wide), *_pairs(text.windows(base))]
    return _whole(text)


def _longer(text: MaskableText, base: SlidingWindow, times: int) -> list[Window]:
    """The scheme's windows with several times the masks."""
    return [
        Window(tuple(Piece(p.start, p.end, min(MOST_MASKS, times * p.num_masks)) for p in w.pieces))
        for w in text.windows(base)
    ]


def _insertions(text: MaskableText, num_masks: int) -> list[Window]:
    """Text that is put in and none taken out, at the end and at the beginning.

    Not where protected text stands: after "Answer:" a response belongs.
    """
    end, stripped = len(text.instructions), len(text.instructions.rstrip())
    places = []
    if not any(span[1] >= stripped for span in text.protected):
        places.append(end)
    if not any(span[0] == 0 for span in text.protected):
        places.append(0)
    return [Window((Piece(place, place, num_masks),)) for place in places]


def _pairs(windows: Sequence[Window]) -> list[Window]:
    """Two windows that do not touch, masked at once: the farthest apart first."""
    pairs = [
        Window((*first.pieces, *second.pieces))
        for number, first in enumerate(windows)
        for second in reversed(windows[number + 1 :])
        if second.start > first.end
    ]
    return pairs[:_MOST_PAIRS]


def _whole(text: MaskableText) -> list[Window]:
    """Each run of free text as a whole, with as many masks as tokens, and with twice as many."""
    windows = []
    for run in free_runs(text.instructions, text.offsets, text.protected):
        start, end = run[0][0], run[-1][1]
        for num_masks in (len(run), 2 * len(run)):
            windows.append(Window((Piece(start, end, max(4, min(MOST_MASKS, num_masks))),)))
    return windows
