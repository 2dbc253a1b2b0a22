"""From the event loop to the engine's thread and back.

Several answers of one request, as one stream of pieces.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from sharespace.serve.engine import Answer, Engine
from sharespace.serve.requests import Piece, Request, Scores, Vector

_T = TypeVar("_T")


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


async def merged(streams: Sequence[AsyncIterator[Piece]]) -> AsyncIterator[tuple[int, Piece]]:
    """(number of the stream, piece), in the order in which they come.

    The first error ends all of it; so does leaving it early.
    """
    queue: asyncio.Queue[tuple[int, Piece | Exception | None]] = asyncio.Queue()

    async def read(number: int, stream: AsyncIterator[Piece]) -> None:
        try:
            async for piece in stream:
                queue.put_nowait((number, piece))
            queue.put_nowait((number, None))
        except Exception as error:  # noqa: BLE001 - raised again by the reader
            queue.put_nowait((number, error))

    readers = [asyncio.create_task(read(i, stream)) for i, stream in enumerate(streams)]
    open_streams = len(readers)
    try:
        while open_streams:
            number, found = await queue.get()
            if isinstance(found, Exception):
                raise found
            if found is None:
                open_streams -= 1
            else:
                yield number, found
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)


async def unless_gone(request: Any, work: Awaitable[_T]) -> _T | None:
    """The result; None, and the work is cancelled, where the client went away before.

    Args:
        request: of starlette, its body read already.
        work: what answers it.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        return await task if task.done() else None
    finally:
        gone.cancel()
        task.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(request: Any) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
