"""Requests of many tasks, put together into batches and run one batch at a time by one thread.

Whoever asks from an event loop uses ``stream_texts``, ``whole_texts`` and ``single_answers``, which
carry answers from the engine's thread to the loop.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

from sharespace.errors import (
    OptionError,
    QueueFullError,
    SharespaceError,
    UnavailableError,
)
from sharespace.formats.engines import requested_weights
from sharespace.options import check_options, option
from sharespace.serve.base_model import GeneratingRow, ServedModel, special_tokens
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
from sharespace.subspace.state import basis_id

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
        basis_id(served.mixed.share.model)
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
            OptionError: the model cannot run it, see ``ServedModel.check``.
            QueueFullError: too many wait already.
            UnavailableError: the engine is closing.
        """
        return self.submit_all([request], lambda _, answer: listen(answer))[0]

    def submit_all(
        self,
        requests: Sequence[EngineRequest],
        listen: Callable[[int, EngineAnswer | Exception], None],
    ) -> list[EngineJob]:
        """Queue several requests, all of them or none.

        Args:
            requests: what is asked.
            listen: as for ``submit``, called with the number of the request first.

        Raises:
            OptionError: also where the queue could never hold so many.
            Exception: as ``submit``; then nothing is queued.
        """
        if len(requests) > self.limits.queue:
            raise OptionError(
                f"{len(requests)} answers", f"the queue holds {self.limits.queue}", "Ask for fewer"
            )
        for request in requests:
            if request.task is not None:
                check_task(self.share, request.task)
            self.served.check(request)
        jobs = [EngineJob(request, partial(listen, i)) for i, request in enumerate(requests)]
        with self._changed:
            if self._closing or not self.alive:
                raise UnavailableError("server", "it is shutting down", "Ask another one")
            if len(self._waiting) + len(jobs) > self.limits.queue:
                raise QueueFullError(
                    "queue",
                    f"{len(self._waiting)} of {self.limits.queue} requests wait already",
                    "Try again later",
                )
            self._waiting.extend(jobs)
            self._changed.notify()
        return jobs

    def cancel(self, jobs: Iterable[EngineJob]) -> None:
        """Drop requests that nobody wants any more: they leave the queue, running rows end."""
        for job in jobs:
            job.cancelled = True
        with self._changed:
            self._waiting = deque(job for job in self._waiting if not job.cancelled)

    def replace(self, share: Share) -> None:
        """From the next batch on use another version.

        Args:
            share: the other version.

        Raises:
            MismatchError: it is not of this base model; nothing is changed.
        """
        # Hashed here, where no request waits for it.
        basis_id(share.model)
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
        taken: list[EngineJob] = []
        remaining: deque[EngineJob] = deque()
        for job in self._waiting:
            if not job.cancelled:
                (taken if self._fits(taken, job) else remaining).append(job)
        self._waiting = remaining
        return taken

    def _fits(self, taken: Sequence[EngineJob], job: EngineJob) -> bool:
        """Whether a request can run in one batch with these."""
        if not taken:
            return True
        if len(taken) >= self.limits.batch or type(job.request) is not type(taken[0].request):
            return False
        if not self._has_slot({running.request.task for running in taken}, job.request.task):
            return False
        # transformers goes on with all rows until the last has ended: the one with the longest
        # prompt must have positions for the longest answer.
        rows = [r for r in (j.request for j in (*taken, job)) if isinstance(r, Generate)]
        prompt = max((len(row.tokens) for row in rows), default=0)
        answer = max((row.sampling.max_tokens for row in rows), default=0)
        return prompt + answer <= self.served.longest

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
                # An answer that has begun goes on where it was: its row holds its tokens.
                if not job.finished and not job.cancelled:
                    self._run_batch([job])

    def _still_known(self, jobs: list[EngineJob]) -> list[EngineJob]:
        """The jobs whose tasks were not removed while they waited; the others get their error."""
        known = []
        for job in jobs:
            try:
                if job.request.task is not None:
                    check_task(self.share, job.request.task)
                    self.served.tokenizer_of(job.request.task)
                known.append(job)
            except SharespaceError as error:
                job.answer(error)
        return known

    def _answer(self, jobs: list[EngineJob]) -> None:
        requests = [job.request for job in jobs]  # All of one kind.
        if isinstance(requests[0], Generate):
            self.served.generate([self._row(job) for job in jobs])
            return
        classify = [r for r in requests if isinstance(r, Classify)]
        embed = [r for r in requests if isinstance(r, Embed)]
        answers: Sequence[EngineAnswer | Exception] = (
            self.served.classify(classify) if classify else self.served.embed(embed)
        )
        for job, answer in zip(jobs, answers, strict=True):
            job.answer(answer)

    def _row(self, job: EngineJob) -> GeneratingRow:
        """The job's row, which is made once: it goes on where a batch that failed has left it."""
        if job.row is None:
            if not isinstance(job.request, Generate):
                raise TypeError(f"no text is asked by a {type(job.request).__name__}")
            own, stop = self.served.tokenizer_of(job.request.task), job.request.sampling.stop
            special = special_tokens(own.tokenizer) if stop else {}
            stops = {special[text] for text in stop if text in special}
            job.row = GeneratingRow(
                job.request, own.tokenizer, own.ends | stops, job.answer, job.gone
            )
        return job.row


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
    finished: bool = False
    """True once the whole answer, or an error, has gone out."""
    row: GeneratingRow | None = None
    """The answer as far as it is, of a text; made when its first batch begins."""

    def answer(self, answer: EngineAnswer | Exception) -> None:
        """Give an answer, or a piece of it, to the listener; nothing after the last."""
        if self.finished:
            return
        self.finished = not isinstance(answer, Piece) or answer.finish is not None
        try:
            self.listen(answer)
        except Exception:  # noqa: BLE001 - one listener must not end the engine's thread
            _LOG.warning("an answer found no listener", exc_info=True)

    def gone(self) -> bool:
        """True where nobody wants the answer any more."""
        return self.cancelled


def check_task(share: Share, task: str) -> None:
    """Refuse a task, or a mixture of tasks, that is not there, without reading one that is.

    Raises:
        TaskNotFoundError: the Share model has no such task.
        OptionError: a mixture that has no meaning.
    """
    requested_weights(share.model, task)


async def stream_texts(
    engine: Engine, requests: Sequence[Generate], seconds: float
) -> AsyncGenerator[tuple[int, Piece], None]:
    """(number of the request, piece) in the order in which they come, until all have ended.

    The first error ends all of it; so does leaving it early. Where one request is refused, none is
    begun.

    Args:
        engine: that runs the model.
        requests: what is asked.
        seconds: that the answers may take, the time in the queue included.

    Raises:
        asyncio.TimeoutError: the time is over.
        Exception: as ``Engine.submit_all``, or what the engine met.
    """
    async with _submitted(engine, requests, seconds) as replies:
        open_streams = len(requests)
        while open_streams:
            number, piece = await replies.next()
            if not isinstance(piece, Piece):
                raise TypeError(f"the engine gave a {type(piece).__name__} for a text")
            open_streams -= piece.finish is not None
            yield number, piece


async def whole_texts(engine: Engine, requests: Sequence[Generate], seconds: float) -> list[Piece]:
    """One whole text for each request; arguments and errors as for ``stream_texts``."""
    texts = [Piece("")] * len(requests)
    async for number, piece in stream_texts(engine, requests, seconds):
        text = texts[number].text + piece.text
        texts[number] = Piece(text, piece.finish, piece.tokens, piece.source)
    return texts


async def single_answers(
    engine: Engine, requests: Sequence[Classify | Embed], seconds: float
) -> list[ClassLogits | Vector]:
    """Answers that come in one piece each; arguments and errors as for ``stream_texts``."""
    answers: dict[int, ClassLogits | Vector] = {}
    async with _submitted(engine, requests, seconds) as replies:
        while len(answers) < len(requests):
            number, answer = await replies.next()
            if isinstance(answer, Piece):
                raise TypeError("the engine gave a text")
            answers[number] = answer
    return [answers[number] for number in range(len(requests))]


@asynccontextmanager
async def _submitted(
    engine: Engine, requests: Sequence[EngineRequest], seconds: float
) -> AsyncIterator[_Replies]:
    """Requests on their way; where the block is left early, the engine drops them."""
    replies = _Replies(seconds)
    jobs = engine.submit_all(requests, replies.put)
    try:
        yield replies
    finally:
        engine.cancel(jobs)


class _Replies:
    """The answers to requests, as they come from the engine's thread to the event loop."""

    def __init__(self, seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._end = self._loop.time() + seconds
        self._queue: asyncio.Queue[tuple[int, EngineAnswer | Exception]] = asyncio.Queue()

    def put(self, number: int, answer: EngineAnswer | Exception) -> None:
        """Called from the engine's thread; nobody listens any more once the loop is closed."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._queue.put_nowait, (number, answer))

    async def next(self) -> tuple[int, EngineAnswer]:
        """The next answer, and the number of its request.

        Raises:
            asyncio.TimeoutError: the time is over.
            Exception: what the engine met.
        """
        number, answer = await asyncio.wait_for(self._queue.get(), self._end - self._loop.time())
        if isinstance(answer, Exception):
            raise answer
        return number, answer
