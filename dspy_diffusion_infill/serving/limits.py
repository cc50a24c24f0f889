"""What a server takes, and how much of it."""

from dataclasses import dataclass, fields

from dspy_diffusion_infill.value_checks import check_whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a server takes.

    Attributes:
        body_bytes: of a request, at most; a larger one is refused (413).
        waiting: requests that wait for the model, at most; others are refused (503).
        rows: texts that are joined into one batch, over clients; a larger request goes alone.
        tokens: the same, their tokens.
        receive_seconds: in which a request must have arrived, headers and body each.
        shutdown_seconds: in which requests are still answered after SIGTERM.
        kept_tokens: of answers that are kept for requests that are sent again.

    Raises:
        TypeError: one is no whole number.
        ValueError: one is below 1.
    """

    body_bytes: int = 16 * 2**20
    waiting: int = 64
    rows: int = 64
    tokens: int = 2**18
    receive_seconds: int = 30
    shutdown_seconds: int = 30
    kept_tokens: int = 2**20

    def __post_init__(self) -> None:
        for field in fields(self):
            check_whole(field.name, getattr(self, field.name), least=1)
