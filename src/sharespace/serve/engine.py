"""Requests of many tasks, put together into batches and run one batch at a time."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sharespace.errors import OptionError, QueueFullError, TaskNotFoundError, UnavailableError
from sharespace.serve.base_model import Served
from sharespace.serve.generate import Row, generate
from sharespace.serve.requests import (
    Classify,
    Generate,
    Piece,
    Request,
    Scores,
    Vector,
)
from sharespace.share import Share

_LOG = logging.getLogger(__name__)

Answer = Piece | Scores | Vector | Exception


@dataclass(frozen=True)
class Limits:
    """What the engine takes on. Raises OptionError where a number is not positive."""

    batch: int = 32
    """Rows of one batch."""
    wait: float = 0.005
    """Seconds that the first request of a batch waits for others."""
    queue: int = 256
    """Requests that wait; more are refused."""

    def __post_init__(self) -> None:
        for name in ("batch", "queue"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name}={getattr(self, name)}", "must be at least 1", "Raise it")


@dataclass(eq=False)
class Job:
    """A request on its way."""

    request: Request
    say: Callable[[Answer], None]
    """Called from the engine's thread: pieces of text, the last with its ``finish``; or one other
    answer; or an exception."""
    cancelled: bool = False
    """Set by whoever no longer wants the answer; a running batch drops the row then."""
    began: float = field(default_factory=time.monotonic)
    answered: bool = False
    """True once a first piece has gone out."""

    def answer(self, answer: Answer) -> None:
        """Say it."""
        self.answered = True
        self.say(answer)


class Engine:
    """One thread that runs the model; requests come from any thread.

    A batch is made of requests of one kind, whatever their tasks, and runs on one version of the
    Share model.
    """

    def __init__(
        self,
        served: Served,
        limits: Limits | None = None,
        *,
        watch: Callable[[type[Request], int, float], None] | None = None,
    ) -> None:
        """Start the thread.

        Args:
            served: the base model with its tasks.
            limits: None: the defaults.
            watch: told of each batch: kind, rows, seconds.
        """
        self.served = served
        self.limits = limits or Limits()
        self.watch = watch
        """Told of each batch: kind, rows, seconds."""
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="sharespace-engine", daemon=True)
        self._thread.start()

    @property
    def share(self) -> Share:
        """The version that new batches run on."""
        return self.served.mixed.share

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    @property
    def alive(self) -> bool:
        """False once the thread has ended."""
        return self._thread.is_alive()

    @property
    def draining(self) -> bool:
        """True once ``close`` has been called: nothing new is taken."""
        return self._closing

    def submit(self, request: Request, say: Callable[[Answer], None]) -> Job:
        """Queue a request.

        Raises:
            TaskNotFoundError: the task is not in the Share model.
            OptionError: the model does not take such requests, or the text is empty or too long.
            QueueFullError: too many wait already.
            UnavailableError: the engine is closing.
        """
        self._check(request)
        job = Job(request, say)
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

    def _check(self, request: Request) -> None:
        if type(request) not in self.served.kinds:
            raise OptionError(
                f"base model {self.served.name!r}",
                f"it is a {type(self.served.model).__name__}, which cannot "
                f"{type(request).__name__.lower()}",
                "Ask what it can do",
            )
        if request.task is not None:
            _known(self.share, request.task)
        answer = request.sampling.max_tokens if isinstance(request, Generate) else 0
        if not request.tokens:
            raise OptionError("input", "it is empty", "Give some text")
        if len(request.tokens) + answer > self.served.longest:
            raise OptionError(
                f"input of {len(request.tokens)} tokens",
                f"with {answer} tokens of answer it is longer than {self.served.longest}",
                "Shorten it, or ask for fewer tokens",
            )

    def replace(self, share: Share) -> None:
        """From the next batch on use another version.

        Raises:
            MismatchError: it is not of this base model; nothing is changed.
        """
        self.served.mixed.replace(share)

    def close(self, seconds: float = 30.0) -> bool:
        """Take nothing new, finish what waits, end the thread.

        Returns:
            False where it did not end in time.
        """
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (jobs := self._next()) is not None:
            began = time.perf_counter()
            self._run_batch(jobs)
            if self.watch is not None and jobs:
                self.watch(type(jobs[0].request), len(jobs), time.perf_counter() - began)

    def _next(self) -> list[Job] | None:
        """The next batch; None where there will be none."""
        with self._changed:
            while not self._waiting:
                if self._closing:
                    return None
                self._changed.wait()
            end = self._waiting[0].began + self.limits.wait
            while len(self._waiting) < self.limits.batch and not self._closing:
                left = end - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            return self._take()

    def _take(self) -> list[Job]:
        """The oldest request and all that fit to it; those that nobody wants any more are gone."""
        alive = [job for job in self._waiting if not job.cancelled]
        first = type(alive[0].request) if alive else None
        tasks: set[str | None] = set()
        taken: list[Job] = []
        left: deque[Job] = deque()
        for job in alive:
            fits = len(taken) < self.limits.batch and self._has_room(tasks, job.request.task)
            if type(job.request) is first and fits:
                taken.append(job)
                tasks.add(job.request.task)
            else:
                left.append(job)
        self._waiting = left
        return taken

    def _has_room(self, tasks: set[str | None], task: str | None) -> bool:
        """True where a batch of these tasks has a slot for one more."""
        return task in tasks or len(tasks) < self.served.mixed.slots.count

    def _run_batch(self, jobs: list[Job]) -> None:
        """Run them; what is wrong with one task does not stop the others."""
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

    def _still_known(self, jobs: list[Job]) -> list[Job]:
        """Tasks may have been removed since they were asked for."""
        kept = []
        for job in jobs:
            try:
                if job.request.task is not None:
                    _known(self.share, job.request.task)
                kept.append(job)
            except TaskNotFoundError as error:
                job.answer(error)
        return kept

    def _answer(self, jobs: list[Job]) -> None:
        requests: Any = [job.request for job in jobs]
        if isinstance(requests[0], Generate):
            self._generate(jobs)
            return
        run = self.served.classify if isinstance(requests[0], Classify) else self.served.embed
        found: Sequence[Scores | Vector] = run(requests)
        for job, answer in zip(jobs, found, strict=True):
            job.answer(answer)

    def _generate(self, jobs: list[Job]) -> None:
        served = self.served
        rows = [_row(job, served) for job in jobs]
        with served.mixed.tasks([job.request.task for job in jobs]):
            generate(served.model, served.tokenizer, rows)


def _known(share: Share, task: str) -> None:
    """Refuse a task that is not there, without reading one that is."""
    if task not in share.model.tasks:
        share.task(task)


def _row(job: Job, served: Served) -> Row:
    request: Any = job.request
    return Row(request, served.tokenizer, served.ends, job.answer, lambda: job.cancelled)
