"""What stands before the endpoints: size and pace of bodies, and the count of answers.

Tasks that come and go while the server runs.

What a server counts, for Prometheus.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from sharespace.errors import OptionError
from sharespace.extras import require
from sharespace.serve.engine import Engine
from sharespace.share import Share

Message = MutableMapping[str, Any]

Receive = Callable[[], Awaitable[Message]]

Send = Callable[[Message], Awaitable[None]]

App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]


class BodyGuard:
    """ASGI middleware: a body that is too large gets 413, one that comes too slowly 408.

    The body is read here, whole, before the endpoint sees it; so an endpoint never holds more than
    the limit.
    """

    def __init__(self, app: App, *, size: int, seconds: float) -> None:
        self.app = app
        self.size = size
        self.seconds = seconds

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Read the body, then call the app."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self.app(scope, receive, send)
            return
        try:
            body = await asyncio.wait_for(self._read(receive), self.seconds)
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


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body in one message, and after it what the client does next."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def following() -> Message:
        return waiting.pop() if waiting else await receive()

    return following


async def _refuse(send: Send, status: int, why: str) -> None:
    text = json.dumps({"error": {"message": why, "type": "invalid_request_error", "code": status}})
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})


class Counted:
    """ASGI middleware: tells of each answer's endpoint, status and seconds.

    Of the endpoint, never of the path: a client may ask for any path.
    """

    def __init__(self, app: App, *, count: Callable[[str, int, float], None]) -> None:
        self.app = app
        self.count = count

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Call the app and watch what it sends."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500

        async def watched(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            endpoint = getattr(scope.get("route"), "path", "unknown")
            self.count(endpoint, status, time.perf_counter() - began)


class Admin:
    """Changes the Share model of an engine, one change at a time.

    With a path every change is committed to the store first: what is served is what is stored.
    """

    def __init__(self, engine: Engine, path: Path | None) -> None:
        self.engine = engine
        self.path = path
        self._lock = threading.Lock()

    def add(self, name: str, adapter: str) -> Share:
        """Merge an adapter as a new task.

        Raises:
            TaskExistsError: there is a task of that name.
            AdapterError: it cannot be read.
            StoreConflictError: somebody else changed the store; reload first.
        """
        with self._lock:
            return self._changed(self.engine.share.merge({name: adapter}))

    def remove(self, name: str) -> Share:
        """Without a task; batches that run go on with it.

        Raises:
            TaskNotFoundError: there is none of that name.
            StoreConflictError: somebody else changed the store; reload first.
        """
        with self._lock:
            return self._changed(self.engine.share.remove(name))

    def reload(self) -> Share:
        """The store's current version.

        Raises:
            OptionError: the Share model is not of a store.
            StoreError: it cannot be read; the version before stays in place.
        """
        with self._lock:
            if self.path is None:
                raise OptionError("reload", "the Share model is of no store", "Serve a path")
            share = Share.load(self.path)
            self.engine.replace(share)
            return share

    def _changed(self, share: Share) -> Share:
        if self.path is not None:
            share.save(self.path)
        self.engine.replace(share)
        return share


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
