"""The limits of a request's body, checked before an endpoint sees any of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

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
