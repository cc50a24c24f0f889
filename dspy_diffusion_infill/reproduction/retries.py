"""Retries of calls that an LM's server refused for the moment, counted.

DSPy retries inside one call and reports nothing.
"""

import time
from collections.abc import Callable
from typing import Any

import dspy
from dspy.utils.exceptions import LMError, is_retryable_lm_error

_LONGEST_PAUSE = 60.0  # seconds, where the server names none


class PatientLM(dspy.LM):
    """A ``dspy.LM`` that reports why it sends a call again."""

    def __init__(
        self,
        model: str,
        *,
        on_retry: Callable[[Exception], None],
        num_retries: int = 3,
        **options: Any,
    ) -> None:
        """Makes the LM; nothing is called.

        Args:
            model: for ``dspy.LM``.
            on_retry: called with every error after which a call is sent again.
            num_retries: how often, for rate limits, timeouts, server errors and lost connections.
            options: for ``dspy.LM``.
        """
        super().__init__(model, num_retries=0, **options)
        self._patience = num_retries
        self._on_retry = on_retry

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the LM; repeats the call after a pause where the error may pass."""
        for attempt in range(self._patience):
            try:
                return super().__call__(*args, **kwargs)
            except LMError as error:
                if not is_retryable_lm_error(error):
                    raise
                self._on_retry(error)
                time.sleep(_pause(error, attempt))
        return super().__call__(*args, **kwargs)


def reason_of(error: Exception) -> str:
    """The name under which an error is counted: ``HTTP 429``, else its class."""
    status = getattr(error, "status", None)
    return type(error).__name__ if status is None else f"HTTP {status}"


def _pause(error: Exception, attempt: int) -> float:
    """Seconds to wait: what the server asks for, else 1, 2, 4 and so on."""
    asked = getattr(error, "retry_after", None)
    return min(2.0**attempt, _LONGEST_PAUSE) if asked is None else max(float(asked), 0.0)
