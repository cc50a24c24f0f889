"""From a masked window to proposals: context, tokens, reverse process, splice (paper, §3.2)."""

import logging
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from dspy_diffusion_infill.contexts import (
    CLOSE,
    OPEN,
    Message,
    Slot,
    WorkedExample,
    ever_smaller,
    indentation,
    is_stated_once,
    mark_window,
    render_messages,
)
from dspy_diffusion_infill.denoisers.protocol import (
    Denoiser,
    InfillRequest,
    Sampling,
    ScoreRequest,
    SharedContext,
)
from dspy_diffusion_infill.errors import ContextTooLongError
from dspy_diffusion_infill.infiller.proposals import Proposal
from dspy_diffusion_infill.lms.chatml import END_OF_TEXT
from dspy_diffusion_infill.template_adapter import TemplateAdapter
from dspy_diffusion_infill.windows import Piece, Window

logger = logging.getLogger(__name__)

CONTEXTS_PER_POOL = 2


@dataclass(frozen=True, slots=True)
class MaskedContext:
    """The tokens of a context with the window masked, and where in them each piece begins.

    Attributes:
        input_ids: the tokens.
        piece_starts: of each piece of the window, its first mask.
        indentation: what the adapter puts in front of the instructions' further lines.
        shared: the context without masks; None where nothing is to be shared.
    """

    input_ids: tuple[int, ...]
    piece_starts: tuple[int, ...]
    indentation: str
    shared: SharedContext | None = None


@dataclass(slots=True)
class Infiller:
    """Fills windows of instructions, given worked examples.

    Attributes:
        denoiser: the masked diffusion LM.
        sampling: steps, temperature, algorithm.
        examples_per_context: (fewest, most) worked examples in a context; each proposal draws its
            own. Where the sampling shares contexts, it takes one of a pool of
            ``CONTEXTS_PER_POOL`` contexts that all windows see.
        num_refreshes: how often the whole text of a proposal was computed anew because of drift.
    """

    denoiser: Denoiser
    sampling: Sampling
    examples_per_context: tuple[int, int] = (1, 4)
    num_refreshes: int = 0
    _warned: set[str] = field(default_factory=set)

    def propose(
        self,
        slot: Slot,
        instructions: str,
        window: Window,
        *,
        num: int,
        seed: int,
        temperature: float | None = None,
        weights: Sequence[float] | None = None,
        pool: str = "",
    ) -> list[Proposal]:
        """Returns ``num`` proposals for one window, unfiltered; equal seeds give equal proposals.

        Args:
            slot: the predictor and its worked examples.
            instructions: its instructions.
            window: what is masked.
            num: how many.
            seed: decides contexts and draws.
            temperature: in place of the sampling's.
            weights: of the slot's examples, above 0: how likely each is drawn into a context; None
                is each alike.
            pool: decides the pool of contexts; windows with equal pools share contexts.

        Raises:
            ContextTooLongError: the instructions and one shortened example do not fit the context
                length.
        """
        rng = random.Random(seed)
        if self.sampling.shares_contexts:
            drawn = [
                self.masked_context(
                    slot, instructions, window, random.Random(f"{pool}/{k}"), weights
                )
                for k in range(min(CONTEXTS_PER_POOL, num))
            ]
            contexts = [drawn[k * len(drawn) // num] for k in range(num)]
        else:
            contexts = [
                self.masked_context(slot, instructions, window, rng, weights) for _ in range(num)
            ]
        requests = [
            InfillRequest(context.input_ids, rng.randrange(2**31), context.shared)
            for context in contexts
        ]
        sampling = self.sampling
        if temperature is not None:
            sampling = replace(sampling, temperature=temperature)
        infilled = self.denoiser.infill(requests, sampling)
        self.num_refreshes += sum(one.num_refreshes for one in infilled)
        proposals = []
        for context, result in zip(contexts, infilled, strict=True):
            fills = tuple(
                self._fill(result.input_ids[start : start + piece.num_masks], context)
                for start, piece in zip(context.piece_starts, window.pieces, strict=True)
            )
            fills = _without_outer_space(fills, window, instructions)
            spliced = window.splice(instructions, fills)
            proposals.append(Proposal(slot.name, window, fills, spliced, result.confidence))
        return proposals

    def surprise(self, slot: Slot, instructions: str, window: Window) -> float:
        """How unlikely the denoiser finds the text in a window: nats a token, 0 or more.

        Raises:
            ContextTooLongError: as ``propose``.
        """
        hidden, targets = self.hide(instructions, window)
        if not targets:
            return 0.0
        context = self.masked_context(slot, instructions, hidden, random.Random(0))
        (found,) = self.denoiser.score([ScoreRequest(context.input_ids, targets, context.shared)])
        return -sum(found) / len(found)

    def hide(self, instructions: str, window: Window) -> tuple[Window, list[int]]:
        """The window with one mask for each token that it takes out, and these tokens."""
        encoded = self.denoiser.encode(instructions)
        pieces, targets = list[Piece](), list[int]()
        for piece in window.pieces:
            own = [
                token
                for token, (start, end) in zip(encoded.input_ids, encoded.offsets, strict=True)
                if piece.start <= start < end <= piece.end
            ]
            targets += own
            pieces.append(Piece(piece.start, piece.end, len(own)))
        return Window(tuple(pieces)), targets

    def masked_context(
        self,
        slot: Slot,
        instructions: str,
        window: Window,
        rng: random.Random,
        weights: Sequence[float] | None = None,
    ) -> MaskedContext:
        """One context whose length fits, with as much left out as ``ever_smaller`` says.

        Raises:
            ContextTooLongError: also the smallest does not fit.
            ValueError: the adapter does not state the instructions once for a single example.
        """
        room, length = self.denoiser.context_length, 0
        drawn, messages = self._drawn(slot, instructions, window, rng, weights)
        for smaller, loss in ever_smaller(drawn):
            if loss:
                messages = _marked(smaller, instructions, window)
                self._warn_once(
                    f"{slot.name}/{loss}",
                    f"a context of {slot.name!r} with {length} tokens does not fit {room}: {loss}",
                )
            context = self._context(messages, instructions, window)
            length = len(context.input_ids)
            if length <= room:
                return self._with_shared(context, smaller, instructions)
        raise ContextTooLongError(
            f"the instructions of {slot.name!r} with one shortened example have {length} "
            f"tokens and {self.denoiser.name} takes {room}: shorten the instructions or use "
            "a denoiser with a longer context"
        )

    def _drawn(
        self,
        slot: Slot,
        instructions: str,
        window: Window,
        rng: random.Random,
        weights: Sequence[float] | None,
    ) -> tuple[Slot, list[Message]]:
        """The slot with the worked examples of one context, and its messages with marks.

        Where the adapter repeats the instructions with each, demos are left out, and the further
        examples of a template are pairs (``Slot.in_pairs``); of another adapter it is one alone.
        """
        fewest, most = self.examples_per_context
        count = rng.randint(min(fewest, len(slot.examples)), min(most, len(slot.examples)))
        examples = _sample(slot.examples, weights, max(1, count), rng)
        drawn = replace(slot, examples=tuple(examples))
        is_template = isinstance(slot.adapter, TemplateAdapter)
        in_pairs = replace(drawn, demos=(), in_pairs=is_template)
        alone = replace(drawn, demos=(), examples=drawn.examples[-1:])
        for tried in (drawn, in_pairs, alone):
            messages = _marked(tried, instructions, window)
            if is_stated_once(messages, window):
                return tried, messages
        raise ValueError(
            f"{type(slot.adapter).__name__} must state the instructions of {slot.name!r} once in "
            "the prompt for one example, so that a window of them can be masked: use another "
            "adapter"
        )

    def _context(
        self, messages: Sequence[Message], instructions: str, window: Window
    ) -> MaskedContext:
        """The context of messages with marks, whatever its length."""
        indent = indentation(messages, instructions)
        return self._masked_tokens(self.denoiser.render(messages), window, indent)

    def _masked_tokens(self, text: str, window: Window, indent: str) -> MaskedContext:
        ids: list[int] = []
        starts = []
        for piece in window.pieces:
            before, _, rest = text.partition(OPEN)
            _, _, text = rest.partition(CLOSE)
            ids += self.denoiser.encode(before).input_ids
            starts.append(len(ids))
            ids += [self.denoiser.mask_id] * piece.num_masks
        assert OPEN not in text and CLOSE not in text, "a mark would be left in the context"
        ids += self.denoiser.encode(text).input_ids
        return MaskedContext(tuple(ids), tuple(starts), indent)

    def _with_shared(self, context: MaskedContext, slot: Slot, instructions: str) -> MaskedContext:
        """With the unmasked context, where it is wanted and fits."""
        if not self.sampling.shares_contexts:
            return context
        whole = Window((Piece(0, len(instructions), 0),))
        messages = _marked(slot, instructions, whole)
        before, _, rest = self.denoiser.render(messages).partition(OPEN)
        own, _, behind = rest.partition(CLOSE)
        encoded = self.denoiser.encode(before + own + behind)
        if len(encoded.input_ids) > self.denoiser.context_length:
            return context
        until = len(before) + len(own)
        start = sum(stop <= len(before) for _, stop in encoded.offsets)
        end = sum(begin < until for begin, _ in encoded.offsets)
        return replace(context, shared=SharedContext(encoded.input_ids, start, max(start, end)))

    def _fill(self, ids: Sequence[int], context: MaskedContext) -> str:
        """The text of a filled piece."""
        if not self.sampling.forbid_special:
            ids = self._until_end_of_text(ids)
        text = self.denoiser.decode(ids)
        return text.replace("\n" + context.indentation, "\n") if context.indentation else text

    def _until_end_of_text(self, ids: Sequence[int]) -> Sequence[int]:
        """Without the end-of-text tokens that end it; where there are no others, all of them stay.

        So a piece can have fewer tokens than masks, and one that was filled with end-of-text alone
        is what the paper's Figure 2 shows.
        """
        end = self.denoiser.encode(END_OF_TEXT).input_ids
        length = next((k for k in range(len(ids), 0, -1) if end != (ids[k - 1],)), 0)
        return ids[:length] or ids

    def _warn_once(self, key: str, message: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            logger.warning(message)


def _marked(slot: Slot, instructions: str, window: Window) -> list[Message]:
    """The messages of all examples of a slot, with marks around the window."""
    return render_messages(slot, mark_window(instructions, window), slot.examples)


def _sample(
    examples: Sequence[WorkedExample],
    weights: Sequence[float] | None,
    count: int,
    rng: random.Random,
) -> list[WorkedExample]:
    """Draws without replacement; with weights, by Efraimidis and Spirakis' exponential keys."""
    if weights is None:
        return rng.sample(examples, count)
    keys = [math.log(1 - rng.random()) / weight for weight in weights]
    chosen = sorted(range(len(examples)), key=lambda number: -keys[number])[:count]
    return [examples[number] for number in chosen]


def _without_outer_space(
    fills: tuple[str, ...], window: Window, instructions: str
) -> tuple[str, ...]:
    """Without white space at both ends of the instructions: DSPy reads them without it."""
    parts = list(fills)
    if not instructions[: window.pieces[0].start].strip():
        parts[0] = parts[0].lstrip()
    if not instructions[window.pieces[-1].end :].strip():
        parts[-1] = parts[-1].rstrip()
    return tuple(parts)
