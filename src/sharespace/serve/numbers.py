"""What a server counts, for Prometheus."""

from __future__ import annotations

from typing import Any

from sharespace.extras import require


class Numbers:
    """Counters of one app, in a registry of their own.

    No label holds a task's name: there may be thousands, and anybody may ask for any.
    """

    def __init__(self) -> None:
        prometheus = require("prometheus_client", "serve")
        self.registry = prometheus.CollectorRegistry()
        common = {"registry": self.registry, "namespace": "sharespace"}
        self._answers = prometheus.Counter(
            "answers", "Answers sent, by endpoint and HTTP status", ["endpoint", "status"], **common
        )
        self._seconds = prometheus.Histogram(
            "answer_seconds", "From the request to the end of its answer", ["endpoint"], **common
        )
        self._rows = prometheus.Histogram(
            "batch_rows",
            "Rows of a batch",
            ["kind"],
            buckets=(1, 2, 4, 8, 16, 32, 64, 128),
            **common,
        )
        self._batch = prometheus.Histogram(
            "batch_seconds", "Of one batch in the model", ["kind"], **common
        )
        self._tokens = prometheus.Counter(
            "tokens", "Tokens read and written", ["direction"], **common
        )
        self._waiting = prometheus.Gauge("waiting", "Requests in the queue", **common)
        self._tasks = prometheus.Gauge("tasks", "Tasks of the Share model", **common)
        self._prometheus = prometheus

    def batch(self, kind: type[Any], rows: int, seconds: float) -> None:
        """A batch has run (the engine's ``watch``)."""
        self._rows.labels(kind.__name__.lower()).observe(rows)
        self._batch.labels(kind.__name__.lower()).observe(seconds)

    def answered(self, endpoint: str, status: int, seconds: float) -> None:
        """An answer has been sent."""
        self._answers.labels(endpoint, str(status)).inc()
        self._seconds.labels(endpoint).observe(seconds)

    def tokens(self, read: int, written: int) -> None:
        """Of one answer."""
        self._tokens.labels("read").inc(read)
        self._tokens.labels("written").inc(written)

    def text(self, waiting: int, tasks: int) -> bytes:
        """All of it in Prometheus' format."""
        self._waiting.set(waiting)
        self._tasks.set(tasks)
        found: bytes = self._prometheus.generate_latest(self.registry)
        return found
