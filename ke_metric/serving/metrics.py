"""What is counted, in the words of Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

# Of text without escaped names, which every scraper knows; what prometheus_client answers where nothing is asked for.
CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counters of one service; changed on its event loop only.

    Attributes:
        in_flight: Requests that are being answered.
    """

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = Counter("ke_metric_requests", "Requests answered.", ["route", "status"], registry=registry)
        self._seconds = Histogram(
            "ke_metric_request_seconds",
            "From the end of a request's headers to its answer.",
            ["route"],
            buckets=SECONDS,
            registry=registry,
        )
        self._batches = Histogram(
            "ke_metric_batch_pictures", "Pictures per forward pass.", buckets=SIZES, registry=registry
        )
        self._pictures = Counter("ke_metric_pictures", "Pictures embedded.", registry=registry)
        self._queue = Gauge("ke_metric_queue_pictures", "Pictures that wait or are in work.", registry=registry)
        self._held = Gauge("ke_metric_upload_bytes", "Bytes of uploads in memory.", registry=registry)
        self.in_flight = Gauge("ke_metric_requests_in_flight", "Requests being answered.", registry=registry)
        self._routes: dict[str, Histogram] = {}
        self._statuses: dict[tuple[str, int], Counter] = {}

    def watch(self, *, queue: Callable[[], float], held: Callable[[], float]) -> None:
        """Read two numbers whenever the metrics are asked for.

        Args:
            queue: Pictures that wait or are in work.
            held: Bytes of uploads in memory.
        """
        self._queue.set_function(queue)
        self._held.set_function(held)

    def count_request(self, route: str, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        key = route, status
        counter = self._statuses.get(key)
        if counter is None:
            counter = self._statuses[key] = self._requests.labels(route, str(status))
        counter.inc()
        histogram = self._routes.get(route)
        if histogram is None:
            histogram = self._routes[route] = self._seconds.labels(route)
        histogram.observe(seconds)

    def count_batch(self, size: int) -> None:
        """Count a forward pass."""
        self._batches.observe(size)
        self._pictures.inc(size)

    def text(self) -> bytes:
        """Return the Prometheus text format."""
        return generate_latest(self._registry)
