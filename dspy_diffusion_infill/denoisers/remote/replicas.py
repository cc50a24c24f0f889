"""Asks one of several servers of the same denoiser; a request that one loses goes to another."""

import logging
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import uuid4

import httpx
from pydantic import ValidationError
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    stop_after_attempt,
    wait_random_exponential,
)

from dspy_diffusion_infill.denoisers.remote.wire import (
    ID_HEADER,
    TOKEN_VARIABLE,
    Refusal,
    check_token,
)
from dspy_diffusion_infill.errors import DenoiserError

logger = logging.getLogger(__name__)

ATTEMPTS = 20
"""With up to ten seconds between two: about two minutes in which a server can start again."""
LONGEST_WAIT = 10.0
REST, LONGEST_REST = 2.0, 64.0
"""Seconds for which a server that failed is asked only where no other is left; first, and most."""

_AGAIN = (429, 502, 503, 504)


class UnavailableError(DenoiserError):
    """Another try may succeed."""


@dataclass(slots=True, eq=False)
class HttpReplica:
    """One server.

    Attributes:
        url: its address.
        num_open: requests of ours that it has not answered yet.
        rests_until: on the monotonic clock.
        rest: seconds of the next one.
    """

    url: str
    num_open: int = field(default=0, init=False)
    rests_until: float = field(default=0.0, init=False)
    rest: float = field(default=REST, init=False)


class Replicas:
    """Servers of the same denoiser; safe to call from several threads.

    Args:
        urls: their addresses, at least one.
        token: they all have; None is the ``DSPY_INFILL_TOKEN`` variable.
        timeout: seconds that one answer may take.

    Raises:
        ValueError: an address is no HTTP address, the token cannot be one, or ``timeout`` is not
            above 0.
    """

    def __init__(self, urls: Sequence[str], *, token: str | None, timeout: float) -> None:
        if not timeout > 0:
            raise ValueError(f"timeout must be above 0 seconds, got timeout={timeout}")
        token = token or os.environ.get(TOKEN_VARIABLE) or None
        headers = {} if token is None else {"Authorization": f"Bearer {check_token(token)}"}
        limits = httpx.Timeout(timeout, connect=min(timeout, 10.0), pool=None)
        self._all = [HttpReplica(_checked(url)) for url in urls]
        self._client = httpx.Client(headers=headers, timeout=limits)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._all)

    def facts(self) -> list[tuple[str, bytes]]:
        """(address, what it says of itself) of each server that answers; each is asked once.

        Raises:
            DenoiserError: none answers, or one refuses.
        """
        found: list[tuple[str, bytes]] = []
        missing: list[UnavailableError] = []
        for replica in self._all:
            try:
                found.append((replica.url, self._exchange(replica, "GET", "/v1/denoiser")))
            except UnavailableError as error:
                missing.append(error)
        if not found:
            raise missing[0]
        return found

    def ask(self, work: str, body: bytes) -> bytes:
        """The answer to one request for ``work`` (``infill``), from whichever server gives it.

        Raises:
            DenoiserError: no server could be reached in any try, or one refused.
            ContextTooLongError: as the denoiser raises it.
            DenoiserMemoryError: the same.
            ValueError: the same.
        """
        headers = {ID_HEADER: uuid4().hex, "Content-Type": "application/json"}
        retrying = Retrying(
            retry=retry_if_exception_type(UnavailableError),
            stop=stop_after_attempt(ATTEMPTS),
            wait=self._wait,
            reraise=True,
        )
        return retrying(self._try, f"/v1/{work}", body, headers)

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    def _try(self, path: str, body: bytes, headers: dict[str, str]) -> bytes:
        """Asks the one with the least to do, of those that do not rest where there is any."""
        now = time.monotonic()
        with self._lock:
            replica = min(
                self._all, key=lambda one: (max(0.0, one.rests_until - now), one.num_open)
            )
            replica.num_open += 1
        try:
            return self._exchange(replica, "POST", path, body, headers)
        finally:
            with self._lock:
                replica.num_open -= 1

    def _wait(self, state: RetryCallState) -> float:
        """Seconds before the next try: none where a server is left that does not rest."""
        if any(replica.rests_until <= time.monotonic() for replica in self._all):
            return 0.0
        return wait_random_exponential(multiplier=0.2, max=LONGEST_WAIT)(state)

    def _exchange(
        self,
        replica: HttpReplica,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> bytes:
        try:
            url = f"{replica.url}{path}"
            response = self._client.request(method, url, content=body, headers=headers)
        except httpx.TransportError as error:
            self._lose(replica, error)
            raise UnavailableError(f"{replica.url} cannot be reached: {error!r:.200}") from error
        except httpx.HTTPError as error:
            raise DenoiserError(f"{replica.url} answers no HTTP: {error!r:.200}") from error
        replica.rest = REST
        if response.status_code in _AGAIN:
            replica.rests_until = time.monotonic() + _retry_after(response)
            raise UnavailableError(f"{replica.url} is busy (HTTP {response.status_code})")
        if response.status_code != 200:
            raise _error(replica.url, response)
        return response.content

    def _lose(self, replica: HttpReplica, error: httpx.TransportError) -> None:
        """Lets it rest; requests that are lost with the first one change nothing more."""
        with self._lock:
            if (now := time.monotonic()) < replica.rests_until:
                return
            replica.rests_until = now + replica.rest
            replica.rest = min(2 * replica.rest, LONGEST_REST)
        logger.warning("%s cannot be reached and rests: %r", replica.url, error)


def _checked(url: str) -> str:
    try:
        parsed = httpx.URL(url.strip())
    except httpx.InvalidURL:
        parsed = httpx.URL()
    others = parsed.userinfo or parsed.query or parsed.fragment
    if parsed.scheme not in ("http", "https") or not parsed.host or others:
        raise ValueError(
            f"a served denoiser must have an address such as http://127.0.0.1:8100, "
            f"got {url!r:.200}"
        )
    return str(parsed).rstrip("/")


def _retry_after(response: httpx.Response) -> float:
    """Seconds that the server asks for; dates, which are allowed there, are not read."""
    try:
        return min(max(float(response.headers.get("Retry-After", "")), 0.0), LONGEST_WAIT)
    except ValueError:
        return REST


def _error(url: str, response: httpx.Response) -> Exception:
    if response.status_code == 401:
        return DenoiserError(
            f"{url} refuses the token: give token=, or set {TOKEN_VARIABLE}, to what "
            f"`dspy-infill serve` printed there"
        )
    try:
        refusal = Refusal.model_validate_json(response.content)
    except ValidationError:
        return DenoiserError(
            f"{url} is no `dspy-infill serve`: it answers HTTP {response.status_code}"
        )
    return refusal.known() or DenoiserError(
        f"{url} answers HTTP {response.status_code}: {refusal.message}"
    )
