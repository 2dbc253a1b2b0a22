"""Requests of many tasks, put together into batches and run one batch at a time by one thread.

Whoever asks from an event loop uses ``stream_text``, ``whole_text`` and ``single_answer``, which
carry answers from the engine's thread to the loop.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from sharespace.errors import (
    MismatchError,
    OptionError,
    QueueFullError,
    TaskNotFoundError,
    UnavailableError,
)
from sharespace.options import check_options, option
from sharespace.serve.base_model import GeneratingRow, ServedModel
from sharespace.serve.requests import (
    Classify,
    ClassLogits,
    Embed,
    EngineAnswer,
    EngineRequest,
    Generate,
    Piece,
    Vector,
)
from sharespace.share import Share

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineLimits:
    """How many requests the engine takes on. Raises OptionError where a number is out of range."""

    batch: int = option(32, least=1)
    """Most rows of one batch."""
    wait: float = option(0.005, least=0)
    """Seconds that the first request of a batch waits for others."""
    queue: int = option(256, least=1)
    """Most requests that wait; more are refused."""

    def __post_init__(self) -> None:
        check_options(self)


class Engine:
    """One thread that runs the model; requests come from any thread.

    A batch is made of requests of one kind, whatever their tasks, and runs on one version of the
    Share model.
    """

    def __init__(
        self,
        served: ServedModel,
        limits: EngineLimits | None = None,
        *,
        watch: Callable[[type[EngineRequest], int, float], None] | None = None,
    ) -> None:
        """Start the thread.

        Args:
            served: the base model with its tasks.
            limits: None: the defaults.
            watch: told of each batch: kind, rows, seconds.
        """
        self.served = served
        self.limits = limits or EngineLimits()
        self.watch = watch
        """Told of each batch: kind, rows, seconds."""
        self._waiting: deque[EngineJob] = deque()
        self._changed = threading.Condition()
        self._closing = False
        # A daemon, so that a batch that hangs cannot keep the process alive after ``close``.
        self._thread = threading.Thread(target=self._run, name="sharespace-engine", daemon=True)
        self._thread.start()

    @property
    def share(self) -> Share:
        """The version that new batches run on."""
        return self.served.mixed.share

    @property
    def waiting(self) -> int:
        """Number of requests in the queue."""
        return len(self._waiting)

    @property
    def alive(self) -> bool:
        """False once the thread has ended."""
        return self._thread.is_alive()

    @property
    def draining(self) -> bool:
        """True once ``close`` has been called: nothing new is taken."""
        return self._closing

    def submit(
        self, request: EngineRequest, listen: Callable[[EngineAnswer | Exception], None]
    ) -> EngineJob:
        """Queue a request.

        Args:
            request: what is asked.
            listen: called from the engine's thread with the answer: pieces of text, the last with
                its ``finish``; or one other answer; or an exception.

        Returns:
            The job, by which the request can be cancelled.

        Raises:
            TaskNotFoundError: the task is not in the Share model.
            OptionError: the model does not take such requests, or the text is empty or too long.
            QueueFullError: too many wait already.
            UnavailableError: the engine is closing.
        """
        self._check(request)
        job = EngineJob(request, listen)
        with self._changed:
            if self._closing or not self.alive:
                raise UnavailableError("server", "it is shutting down", "Ask another one")
            if len(self._waiting) >= self.limits.queue:
                raise QueueFullError(
                    "queue", f"{self.limits.queue} requests wait already", "Try again later"
                )
            self._waiting.append(job)
            self._changed.notify()
        return job

    def replace(self, share: Share) -> None:
        """From the next batch on use another version.

        Args:
            share: the other version.

        Raises:
            MismatchError: it is not of this base model; nothing is changed.
        """
        self.served.mixed.replace(share)

    def close(self, seconds: float = 30.0) -> bool:
        """Take nothing new, finish what waits, end the thread.

        Args:
            seconds: to wait for the thread.

        Returns:
            False where it did not end in time.
        """
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _check(self, request: EngineRequest) -> None:
        """Refuse what can be refused before it waits, so that it gets its answer at once."""
        if type(request) not in self.served.kinds:
            raise OptionError(
                f"base model {self.served.name!r}",
                f"it is a {type(self.served.model).__name__}, which cannot "
                f"{type(request).__name__.lower()}",
                "Ask what it can do",
            )
        if request.task is not None:
            check_task(self.share, request.task)
        answer = request.sampling.max_tokens if isinstance(request, Generate) else 0
        if not request.tokens:
            raise OptionError("input", "it is empty", "Give some text")
        if len(request.tokens) + answer > self.served.longest:
            raise OptionError(
                f"input of {len(request.tokens)} tokens",
                f"with {answer} tokens of answer it is longer than {self.served.longest}",
                "Shorten it, or ask for fewer tokens",
            )

    def _run(self) -> None:
        while (jobs := self._next_batch()) is not None:
            began = time.perf_counter()
            self._run_batch(jobs)
            if self.watch is not None and jobs:
                self.watch(type(jobs[0].request), len(jobs), time.perf_counter() - began)

    def _next_batch(self) -> list[EngineJob] | None:
        """The next batch; None where there will be none."""
        with self._changed:
            while not self._waiting:
                if self._closing:
                    return None
                self._changed.wait()
            # Counted from the arrival: a request that waited for the batch before waits no longer.
            end = self._waiting[0].began + self.limits.wait
            while len(self._waiting) < self.limits.batch and not self._closing:
                remaining = end - time.monotonic()
                if remaining <= 0:
                    break
                self._changed.wait(remaining)
            return self._take()

    def _take(self) -> list[EngineJob]:
        """The oldest request and all that fit to it; those that nobody wants any more are gone."""
        wanted = [job for job in self._waiting if not job.cancelled]
        kind = type(wanted[0].request) if wanted else None
        tasks: set[str | None] = set()
        taken: list[EngineJob] = []
        remaining: deque[EngineJob] = deque()
        for job in wanted:
            fits = len(taken) < self.limits.batch and self._has_slot(tasks, job.request.task)
            if type(job.request) is kind and fits:
                taken.append(job)
                tasks.add(job.request.task)
            else:
                remaining.append(job)
        self._waiting = remaining
        return taken

    def _has_slot(self, tasks: set[str | None], task: str | None) -> bool:
        """True where a batch of these tasks has a slot for one more."""
        return task in tasks or len(tasks) < self.served.mixed.slots.count

    def _run_batch(self, jobs: list[EngineJob]) -> None:
        """Run a batch; where it fails, its rows one by one, so that the others get an answer."""
        jobs = self._still_known(jobs)
        if not jobs:
            return
        try:
            self._answer(jobs)
        except Exception as error:  # noqa: BLE001 - whatever it is, the server goes on
            if len(jobs) == 1:
                _LOG.warning("a request for task %r failed", jobs[0].request.task, exc_info=True)
                jobs[0].answer(error)
                return
            _LOG.warning("a batch of %d failed; its rows are run one by one", len(jobs))
            for job in jobs:
                # An answer that has begun cannot begin again.
                job.answer(error) if job.answered else self._run_batch([job])

    def _still_known(self, jobs: list[EngineJob]) -> list[EngineJob]:
        """The jobs whose tasks were not removed while they waited; the others get their error."""
        known = []
        for job in jobs:
            try:
                if job.request.task is not None:
                    check_task(self.share, job.request.task)
                    self.served.tokenizer_of(job.request.task)
                known.append(job)
            except (TaskNotFoundError, MismatchError) as error:
                job.answer(error)
        return known

    def _answer(self, jobs: list[EngineJob]) -> None:
        requests = [job.request for job in jobs]  # All of one kind.
        if isinstance(requests[0], Generate):
            self.served.generate(
                [
                    GeneratingRow(
                        job.request,
                        (own := self.served.tokenizer_of(job.request.task)).tokenizer,
                        own.ends,
                        job.answer,
                        job.gone,
                    )
                    for job in jobs
                    if isinstance(job.request, Generate)
                ]
            )
            return
        classify = [r for r in requests if isinstance(r, Classify)]
        embed = [r for r in requests if isinstance(r, Embed)]
        answers: Sequence[EngineAnswer] = (
            self.served.classify(classify) if classify else self.served.embed(embed)
        )
        for job, answer in zip(jobs, answers, strict=True):
            job.answer(answer)


@dataclass(eq=False)
class EngineJob:
    """A request on its way."""

    request: EngineRequest
    listen: Callable[[EngineAnswer | Exception], None]
    """Called from the engine's thread, see ``Engine.submit``."""
    cancelled: bool = False
    """Set by whoever no longer wants the answer; a running batch drops the row then."""
    began: float = field(default_factory=time.monotonic)
    """When the request came, by the monotonic clock."""
    answered: bool = False
    """True once a first piece has gone out."""

    def answer(self, answer: EngineAnswer | Exception) -> None:
        """Give an answer, or a piece of it, to the listener."""
        self.answered = True
        self.listen(answer)

    def gone(self) -> bool:
        """True where nobody wants the answer any more."""
        return self.cancelled


def check_task(share: Share, task: str) -> None:
    """Refuse a task that is not there, without reading one that is.

    Raises:
        TaskNotFoundError: the Share model has no such task.
    """
    if task not in share.model.tasks:
        share.task(task)  # This raises the error.


async def stream_text(engine: Engine, request: Generate, seconds: float) -> AsyncIterator[Piece]:
    """A text piece by piece, to the one that has a ``finish``.

    Args:
        engine: that runs the model.
        request: what is asked.
        seconds: that the whole answer may take, the time in the queue included.

    Raises:
        asyncio.TimeoutError: the request's time is over.
        Exception: as ``Engine.submit``, or what the engine met.
    """
    async with _submitted(engine, request, seconds) as reply:
        while True:
            piece = await reply.next()
            if not isinstance(piece, Piece):
                raise TypeError(f"the engine gave a {type(piece).__name__} for a text")
            yield piece
            if piece.finish is not None:
                return


async def whole_text(engine: Engine, request: Generate, seconds: float) -> Piece:
    """A text in one piece; arguments and errors as for ``stream_text``."""
    text, last = "", None
    async for last in stream_text(engine, request, seconds):
        text += last.text
    if last is None:
        raise RuntimeError("the engine gave no answer")
    return Piece(text, last.finish, last.tokens)


async def single_answer(
    engine: Engine, request: Classify | Embed, seconds: float
) -> ClassLogits | Vector:
    """An answer that comes in one piece; arguments and errors as for ``stream_text``."""
    async with _submitted(engine, request, seconds) as reply:
        answer = await reply.next()
    if isinstance(answer, Piece):
        raise TypeError("the engine gave a text")
    return answer


async def merge_streams(
    streams: Sequence[AsyncIterator[Piece]],
) -> AsyncIterator[tuple[int, Piece]]:
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
            number, item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                open_streams -= 1
            else:
                yield number, item
    finally:
        # Cancelled readers leave their streams, and so tell the engine to drop the rows.
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)


@asynccontextmanager
async def _submitted(
    engine: Engine, request: EngineRequest, seconds: float
) -> AsyncIterator[_Reply]:
    """A request on its way; where the block is left early, the engine drops it."""
    reply = _Reply(seconds)
    job = engine.submit(request, reply.put)
    try:
        yield reply
    finally:
        job.cancelled = True


class _Reply:
    """The answers to one request, as they come from the engine's thread to the event loop."""

    def __init__(self, seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._end = self._loop.time() + seconds
        self._queue: asyncio.Queue[EngineAnswer | Exception] = asyncio.Queue()

    def put(self, answer: EngineAnswer | Exception) -> None:
        """Called from the engine's thread; nobody listens any more once the loop is closed."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._queue.put_nowait, answer)

    async def next(self) -> EngineAnswer:
        """The next answer.

        Raises:
            asyncio.TimeoutError: the request's time is over.
            Exception: what the engine met.
        """
        answer = await asyncio.wait_for(self._queue.get(), self._end - self._loop.time())
        if isinstance(answer, Exception):
            raise answer
        return answer
