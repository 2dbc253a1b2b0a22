"""From the event loop to the engine's thread and back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sharespace.serve.engine import Answer, Engine
from sharespace.serve.requests import Piece, Request, Scores, Vector


class Reply:
    """The answers to one request, as they come."""

    def __init__(self, seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._end = self._loop.time() + seconds
        self._queue: asyncio.Queue[Answer] = asyncio.Queue()

    def put(self, answer: Answer) -> None:
        """From the engine's thread; nobody listens any more once the loop is closed."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._queue.put_nowait, answer)

    async def next(self) -> Piece | Scores | Vector:
        """The next answer.

        Raises:
            asyncio.TimeoutError: the request's time is over.
            Exception: what the engine met.
        """
        found = await asyncio.wait_for(self._queue.get(), self._end - self._loop.time())
        if isinstance(found, Exception):
            raise found
        return found


@asynccontextmanager
async def asked(engine: Engine, request: Request, seconds: float) -> AsyncIterator[Reply]:
    """A request on its way; where the block is left early, the engine drops it.

    Args:
        seconds: that the whole answer may take.

    Raises:
        As ``Engine.submit``.
    """
    reply = Reply(seconds)
    job = engine.submit(request, reply.put)
    try:
        yield reply
    finally:
        job.cancelled = True


async def pieces(engine: Engine, request: Request, seconds: float) -> AsyncIterator[Piece]:
    """A text piece by piece, to the one that has a ``finish``."""
    async with asked(engine, request, seconds) as reply:
        while True:
            piece = await reply.next()
            if not isinstance(piece, Piece):
                raise TypeError(f"the engine gave a {type(piece).__name__} for a text")
            yield piece
            if piece.finish is not None:
                return


async def whole(engine: Engine, request: Request, seconds: float) -> Piece:
    """A text at once."""
    text, last = "", None
    async for last in pieces(engine, request, seconds):
        text += last.text
    if last is None:
        raise RuntimeError("the engine gave no answer")
    return Piece(text, last.finish, last.tokens)


async def one(engine: Engine, request: Request, seconds: float) -> Scores | Vector:
    """What comes in one piece."""
    async with asked(engine, request, seconds) as reply:
        found = await reply.next()
    if isinstance(found, Piece):
        raise TypeError("the engine gave a text")
    return found
