"""What Prometheus is told."""

from collections.abc import Callable, Hashable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "dspy_infill_requests", "HTTP requests.", ["path", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "dspy_infill_seconds", "From request to answer.", ["path"], registry=self._registry
        )
        self._items = Counter(
            "dspy_infill_items", "Texts worked on.", ["work"], registry=self._registry
        )
        self._passes = Counter("dspy_infill_passes", "Forward passes.", registry=self._registry)
        self._batches = Histogram(
            "dspy_infill_batch_requests",
            "Requests in a batch.",
            ["work"],
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=self._registry,
        )

    def watch_queue(self, length: Callable[[], int]) -> None:
        """Reads the length of the model's queue whenever it is asked for."""
        gauge = Gauge("dspy_infill_waiting", "Requests that wait.", registry=self._registry)
        gauge.set_function(length)

    def on_request(self, path: str, status: int, seconds: float) -> None:
        """Counts an answer; the path must be one of few."""
        self._requests.labels(path, status).inc()
        self._seconds.labels(path).observe(seconds)

    def on_batch(self, kind: Hashable, num_requests: int, num_items: int, num_passes: int) -> None:
        """Counts a batch; a kind is a work's name with its options, or the name."""
        work = str(kind[0] if isinstance(kind, tuple) else kind)
        self._batches.labels(work).observe(num_requests)
        self._items.labels(work).inc(num_items)
        self._passes.inc(num_passes)

    def text(self) -> bytes:
        """All of them, in Prometheus' format."""
        return generate_latest(self._registry)
