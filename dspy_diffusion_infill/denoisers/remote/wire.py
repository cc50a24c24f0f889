"""What a served denoiser is asked and answers: JSON, checked on both sides.

Numbers go over it exactly: Python writes a float so that it is read back the same.
"""

import re
from importlib.metadata import version
from typing import Annotated, Generic, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from dspy_diffusion_infill.denoisers.protocol import (
    Denoiser,
    InfillRequest,
    Sampling,
    ScoreRequest,
    SharedContext,
)
from dspy_diffusion_infill.errors import (
    ContextTooLongError,
    DenoiserMemoryError,
    MissingDependencyError,
    MissingMaskTokenError,
    NotMaskedDiffusionError,
    UnknownDenoiserError,
)

VERSION = 1
"""Of the messages, and of what a seed gives: both sides must have the same."""

TOKEN_VARIABLE = "DSPY_INFILL_TOKEN"
MOST_STEPS = 2**16
"""A schedule is a list of its steps: more of them would take memory and nothing else."""

ID_HEADER = "X-Request-Id"
"""A request that is sent again has the id of the first time, and is answered once."""

_ERRORS: dict[str, type[Exception]] = {
    error.__name__: error
    for error in (
        ContextTooLongError,
        DenoiserMemoryError,
        MissingDependencyError,
        MissingMaskTokenError,
        NotMaskedDiffusionError,
        UnknownDenoiserError,
        ValueError,
    )
}

Item = TypeVar("Item")
Whole = Annotated[int, Field(ge=-(2**63), lt=2**63, strict=True)]
"""What torch has numbers for."""


def check_token(token: str) -> str:
    """Returns the token.

    Raises:
        ValueError: it is short enough to guess, or no HTTP header can hold it.
    """
    if not re.fullmatch(r"[!-~]{16,}", token):
        raise ValueError(
            "token must be at least 16 ASCII characters without white space, "
            f"got {len(token)} characters"
        )
    return token


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="constants")


def _check_sampling(sampling: Sampling) -> Sampling:
    if sampling.steps > MOST_STEPS:
        raise ValueError(f"steps must be at most {MOST_STEPS}, got steps={sampling.steps}")
    for name in ("block_length", "top_k"):
        if (getattr(sampling, name) or 0) >= 2**31:
            raise ValueError(f"{name} must be below 2**31, got {getattr(sampling, name)}")
    return sampling


class Facts(_Part):
    """What a served denoiser is.

    Attributes:
        version: of the messages.
        package: version of this package there.
        name: the denoiser's, as of ``Denoiser.name``.
        context_length: tokens that fit.
        mask_id: the mask's.
    """

    model_config = ConfigDict(extra="ignore")  # a server of another version may tell something else

    version: int
    package: str = ""
    name: str = ""
    context_length: int = 0
    mask_id: int = 0

    @classmethod
    def of(cls, denoiser: Denoiser) -> "Facts":
        """Of a denoiser that is here."""
        return cls(
            version=VERSION,
            package=version("dspy-diffusion-infill"),
            name=denoiser.name,
            context_length=denoiser.context_length,
            mask_id=denoiser.mask_id,
        )


class Context(_Part):
    """A ``SharedContext``."""

    input_ids: list[Whole]
    start: Whole
    end: Whole

    @classmethod
    def of(cls, context: SharedContext | None) -> "Context | None":
        """As it goes over the wire."""
        if context is None:
            return None
        return cls(input_ids=list(context.input_ids), start=context.start, end=context.end)

    def plain(self) -> SharedContext:
        """Raises ``ValueError`` where the span lies outside of it."""
        return SharedContext(tuple(self.input_ids), self.start, self.end)


class ToInfill(_Part):
    """An ``InfillRequest``."""

    input_ids: list[Whole]
    seed: Whole
    context: Context | None = None

    @classmethod
    def of(cls, request: InfillRequest) -> "ToInfill":
        """As it goes over the wire; seeds are taken modulo 2**63 in any case."""
        ids, context = [int(k) for k in request.input_ids], Context.of(request.context)
        return cls(input_ids=ids, seed=request.seed % 2**63, context=context)

    def plain(self) -> InfillRequest:
        """What the denoiser is given."""
        context = self.context and self.context.plain()
        return InfillRequest(self.input_ids, self.seed, context)


class ToScore(_Part):
    """A ``ScoreRequest``."""

    input_ids: list[Whole]
    targets: list[Whole]
    context: Context | None = None

    @classmethod
    def of(cls, request: ScoreRequest) -> "ToScore":
        """As it goes over the wire."""
        ids, targets = list(request.input_ids), list(request.targets)
        return cls(input_ids=ids, targets=targets, context=Context.of(request.context))

    def plain(self) -> ScoreRequest:
        """What the denoiser is given."""
        context = self.context and self.context.plain()
        return ScoreRequest(self.input_ids, self.targets, context)


class Turn(_Part):
    """A message of a chat."""

    role: str
    content: str


class Call(_Part):
    """What every request says: which denoiser it means."""

    denoiser: str


class EncodeCall(Call):
    """Texts to cut into tokens."""

    items: list[str]


class DecodeCall(Call):
    """Tokens to turn into texts."""

    items: list[list[Whole]]


class RenderCall(Call):
    """Chats to render."""

    items: list[list[Turn]]

    def plain(self) -> list[list[dict[str, str]]]:
        """The chats as ``Denoiser.render`` takes them."""
        return [[turn.model_dump() for turn in chat] for chat in self.items]


class InfillCall(Call):
    """Texts to infill."""

    items: list[ToInfill]
    sampling: Annotated[Sampling, AfterValidator(_check_sampling)]


class ScoreCall(Call):
    """Masked tokens to score."""

    items: list[ToScore]


class Answer(_Part, Generic[Item]):
    """One result an item, in order.

    Attributes:
        results: of the items.
        num_passes: forward passes of the batch that they were part of.
    """

    results: list[Item]
    num_passes: int


class Refusal(_Part):
    """Why there is no answer.

    Attributes:
        error: name of the error's class.
        message: for people.
    """

    error: str
    message: str

    def known(self) -> Exception | None:
        """The error itself, where its class is one that a caller may want to catch."""
        made = _ERRORS.get(self.error)
        return None if made is None else made(self.message)
