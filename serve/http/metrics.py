"""Prometheus metrics of a server, in a registry of their own."""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from serve.engine.protocol import Engine

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counts requests at the border and batches in the engine (an `EngineObserver`)."""

    def __init__(self, engine: Engine, routes: Sequence[str]) -> None:
        self.registry = CollectorRegistry()
        self.routes = frozenset(routes)
        registry = self.registry
        self.requests = Counter(
            "sidereal_requests",
            "Requests answered; 499: the client left",
            ["route", "status"],
            registry=registry,
        )
        self.latency = Histogram(
            "sidereal_request_seconds",
            "From headers to last byte",
            ["route"],
            buckets=SECONDS,
            registry=registry,
        )
        self.queued = Histogram(
            "sidereal_queue_seconds",
            "From arrival at the engine to its batch",
            buckets=SECONDS,
            registry=registry,
        )
        self.batch_seconds = Histogram(
            "sidereal_batch_seconds", "Time of a batch", ["kind"], buckets=SECONDS, registry=registry
        )
        self.batch_size = Histogram(
            "sidereal_batch_size", "Requests of a batch", buckets=SIZES, registry=registry
        )
        self.beams = Counter("sidereal_beams", "Beams searched", registry=registry)
        self.scored = Counter("sidereal_scored_candidates", "Candidates scored", registry=registry)
        self.items = Counter("sidereal_items", "Items found", registry=registry)
        self.invalid = Counter(
            "sidereal_invalid_items",
            "Items withheld that the request could not get; stays 0",
            registry=registry,
        )
        waiting = Gauge("sidereal_waiting_requests", "Requests in the engine's queue", registry=registry)
        waiting.set_function(lambda: engine.load.waiting)
        running = Gauge("sidereal_running_requests", "Requests of the batch that runs", registry=registry)
        running.set_function(lambda: engine.load.running)
        self.open = Gauge(
            "sidereal_open_requests", "Requests between headers and last byte", registry=registry
        )

    def batch_done(self, kind: str, waited_s: Sequence[float], seconds: float, beams: int) -> None:
        (self.scored if kind == "score" else self.beams).inc(beams)
        self.batch_seconds.labels(kind).observe(seconds)
        self.batch_size.observe(len(waited_s))
        for one in waited_s:
            self.queued.observe(one)

    def request_done(self, path: str, status: int, seconds: float) -> None:
        """Paths that are no route count together, so that clients cannot make series up."""
        route = path if path in self.routes else "other"
        self.requests.labels(route, str(status)).inc()
        self.latency.labels(route).observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self.registry)
