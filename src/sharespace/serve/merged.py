"""Several answers of one request, as one stream of pieces."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import Any, TypeVar

from sharespace.serve.requests import Piece

_T = TypeVar("_T")


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
