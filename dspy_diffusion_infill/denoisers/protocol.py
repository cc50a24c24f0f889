"""The one seam to a masked diffusion LM: what is asked of it, and the data that goes through.

This module is light: it loads neither torch nor transformers.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import InitVar, dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args, runtime_checkable

from dspy_diffusion_infill.chat_spans import Message
from dspy_diffusion_infill.value_checks import check_whole

if TYPE_CHECKING:
    from torch import Tensor

Algorithm = Literal["low_confidence", "random", "entropy", "maskgit_plus", "topk_margin", "origin"]
Cache = Literal["off", "window", "around", "context"]
Compile = Literal["default", "reduce-overhead"]


@dataclass(frozen=True, slots=True)
class Encoding:
    """A text's tokens.

    Attributes:
        input_ids: one id a token.
        offsets: (start, end) of each token in the text, in characters.
    """

    input_ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class SharedContext:
    """A text that requests differ from in one span of tokens: the instructions.

    Attributes:
        input_ids: its tokens, none masked.
        start: first token of the span.
        end: one past its last token.
    """

    input_ids: tuple[int, ...]
    start: int
    end: int

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end <= len(self.input_ids):
            raise ValueError(
                f"a SharedContext must have 0 <= start <= end <= {len(self.input_ids)} tokens, "
                f"got start={self.start}, end={self.end}"
            )


@dataclass(frozen=True, slots=True)
class InfillRequest:
    """One text to infill.

    Attributes:
        input_ids: ids that hold the denoiser's ``mask_id`` where to fill; a 1-D tensor is taken
            too.
        seed: decides every random choice for this request, whatever else is in the batch.
        context: what it shares with other requests; used with ``Sampling.shares_contexts``.
    """

    input_ids: "Sequence[int] | Tensor"
    seed: int = 0
    context: SharedContext | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How masked tokens are filled.

    Attributes:
        steps: reverse-process steps, >= 1; never more forward passes than masked tokens are made.
        temperature: of the Gumbel (LLaDA) or categorical (Dream) draw, >= 0; 0 is greedy. None is
            the denoiser's own (LLaDA 0.8, Dream 0.1; paper Table 6).
        algorithm: which tokens are unmasked first. LLaDA's: ``low_confidence``, ``random``;
            Dream's: ``entropy``, ``maskgit_plus``, ``topk_margin``, ``origin``. None is the
            denoiser's own.
        block_length: tokens of a semi-autoregressive block (LLaDA), >= 1; None is the denoiser's
            own, mostly one block.
        top_p: nucleus of the draw, in (0, 1]; None is all.
        top_k: most probable tokens among which is drawn, >= 1; None is as published: 50 for Dream's
            algorithms, all for LLaDA's.
        threshold: each step also fills every token that it draws with a higher probability, in
            (0, 1]: fewer passes, as Fast-dLLM has it (arXiv 2505.22618). It fills within a block.
            None fills as many as ``steps`` says.
        forbid_special: never fill in special tokens or end-of-text; the mask is never filled in.
        cache: which keys and values are kept from pass to pass. ``off`` is exact: none.
            ``window``: those of the visible tokens, from the first pass on; later passes compute
            the masked tokens alone. ``around``: those around the instructions, from request to
            request; each pass computes the instructions, for all requests of a text at once.
            ``context``: also those of the instructions, from the first pass on; later passes
            compute what is read and what was filled last. All are approximations (docs/denoisers).
        max_drift: with ``cache="around"`` or ``"context"``, how far a token next to the
            instructions may move from what is kept of it, a share of its length, 0 or more
            (``drift``). Beyond it the text as it is then is computed whole, for this request. 0 is
            exact, None never looks.
        cached: deprecated; True is ``cache="window"``, False is ``cache="off"``.
    """

    steps: int = 128
    temperature: float | None = None
    algorithm: Algorithm | None = None
    block_length: int | None = None
    top_p: float | None = None
    top_k: int | None = None
    threshold: float | None = None
    forbid_special: bool = True
    cache: Cache = "off"
    max_drift: float | None = None
    cached: InitVar[bool | None] = None

    def __post_init__(self, cached: bool | None) -> None:
        if cached is not None:
            value = "window" if cached else "off"
            warnings.warn(
                f"cached={cached!r} is deprecated: give cache={value!r}",
                DeprecationWarning,
                stacklevel=3,
            )
            object.__setattr__(self, "cache", value)
        if self.cache not in get_args(Cache):
            known = ", ".join(map(repr, get_args(Cache)))
            raise ValueError(f"cache must be one of {known}, got {self.cache!r}")
        for name, is_optional in (("steps", False), ("block_length", True), ("top_k", True)):
            check_whole(name, getattr(self, name), least=1, optional=is_optional)
        if self.algorithm is not None and self.algorithm not in get_args(Algorithm):
            known = ", ".join(get_args(Algorithm))
            raise ValueError(f"algorithm must be one of {known}, got {self.algorithm!r}")
        temperature = self._number("temperature")
        if temperature is not None and not 0 <= temperature < math.inf:
            raise ValueError(f"temperature must be 0 or more, got temperature={temperature}")
        max_drift = self._number("max_drift")
        if max_drift is not None and not 0 <= max_drift < math.inf:
            raise ValueError(f"max_drift must be 0 or more, got max_drift={max_drift}")
        if max_drift is not None and not self.shares_contexts:
            raise ValueError(
                f"max_drift must be None unless cache is 'around' or 'context', got {self.cache!r}"
            )
        for name in ("top_p", "threshold"):
            share = self._number(name)
            if share is not None and not 0 < share <= 1:
                raise ValueError(f"{name} must be in (0, 1], got {name}={share}")

    @property
    def shares_contexts(self) -> bool:
        """Whether keys and values are kept from request to request."""
        return self.cache in ("around", "context")

    def _number(self, name: str) -> float | None:
        value: Any = getattr(self, name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, Real)):
            raise TypeError(f"{name} must be a number or None, got {name}={value!r}")
        return None if value is None else float(value)


@dataclass(frozen=True, slots=True)
class Infilled:
    """An infilled request.

    Attributes:
        input_ids: the request's ids with every mask filled.
        confidence: mean probability, in (0, 1], that the model gave the filled tokens when it
            filled them.
        num_passes: forward passes that this request took part in.
        num_refreshes: how often its whole text was computed since what was kept of its context had
            drifted (``Sampling.max_drift``).
    """

    input_ids: tuple[int, ...]
    confidence: float
    num_passes: int
    num_refreshes: int = 0


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """Masked tokens whose likelihood is asked.

    Attributes:
        input_ids: ids that hold ``mask_id`` at the places to score.
        targets: the true token of each masked place, in order.
        context: what it shares with other requests. What lies around the instructions is then
            computed once for all of them, as with ``Sampling(cache="context")``: an approximation.
    """

    input_ids: Sequence[int]
    targets: Sequence[int]
    context: SharedContext | None = None


@runtime_checkable
class Denoiser(Protocol):
    """A masked diffusion LM."""

    name: str
    """Hub id or folder, with revision and dtype: the key of caches and journals."""
    context_length: int
    """Tokens that fit, prompt and response together."""
    mask_id: int

    @property
    def num_passes(self) -> int:
        """Forward passes made so far."""
        ...

    def encode(self, text: str) -> Encoding:
        """Tokens with character offsets; special tokens in the text are known, none is added.

        No text gives ``mask_id``: a mask token that the text spells out is ordinary characters.
        """
        ...

    def decode(self, input_ids: Sequence[int]) -> str:
        """The text of the tokens, nothing cleaned up."""
        ...

    def render(self, messages: Sequence[Message]) -> str:
        """The messages in the model's chat template, beginning-of-text token included."""
        ...

    def infill(self, requests: Sequence[InfillRequest], sampling: Sampling) -> list[Infilled]:
        """Fills every mask of every request; tokens that are not masked never change."""
        ...

    def score(self, requests: Sequence[ScoreRequest]) -> list[tuple[float, ...]]:
        """Natural-log probability of each target, all masked places of a request hidden at once."""
        ...
