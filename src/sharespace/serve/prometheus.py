"""What a server counts, for Prometheus: metrics, and the middleware that sees each answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from sharespace.extras import require
from sharespace.serve.body_guard import AsgiApp, AsgiMessage, Receive, Scope, Send


class ServerMetrics:
    """Counters of one app, in a registry of their own: two apps may run in one process.

    No label holds a task's name: there may be thousands, anybody may ask for any, and each value of
    a label is a time series that Prometheus keeps.
    """

    def __init__(self) -> None:
        prometheus = require("prometheus_client", "serve")
        self.registry = prometheus.CollectorRegistry()
        common: dict[str, Any] = {"registry": self.registry, "namespace": "sharespace"}
        counter, histogram = prometheus.Counter, prometheus.Histogram
        self._answers = counter(
            "answers", "Answers sent, by endpoint and HTTP status", ["endpoint", "status"], **common
        )
        self._seconds = histogram(
            "answer_seconds", "From the request to the end of its answer", ["endpoint"], **common
        )
        # The default buckets are seconds; these are powers of two, as batch sizes are chosen.
        sizes = (1, 2, 4, 8, 16, 32, 64, 128)
        self._rows = histogram("batch_rows", "Rows of a batch", ["kind"], buckets=sizes, **common)
        self._batch = histogram("batch_seconds", "Of one batch in the model", ["kind"], **common)
        self._tokens = counter("tokens", "Tokens read and written", ["direction"], **common)
        self._waiting = prometheus.Gauge("waiting", "Requests in the queue", **common)
        self._tasks = prometheus.Gauge("tasks", "Tasks of the Share model", **common)
        self._generate_latest = prometheus.generate_latest

    def count_batch(self, kind: type[object], rows: int, seconds: float) -> None:
        """Count a batch that has run (the engine's ``watch``).

        Args:
            kind: class of its requests.
            rows: number of requests.
            seconds: that the batch took.
        """
        self._rows.labels(kind.__name__.lower()).observe(rows)
        self._batch.labels(kind.__name__.lower()).observe(seconds)

    def count_answer(self, endpoint: str, status: int, seconds: float) -> None:
        """Count an answer that has been sent, with its HTTP status and the seconds that it took."""
        self._answers.labels(endpoint, str(status)).inc()
        self._seconds.labels(endpoint).observe(seconds)

    def count_tokens(self, read: int, written: int) -> None:
        """Count the tokens of one answer."""
        self._tokens.labels("read").inc(read)
        self._tokens.labels("written").inc(written)

    def text(self, waiting: int, tasks: int) -> bytes:
        """All metrics in Prometheus' format, with the present length of the queue and tasks."""
        self._waiting.set(waiting)
        self._tasks.set(tasks)
        text: bytes = self._generate_latest(self.registry)
        return text


class AnswerCounter:
    """ASGI middleware: tells of each answer's endpoint, status and seconds.

    The endpoint is the route, never the path: a client may ask for any path, and each would be a
    time series of its own.
    """

    def __init__(self, app: AsgiApp, *, count: Callable[[str, int, float], None]) -> None:
        self.app = app
        self.count = count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the app and watch what it sends."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500

        async def watched(message: AsgiMessage) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            endpoint = getattr(scope.get("route"), "path", "unknown")
            self.count(endpoint, status, time.perf_counter() - began)
