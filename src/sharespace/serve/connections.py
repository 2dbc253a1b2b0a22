"""The limits of a connection: one that says nothing, or takes nothing, is closed.

uvicorn limits neither the time to a request's headers nor the time in which a client takes its
answer, and a connection costs a file descriptor however silent it is: a few hundred of them, left
open, keep everybody else out.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from sharespace.options import check_options, option

_RESERVED = 100
"""File descriptors that are left to everything else: the store's files, the log, libraries."""

_FULL_BODY = (
    b'{"error": {"message": "too many connections", "type": "server_error", "param": null, '
    b'"code": 503}}'
)
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\n"
    b"connection: close\r\ncontent-length: %d\r\n\r\n%b" % (len(_FULL_BODY), _FULL_BODY)
)
_LATE = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


@dataclass(frozen=True)
class ConnectionLimits:
    """How long and how many. Raises OptionError where a value is out of its limits."""

    seconds: float = option(20.0, above=0)
    """Most seconds until a request's headers are whole, and in which a client takes nothing of an
    answer that waits for it."""
    connections: int = option(1000, least=1)
    """Most connections; fewer where the process may open fewer files. One more takes the place of
    the one that has been silent for longest; where all are at work, it gets 503."""

    def __post_init__(self) -> None:
        check_options(self)

    @property
    def most(self) -> int:
        """Connections for which there are file descriptors."""
        try:
            import resource
        except ImportError:  # Windows has no such limit.
            return self.connections
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if files == resource.RLIM_INFINITY:
            return self.connections
        return max(1, min(self.connections, files - _RESERVED))


def guarded_protocol(limits: ConnectionLimits) -> type[H11Protocol]:
    """uvicorn's protocol of a connection, with limits: what ``uvicorn.Config(http=...)`` takes."""
    most = limits.most

    class GuardedProtocol(_GuardedProtocol):
        seconds = limits.seconds
        connections_at_once = most

    return GuardedProtocol


class _GuardedProtocol(H11Protocol):
    """A connection with a deadline while it waits for a request or for its client to read."""

    seconds: float
    connections_at_once: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._deadline: asyncio.TimerHandle | None = None
        """Set while no request is at work."""
        self._stalled: asyncio.TimerHandle | None = None
        """Set while the client does not take its answer."""

    @property
    def _at_work(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.connections_at_once and not self._make_room():
            transport.write(_FULL)
            transport.close()
            return
        self._await_request()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._at_work:
            self._end_deadline()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        # Pipelined requests may have begun already.
        if not self._at_work:
            self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_deadline()
        self._end_stall()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._end_stall()
        # Not closed but aborted: closing waits until the client has taken what is written.
        self._stalled = self.loop.call_later(self.seconds, self.transport.abort)

    def resume_writing(self) -> None:
        self._end_stall()
        super().resume_writing()

    def _await_request(self) -> None:
        """A whole request has to come in time; single bytes now and then do not help."""
        self._end_deadline()
        self._deadline = self.loop.call_later(self.seconds, self._too_late)

    def _too_late(self) -> None:
        self._deadline = None
        if self._at_work or self.transport.is_closing():
            return
        # Half a request gets an answer; nothing at all is not one.
        if self.conn.trailing_data[0]:
            self.transport.write(_LATE)
        self.transport.close()

    def _make_room(self) -> bool:
        """Close the connection that has been silent for longest; False where none is."""
        silent = [
            (other._deadline.when(), number, other)
            for number, other in enumerate(self.connections)
            if isinstance(other, _GuardedProtocol)
            and other is not self
            and other._deadline is not None
        ]
        if not silent:
            return False
        oldest = min(silent)[2]
        oldest._end_deadline()
        oldest.transport.abort()
        return True

    def _end_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _end_stall(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
