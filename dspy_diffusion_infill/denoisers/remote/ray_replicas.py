"""Replicas of a denoiser on a Ray cluster, as actors of the process that asks.

Actors of Ray core and not Ray Serve, which is made for services that many clients share:

- A Serve application outlives the process that started it, and its GPUs stay taken when a search is
  killed. Actors end with their owner, however it ends.
- A call is divided into as many parts as replicas are ready, each part goes to the replica with the
  least to do, and to another one if that dies. A Serve handle chooses by itself and raises where a
  replica dies with a request that it has begun: division and second try would be here in any case.
- Serve starts and stops replicas by open requests. A search infills for seconds and then scores for
  minutes: its replicas would end, and load their weights again. Here all are asked for at once;
  those without a place wait for the cluster's own autoscaler, and work from when they are ready.
- Actors need ray and grpcio; ``ray[serve]`` is 18 packages more (2.60), a controller and a proxy.

Backpressure: a replica is given at most ``MOST_OPEN`` calls of the model, one that runs and one
that is next. Others wait in the threads of their callers, so nothing piles up in the cluster.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from dspy_diffusion_infill.denoisers.remote.ray_cluster import SCHEME, RayAddress, connected, leave
from dspy_diffusion_infill.denoisers.remote.ray_replica import RayReplica, Told
from dspy_diffusion_infill.denoisers.remote.wire import Refusal
from dspy_diffusion_infill.errors import DenoiserError
from dspy_diffusion_infill.value_checks import check_number, check_whole

logger = logging.getLogger(__name__)

MOST_OPEN = 2
"""Calls of the model that a replica has at a time."""

MOST_LOSSES = 5
"""Replicas that one call may cost: it may be the call that ends them."""

MOST_FAILED_STARTS = 3
"""In a row: where processes die while they load, another one is not the cure."""

_THREADS = 8
_WORK_OF_MODEL = ("infill", "score")


@dataclass(slots=True, eq=False)
class Replica:
    """One actor.

    Attributes:
        actor: its handle.
        host: where it runs; empty until it is ready.
        process: its number there.
        facts: what it says of itself; empty until it is ready.
        num_open: calls of the model that it has not answered yet.
        num_answered: calls that it has answered.
    """

    actor: Any
    host: str = field(default="", init=False)
    process: int = field(default=0, init=False)
    facts: bytes = field(default=b"", init=False)
    num_open: int = field(default=0, init=False)
    num_answered: int = field(default=0, init=False)

    def __str__(self) -> str:
        return f"process {self.process} of {self.host}" if self.facts else "a replica that starts"


class RayReplicas:
    """Replicas of one denoiser; safe to call from several threads.

    A replica that dies, or gives no answer in time, is replaced, and its calls go to others.

    Args:
        address: of the cluster, and the model.
        replicas: how many, >= 1.
        num_gpus: of each, >= 0; a part of 1 shares a GPU. None is 1 where the cluster has GPUs now
            and the device is not the CPU, else 0.
        num_cpus: of each, >= 0; also the threads of torch on a CPU.
        options: of ``load_denoiser``, about the checkpoint.
        timeout: seconds that one answer may take, the first one included: until a replica has a
            place and its model is loaded.

    Raises:
        DenoiserError: the cluster cannot be reached.
        MissingDependencyError: ray is not installed.
        TypeError: a number is none.
        ValueError: a number is out of its range.
    """

    def __init__(
        self,
        address: RayAddress,
        *,
        replicas: int = 1,
        num_gpus: float | None = None,
        num_cpus: float = 1,
        options: Mapping[str, Any],
        timeout: float = 600.0,
    ) -> None:
        check_whole("replicas", replicas, least=1)
        wanted = "0 or more, and whole above 1"
        check_number("num_gpus", num_gpus, wanted, _is_share, none="1 where there are GPUs")
        check_number("num_cpus", num_cpus, wanted, _is_share)
        if not timeout > 0:
            raise ValueError(f"timeout must be above 0 seconds, got timeout={timeout}")
        self._address, self._options, self._timeout = address, dict(options), timeout
        self._all: list[Replica] = []
        self._changed = threading.Condition()
        self._failure: Exception | None = None
        self._num_failed_starts = 0
        self._is_closed = False
        self._ray = connected(address.cluster)
        try:
            self._needs = {"num_gpus": self._gpus(num_gpus), "num_cpus": num_cpus}
            self._say_what_lacks(replicas)
            for _ in range(replicas):
                self._start()
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        with self._changed:
            return max(1, len(self._ready()))

    @property
    def ready(self) -> tuple[Replica, ...]:
        """Those that have loaded the denoiser."""
        with self._changed:
            return tuple(self._ready())

    def facts(self) -> list[tuple[str, bytes]]:
        """(which replica, what it says of itself) of those that are ready; waits for the first.

        Raises:
            DenoiserError: none is ready in time, or the denoiser cannot be loaded.
        """
        with self._changed:
            self._wait_for(self._ready)
            return [(str(one), one.facts) for one in self._ready()]

    def ask(self, work: str, body: bytes) -> bytes:
        """The answer to one request for ``work`` (``infill``), from whichever replica gives it.

        Raises:
            DenoiserError: no replica is ready in time, or the call was lost with several.
            ContextTooLongError: as the denoiser raises it.
            DenoiserMemoryError: the same.
            ValueError: the same.
        """
        for _ in range(MOST_LOSSES):
            replica = self._take(work)
            try:
                told = self._get(replica.actor.ask.remote(work, body), self._timeout)
            except _LostError as error:
                self._lose(replica, error)
                continue
            finally:
                self._give_back(replica, work)
            replica.num_answered += 1
            if told.is_answer:
                return told.body
            raise _error(str(replica), told)
        raise DenoiserError(
            f"{MOST_LOSSES} replicas on {SCHEME}{self._address.cluster} were lost with one call of "
            f"{work}: the logs of the cluster say why"
        )

    def close(self) -> None:
        """Ends the replicas, and the connection if it was made for them."""
        with self._changed:
            if self._is_closed:
                return
            self._is_closed = True
            ending, self._all = self._all, []
            self._changed.notify_all()
        for replica in ending:
            self._end(replica)
        leave(self._ray)

    # Replicas that come

    def _gpus(self, asked: float | None) -> float:
        if asked is not None:
            return asked
        has_some = self._ray.cluster_resources().get("GPU", 0) >= 1
        return int(has_some and self._options.get("device") != "cpu")

    def _say_what_lacks(self, replicas: int) -> None:
        has = self._ray.cluster_resources()
        for name, word in (("num_gpus", "GPU"), ("num_cpus", "CPU")):
            if (needed := replicas * self._needs[name]) > has.get(word, 0):
                logger.warning(
                    "%d replicas need %g %ss and the cluster has %g: some wait until it has more",
                    *(replicas, needed, word, has.get(word, 0)),
                )

    def _start(self) -> None:
        actor = self._ray.remote(RayReplica).options(
            **self._needs, max_concurrency=_THREADS, max_restarts=0
        )
        replica = Replica(actor.remote(self._address.model, self._options))
        self._all.append(replica)
        threading.Thread(target=self._await, args=(replica,), daemon=True).start()

    def _await(self, replica: Replica) -> None:
        """Until the replica is ready, or will never be; the cluster may take long to place it."""
        try:
            told = self._get(replica.actor.start.remote(), None)
            if not told.is_answer:
                raise _error("a replica", told)
            host, process = self._get(replica.actor.place.remote(), self._timeout)
        except _LostError as error:
            self._num_failed_starts += 1
            again = self._num_failed_starts < MOST_FAILED_STARTS
            self._lose(replica, error, again=again)
        except Exception as error:
            self._lose(replica, error, again=False)
        else:
            self._join(replica, host, process, told.body)

    def _join(self, replica: Replica, host: str, process: int, facts: bytes) -> None:
        with self._changed:
            others = [one.facts for one in self._ready()]
            replica.host, replica.process = host, process
            if not others or facts == others[0]:
                self._num_failed_starts = 0
                replica.facts = facts
                self._changed.notify_all()
                return
        error = DenoiserError(
            f"all replicas must have one denoiser, got {others[0]!r:.200} and {facts!r:.200} of "
            f"process {process} of {host}"
        )
        self._lose(replica, error, again=False)

    # Replicas that go

    def _lose(self, replica: Replica, error: Exception, *, again: bool = True) -> None:
        """Replaces it; calls that are lost with the first one change nothing more."""
        with self._changed:
            if self._is_closed or replica not in self._all:
                return
            self._all.remove(replica)
            self._failure = error
            logger.warning("%s on the Ray cluster is lost: %s", replica, error)
            if again:
                try:
                    self._start()
                except Exception as failed:  # the connection is lost too
                    self._failure = failed
            self._changed.notify_all()
        self._end(replica)

    def _end(self, replica: Replica) -> None:
        with suppress(Exception):  # it is gone, or the connection is
            self._ray.kill(replica.actor)

    # Calls

    def _ready(self) -> list[Replica]:
        return [one for one in self._all if one.facts]

    def _take(self, work: str) -> Replica:
        """A replica for one call of the model, or for a text, which waits for no model."""
        of_model = work in _WORK_OF_MODEL

        def free() -> list[Replica]:
            return [one for one in self._ready() if not of_model or one.num_open < MOST_OPEN]

        with self._changed:
            replica = min(self._wait_for(free), key=lambda one: (one.num_open, one.num_answered))
            replica.num_open += of_model
            return replica

    def _give_back(self, replica: Replica, work: str) -> None:
        with self._changed:
            replica.num_open -= work in _WORK_OF_MODEL
            self._changed.notify_all()

    def _wait_for(self, found: Callable[[], list[Replica]]) -> list[Replica]:
        """What ``found`` gives once it gives some; replicas that work may take as long as they do.

        Raises:
            DenoiserError: no replica is left, or none is ready for ``timeout`` seconds.
        """
        since = time.monotonic()
        while not (some := found()):
            if self._is_closed:
                raise DenoiserError("the replicas are closed")
            if not self._all:
                raise self._none_left()
            since = time.monotonic() if self._ready() else since
            left = since + self._timeout - time.monotonic()
            if left <= 0:
                raise DenoiserError(
                    f"no replica on {SCHEME}{self._address.cluster} is ready after "
                    f"{self._timeout:g} s: each needs {self._needs}, and the cluster has "
                    f"{_resources(self._ray)}; give other numbers, or a longer timeout="
                )
            self._changed.wait(left)
        return some

    def _none_left(self) -> Exception:
        error = self._failure
        if isinstance(error, DenoiserError | ValueError | ImportError) and not isinstance(
            error, _LostError
        ):
            return error
        return DenoiserError(
            f"no replica on {SCHEME}{self._address.cluster} could be started (this package must be "
            f"installed on every machine there): {str(error).strip():.2000}"
        )

    def _get(self, reference: Any, timeout: float | None) -> Any:
        """Raises ``_LostError`` where the replica is lost, ``DenoiserError`` where all are."""
        errors = self._ray.exceptions
        try:
            return self._ray.get(reference, timeout=timeout)
        except errors.RayTaskError as error:
            raise DenoiserError(f"a replica failed: {error}") from error
        except errors.RayError as error:
            raise _LostError(str(error)) from error
        except Exception as error:
            raise DenoiserError(
                f"the connection to {SCHEME}{self._address.cluster} is lost: {error!r:.300}"
            ) from error


class _LostError(DenoiserError):
    """Another replica may answer."""


def _is_share(number: float) -> bool:
    return 0 <= number < 2**31 and (number <= 1 or number % 1 == 0)


def _resources(ray: Any) -> dict[str, float]:
    has = ray.cluster_resources()
    return {f"num_{word.lower()}s": has.get(word, 0.0) for word in ("GPU", "CPU")}


def _error(who: str, told: Told) -> Exception:
    refusal = Refusal.model_validate_json(told.body)
    return refusal.known() or DenoiserError(f"{who}: {refusal.message}")
