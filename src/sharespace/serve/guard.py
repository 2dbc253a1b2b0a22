"""What stands before the endpoints: size and pace of bodies, and the count of answers."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

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
