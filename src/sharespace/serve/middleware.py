"""What stands between HTTP and the endpoints: limits of a request's body, and what is counted.

Both are ASGI middleware. Metrics are for Prometheus.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

from sharespace.extras import require

AsgiMessage: TypeAlias = MutableMapping[str, Any]
Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[AsgiMessage]]
Send: TypeAlias = Callable[[AsgiMessage], Awaitable[None]]
AsgiApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]


class BodyGuard:
    """ASGI middleware: a body that is too large gets 413, one that comes too slowly 408.

    The whole body is read here, so an endpoint never holds more than the limit, and a client that
    sends a byte a minute (Slowloris) holds a connection, but no endpoint, for ``seconds`` at most.
    Content-Length is not trusted: it may be missing (chunked) or wrong.
    """

    def __init__(self, app: AsgiApp, *, size: int, seconds: float) -> None:
        self.app = app
        self.size = size
        self.seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body, then call the app."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self.app(scope, receive, send)
            return
        try:
            body = await asyncio.wait_for(self._read(receive), self.seconds)
        # Not the builtin TimeoutError, which is another class before Python 3.11.
        except asyncio.TimeoutError:
            await _refuse(send, 408, f"the body took longer than {self.seconds:g} seconds")
            return
        if body is None:
            await _refuse(send, 413, f"the body is larger than {self.size} bytes")
            return
        await self.app(scope, _replay(body, receive), send)

    async def _read(self, receive: Receive) -> bytes | None:
        """The body; None where it is too large."""
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return bytes(body)
            body += message.get("body", b"")
            if len(body) > self.size:
                return None
            if not message.get("more_body", False):
                return bytes(body)


async def _refuse(send: Send, status: int, why: str) -> None:
    text = json.dumps({"error": {"message": why, "type": "invalid_request_error", "code": status}})
    # The rest of the body is never read, so the connection cannot serve another request.
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body in one message, and after it what the client does next."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def following() -> AsgiMessage:
        return waiting.pop() if waiting else await receive()

    return following


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
        about = "Version of the Share model that is served; 0: it was not saved"
        self._version = prometheus.Gauge("version", about, **common)
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

    def text(self, waiting: int, tasks: int, version: int) -> bytes:
        """All metrics in Prometheus' format, with the present queue, tasks and version."""
        self._version.set(version)
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
