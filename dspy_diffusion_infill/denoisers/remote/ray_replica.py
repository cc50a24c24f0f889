"""What runs on a Ray cluster: a denoiser, and the wire's answers of it. Needs no ray itself."""

import logging
import os
import socket
import threading
from typing import Any, NamedTuple

from dspy_diffusion_infill.denoisers.protocol import Denoiser
from dspy_diffusion_infill.denoisers.remote.wire import (
    Answer,
    Call,
    DecodeCall,
    EncodeCall,
    Facts,
    InfillCall,
    Refusal,
    RenderCall,
    ScoreCall,
)
from dspy_diffusion_infill.errors import EXPECTED

logger = logging.getLogger(__name__)

_CALLS: dict[str, type[Call]] = {
    "encode": EncodeCall,
    "decode": DecodeCall,
    "render": RenderCall,
    "infill": InfillCall,
    "score": ScoreCall,
}


class Told(NamedTuple):
    """What a replica says; plain, so that ray can send it.

    Attributes:
        is_answer: False is a ``Refusal``.
        body: JSON of the wire.
    """

    is_answer: bool
    body: bytes


class RayReplica:
    """A denoiser in a process of the cluster; an actor of ``RayReplicas``.

    Ray calls it from several threads: one at a time has the model, and one the tokenizer, so that
    texts do not wait for a batch.

    Args:
        model: as of ``load_denoiser``, but no address.
        options: of ``load_denoiser``, about the checkpoint.
    """

    def __init__(self, model: str | None, options: dict[str, Any]) -> None:
        self._model, self._options = model, options
        self._denoiser: Denoiser | None = None
        self._passes, self._texts = threading.Lock(), threading.Lock()

    def place(self) -> tuple[str, int]:
        """Host, and number of the process there."""
        return socket.gethostname(), os.getpid()

    def start(self) -> Told:
        """Loads the denoiser, and says what it is."""
        from dspy_diffusion_infill.denoisers.checkpoints.loading import load

        try:
            self._denoiser = one = load(self._model, **self._options)
        except EXPECTED as error:
            return _refused(error)
        return Told(True, Facts.of(one).model_dump_json().encode())

    def ask(self, work: str, body: bytes) -> Told:
        """The answer to one request for ``work``, such as ``infill``."""
        assert self._denoiser is not None, "start comes first"
        try:
            call = _CALLS[work].model_validate_json(body)
            with self._passes if work in ("infill", "score") else self._texts:
                answer = _answer(self._denoiser, work, call)
        except EXPECTED as error:
            return _refused(error)
        return Told(True, answer.model_dump_json().encode())


def _answer(denoiser: Denoiser, work: str, call: Any) -> Answer[Any]:
    """Only who has the model moves ``num_passes``, and only that is counted."""
    before = denoiser.num_passes
    if work == "infill":
        results = denoiser.infill([item.plain() for item in call.items], call.sampling)
    elif work == "score":
        results = denoiser.score([item.plain() for item in call.items])
    elif work == "render":
        return Answer[Any](results=[denoiser.render(chat) for chat in call.plain()], num_passes=0)
    else:
        one = denoiser.encode if work == "encode" else denoiser.decode
        return Answer[Any](results=[one(item) for item in call.items], num_passes=0)
    return Answer[Any](results=results, num_passes=denoiser.num_passes - before)


def _refused(error: BaseException) -> Told:
    logger.info("refused: %r", error)
    refusal = Refusal(error=type(error).__name__, message=str(error))
    return Told(False, refusal.model_dump_json().encode())
