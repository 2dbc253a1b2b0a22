"""The app: endpoints of OpenAI's API for the base model and every task, and a few of its own."""

from __future__ import annotations

import asyncio
import hmac
import logging
import math
import re
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

from fastapi import Depends, FastAPI, Header, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException as AnyHttpException

from sharespace.errors import (
    NoAnswerError,
    OptionError,
    QueueFullError,
    SharespaceError,
    StoreConflictError,
    StoreLockedError,
    TaskExistsError,
    TaskNotFoundError,
    UnavailableError,
)
from sharespace.formats import read_adapter
from sharespace.options import check_options, option
from sharespace.serve import openai
from sharespace.serve.admission import check_name, servable
from sharespace.serve.engine import (
    Engine,
    check_task,
    single_answers,
    stream_texts,
    whole_texts,
)
from sharespace.serve.middleware import AnswerCounter, BodyGuard, ServerMetrics
from sharespace.serve.requests import (
    Classify,
    ClassLogits,
    Embed,
    EngineAnswer,
    Generate,
    Piece,
    Vector,
)
from sharespace.share import Share
from sharespace.subspace.adapter import Adapter, ModuleShape, refuse_other_modules
from sharespace.subspace.naming import common_names
from sharespace.words import visible

_LOG = logging.getLogger(__name__)
_ANSWERS = logging.getLogger("sharespace.serve.identity")
_Result = TypeVar("_Result")

STATUS: tuple[tuple[type[Exception], int], ...] = (
    (TaskNotFoundError, 404),
    (TaskExistsError, 409),
    (StoreConflictError, 409),
    (StoreLockedError, 409),
    (QueueFullError, 429),
    (UnavailableError, 503),
    (NoAnswerError, 500),
    (asyncio.TimeoutError, 504),
    (SharespaceError, 400),
)
"""HTTP status by class of the error; the first that fits, and 500 for anything else."""


@dataclass(frozen=True)
class HttpSettings:
    """Limits and keys of the app. Raises OptionError where a value is out of its limits."""

    answer_seconds: float = option(120.0, above=0)
    """Most seconds of an answer, the time in the queue included; then 504."""
    body_bytes: int = option(2**20, least=1)
    """Most bytes of a body; then 413."""
    body_seconds: float = option(20.0, above=0)
    """Most seconds in which a body arrives; then 408."""
    answer_tokens: int = option(128, least=1)
    """Tokens of an answer where a request does not say; fewer where the model has no room."""
    api_key: str | None = option(None)
    """Wanted as a bearer token by everything under /v1; None: nobody needs one."""
    admin_token: str | None = option(None)
    """Wanted as a bearer token by what changes tasks; None: nobody can change them."""

    def __post_init__(self) -> None:
        check_options(self)
        for name in ("api_key", "admin_token"):
            # An empty token equals the one of a request that sends none: it would open the server.
            token = getattr(self, name)
            # Spaces around it are no part of a header's value.
            if token is not None and (not token or token != token.strip()):
                why = "it is empty" if not token.strip() else "it begins or ends with a space"
                raise OptionError(name, why, "Give a token, or leave it out")


def make_app(
    engine: Engine,
    *,
    path: Path | None = None,
    settings: HttpSettings | None = None,
    stored: Share | None = None,
) -> FastAPI:
    """The app over an engine.

    Args:
        engine: runs the model.
        path: of the store, so that changes are committed there; None: they are lost at the end.
        settings: None: the defaults.
        stored: the Share model with the tasks that the base model cannot run; None: it has none,
            and is what the engine serves.
    """
    settings = settings or HttpSettings()
    # Without FastAPI's pages of documentation: their scripts come from somebody else's server.
    app = FastAPI(title="sharespace", docs_url=None, redoc_url=None)
    metrics = ServerMetrics()
    engine.watch = metrics.count_batch
    endpoints = Endpoints(engine, TaskAdmin(engine, path, stored), settings, metrics)
    # Starlette's, too, of which FastAPI's is a subclass: an unknown path, a method without a place.
    kinds = (Exception, RequestValidationError, AnyHttpException, *(kind for kind, _ in STATUS))
    for kind in kinds:
        app.add_exception_handler(kind, _failed)
    # The last that is added is called first: a body that is refused is counted as well.
    app.add_middleware(BodyGuard, size=settings.body_bytes, seconds=settings.body_seconds)
    app.add_middleware(AnswerCounter, count=metrics.count_answer)
    _add_routes(app, endpoints, settings)
    return app


def _add_routes(app: FastAPI, endpoints: Endpoints, settings: HttpSettings) -> None:
    user = [Depends(_bearer(settings.api_key))] if settings.api_key else []
    for path, call in (
        ("/v1/completions", endpoints.completions),
        ("/v1/chat/completions", endpoints.chat),
        ("/v1/embeddings", endpoints.embeddings),
        ("/v1/classify", endpoints.classify),
    ):
        app.add_api_route(path, call, methods=["POST"], dependencies=user, response_model=None)
    app.add_api_route("/v1/models", endpoints.models, dependencies=user)
    # ":path", because a task's name may hold a slash.
    app.add_api_route("/v1/models/{name:path}", endpoints.model, dependencies=user)
    admin = [Depends(_bearer(settings.admin_token))]
    app.add_api_route("/v1/tasks", endpoints.add, methods=["POST"], dependencies=admin)
    app.add_api_route(
        "/v1/tasks/{name:path}", endpoints.remove, methods=["DELETE"], dependencies=admin
    )
    app.add_api_route("/v1/reload", endpoints.reload, methods=["POST"], dependencies=admin)
    app.add_api_route("/health", endpoints.health)
    app.add_api_route("/ready", endpoints.ready)
    app.add_api_route("/metrics", endpoints.metrics_text, response_class=Response)


def _bearer(wanted: str | None) -> Callable[[str], None]:
    def check(authorization: Annotated[str, Header()] = "") -> None:
        given = authorization.removeprefix("Bearer ")
        if wanted is None:
            raise HTTPException(403, "this server was started without an admin token")
        # In constant time: == ends at the first wrong character, and its time tells how many were
        # right.
        if not hmac.compare_digest(given.encode(), wanted.encode()):
            raise HTTPException(401, "the bearer token is missing or wrong")

    return check


def _failed(request: Request, error: Exception) -> JSONResponse:
    """Any error as OpenAI's clients understand it."""
    status, text = _status(error)
    if status == 500:
        # Starlette has decoded the path: what a client put there must not reach a terminal.
        _LOG.error("%s %s failed", request.method, visible(request.url.path), exc_info=error)
    kind = "invalid_request_error" if status < 500 else "server_error"
    # OpenAI's clients wait this long and try again by themselves.
    headers = {"Retry-After": "1"} if status in (429, 503) else None
    return JSONResponse(openai.error_body(text, kind, status), status, headers)


_PATH = re.compile(r"(?<![\w.:/\\-])(?:/[^/\s'\":,;()]+)+/([^/\s'\":,;()]+)")
"""An absolute path, and its last component."""


def _status(error: Exception) -> tuple[int, str]:
    """HTTP status and text of one line; what happened inside is logged, not told."""
    status, text = _status_and_text(error)
    # A text may name what the client sent.
    return status, visible(text)


def _status_and_text(error: Exception) -> tuple[int, str]:
    if isinstance(error, AnyHttpException):
        return error.status_code, str(error.detail)
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        where = ".".join(str(x) for x in first["loc"] if x != "body")
        return 400, f"{where}: {first['msg']}" if where else str(first["msg"])
    if isinstance(error, asyncio.TimeoutError):
        return 504, "the answer took too long"
    status = next((s for kind, s in STATUS if isinstance(error, kind)), 500)
    if not isinstance(error, SharespaceError):
        return status, "the server failed"
    # Where things lie on the server's disk is nobody's business.
    return status, _PATH.sub(r"\1", str(error))


class Endpoints:
    """One method for each endpoint."""

    def __init__(
        self, engine: Engine, admin: TaskAdmin, settings: HttpSettings, metrics: ServerMetrics
    ) -> None:
        self.engine = engine
        self.admin = admin
        self.settings = settings
        self.metrics = metrics
        self.created = int(time.time())

    # Tokens are made in threads: a long text takes seconds, in which the event loop must go on.

    async def completions(self, body: openai.CompletionBody, request: Request) -> Response:
        """Continue one or more texts."""
        prompts = await asyncio.to_thread(self._token_lists, body.model, body.prompt)
        return await self._texts(body, prompts, openai.CompletionForm("text", body.model), request)

    async def chat(self, body: openai.ChatBody, request: Request) -> Response:
        """Answer a conversation."""
        prompt = await asyncio.to_thread(self._chat_tokens, body)
        return await self._texts(body, [prompt], openai.CompletionForm("chat", body.model), request)

    async def _texts(
        self,
        body: openai.SamplingBody,
        prompts: Sequence[tuple[int, ...]],
        form: openai.CompletionForm,
        request: Request,
    ) -> Response:
        task = self._task(body.model)
        choices = [
            Generate(task, tokens, body.sampling(self._default_tokens(tokens), choice))
            for tokens in prompts
            for choice in range(body.n)
        ]
        read = sum(map(len, prompts))
        seconds = self.settings.answer_seconds
        if body.stream:
            pieces = stream_texts(self.engine, choices, seconds)
            # The first piece is waited for, so that what is refused has a status of its own.
            first = await anext(pieces)
            events = self._events(first, pieces, form, _Usage(len(choices), read, body.with_usage))
            headers = _headers([first[1]])
            return StreamingResponse(events, headers=headers, media_type="text/event-stream")
        answers = await _unless_gone(request, whole_texts(self.engine, choices, seconds))
        if answers is None:
            # Nobody reads it; 499 is what nginx logs where the client has closed the connection.
            return Response(status_code=499)
        self.metrics.count_tokens(read, sum(answer.tokens for answer in answers))
        return JSONResponse(form.whole(answers, read), headers=_headers(answers))

    def _task(self, model: str) -> str | None:
        """The task that a request names; None: the base model."""
        return None if model == self.engine.served.name else model

    def _token_lists(self, model: str, prompt: openai.Prompt) -> list[tuple[int, ...]]:
        served = self.engine.served
        return openai.token_lists(served, served.tokenizer_of(self._task(model)).tokenizer, prompt)

    def _chat_tokens(self, body: openai.ChatBody) -> tuple[int, ...]:
        served = self.engine.served
        return openai.chat_tokens(
            served, served.tokenizer_of(self._task(body.model)).tokenizer, body
        )

    def _default_tokens(self, prompt: tuple[int, ...]) -> int:
        """Tokens of an answer where the request does not say."""
        room = self.engine.served.longest - len(prompt)
        return max(1, min(self.settings.answer_tokens, room))

    async def _events(
        self,
        first: tuple[int, Piece],
        rest: AsyncGenerator[tuple[int, Piece], None],
        form: openai.CompletionForm,
        usage: _Usage,
    ) -> AsyncIterator[bytes]:
        written = dict.fromkeys(range(usage.choices), 0)
        # A client that goes away ends this generator; the rows end with ``rest``.
        async with aclosing(rest):
            for index in range(usage.choices):
                if (opening := form.opening(index, first[1].source)) is not None:
                    yield openai.server_sent_event(opening)
            try:
                async for number, piece in _chained(first, rest):
                    written[number] = piece.tokens
                    yield openai.server_sent_event(form.chunk(number, piece))
            except Exception as error:  # noqa: BLE001 - a stream has no other way to say it
                status, text = _status(error)
                yield openai.server_sent_event(openai.error_body(text, "server_error", status))
                return
            self.metrics.count_tokens(usage.read, sum(written.values()))
            if usage.wanted:
                last = form.last(usage.read, sum(written.values()), first[1].source)
                yield openai.server_sent_event(last)
            yield openai.DONE

    async def embeddings(self, body: openai.EmbeddingBody, request: Request) -> Response:
        """Mean last hidden states."""
        task = self._task(body.model)
        texts = await asyncio.to_thread(self._token_lists, body.model, body.input)
        answers = await self._rows([Embed(task, text) for text in texts], request)
        rows: list[openai.Json] = [
            {
                "object": "embedding",
                "index": i,
                "embedding": openai.encoded_vector(vector.values, body.encoding_format),
            }
            for i, vector in enumerate(answers)
            if isinstance(vector, Vector)
        ]
        body_of = openai.row_list(rows, body.model, sum(map(len, texts)))
        return JSONResponse(body_of, headers=_headers(answers))

    async def classify(self, body: openai.ClassifyBody, request: Request) -> Response:
        """Probabilities of the task's labels."""
        task = self._task(body.model)
        texts = await asyncio.to_thread(self._token_lists, body.model, body.input)
        answers = await self._rows([Classify(task, text) for text in texts], request)
        rows = [
            _probabilities(i, answer)
            for i, answer in enumerate(answers)
            if isinstance(answer, ClassLogits)
        ]
        body_of = openai.row_list(rows, body.model, sum(map(len, texts)))
        return JSONResponse(body_of, headers=_headers(answers))

    async def _rows(
        self, texts: Sequence[Classify | Embed], request: Request
    ) -> Sequence[EngineAnswer]:
        """One answer for each text; none where the client went away."""
        work = single_answers(self.engine, texts, self.settings.answer_seconds)
        answers = await _unless_gone(request, work)
        if answers is None:
            return ()
        self.metrics.count_tokens(sum(len(text.tokens) for text in texts), 0)
        return answers

    async def models(self) -> openai.Json:
        """The base model and every task."""
        names = [self.engine.served.name, *self.engine.share.tasks]
        return {"object": "list", "data": [self._model(name) for name in names]}

    async def model(self, name: str) -> openai.Json:
        """The base model or one task."""
        if self._task(name) is not None:
            check_task(self.engine.share, name)
        return self._model(name)

    def _model(self, name: str) -> openai.Json:
        base = self.engine.served.name
        return {
            "id": name,
            "object": "model",
            "created": self.created,
            "owned_by": "sharespace",
            "root": base,
            "parent": None if name == base else base,
        }

    # In threads: a merge takes seconds, in which the event loop must go on answering.

    async def add(self, body: openai.AdapterBody) -> openai.Json:
        """Merge an adapter as a new task."""
        return _version(await asyncio.to_thread(self.admin.add, body.name, body.adapter))

    async def remove(self, name: str) -> openai.Json:
        """Take a task away."""
        return _version(await asyncio.to_thread(self.admin.remove, name))

    async def reload(self) -> openai.Json:
        """Serve the store's current version."""
        return _version(await asyncio.to_thread(self.admin.reload))

    async def health(self) -> dict[str, str]:
        """Whether the process can still do its work."""
        if not self.engine.alive:
            raise UnavailableError("engine", "its thread has ended", "Restart the server")
        return {"status": "ok"}

    async def ready(self) -> dict[str, str]:
        """Whether new requests are welcome; unlike ``health``, not while the server drains."""
        if self.engine.draining or not self.engine.alive:
            raise UnavailableError("server", "it is shutting down", "Ask another one")
        return {"status": "ready"}

    async def metrics_text(self) -> Response:
        """The metrics, for Prometheus."""
        share = self.engine.share
        version = share.saved_version or 0
        text = self.metrics.text(self.engine.waiting, len(share.model.tasks), version)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


@dataclass(frozen=True)
class _Usage:
    """What the end of a stream says of it."""

    choices: int
    read: int
    """Number of tokens of the prompts."""
    wanted: bool
    """True where the client asked for the numbers of tokens."""


def _headers(answers: Sequence[EngineAnswer]) -> dict[str, str]:
    """Headers that say what the answers were computed with, and a line of the log that does.

    Raises:
        UnavailableError: the task was changed between two of the answers.
    """
    sources = {answer.source for answer in answers}
    if len(sources) > 1:
        raise UnavailableError("task", "it was changed while its answers were written", "Ask again")
    source = next(iter(sources), None)
    if source is None:
        return {}
    _ANSWERS.info(
        "answered from task %r, version %s, sha256 %s", source.task, source.version, source.sha256
    )
    return source.headers


async def _chained(
    first: tuple[int, Piece], rest: AsyncIterator[tuple[int, Piece]]
) -> AsyncIterator[tuple[int, Piece]]:
    yield first
    async for following in rest:
        yield following


def _probabilities(index: int, answer: ClassLogits) -> openai.Json:
    largest = max(answer.logits)
    # Softmax; less the largest, so that exp cannot overflow.
    weights = [math.exp(x - largest) for x in answer.logits]
    probabilities = [weight / sum(weights) for weight in weights]
    best = probabilities.index(max(probabilities))
    return {
        "index": index,
        "label": str(best),
        "probs": probabilities,
        "num_classes": len(probabilities),
    }


def _version(share: Share) -> openai.Json:
    return {"version": share.version, "tasks": len(share.tasks)}


async def _unless_gone(request: Request, work: Coroutine[None, None, _Result]) -> _Result | None:
    """The result; None, and the work is cancelled, where the client went away before.

    Without it the model would go on writing for nobody.

    Args:
        request: its body read already.
        work: what answers it.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        return await task if task.done() else None
    finally:
        gone.cancel()
        task.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class TaskAdmin:
    """Changes the Share model of an engine, one change at a time.

    With a path every change is committed to the store first: what is served is what is stored, but
    for tasks that the base model cannot run.
    """

    def __init__(self, engine: Engine, path: Path | None, stored: Share | None = None) -> None:
        self.engine = engine
        self.path = path
        self._stored = engine.share if stored is None else stored
        """With the tasks that are not served."""
        # Of two changes that begin from one version, the second would undo the first.
        self._lock = threading.Lock()

    def add(self, name: str, adapter: str) -> Share:
        """Merge an adapter as a new task, once it is known that the base model can run it.

        Raises:
            TaskExistsError: there is a task of that name, or the base model is called so.
            OptionError: the name cannot be asked for over HTTP, or ``adapter`` is no path.
            AdapterError: it cannot be read, or has settings that cannot be served.
            MismatchError: the base model cannot run it.
            StoreConflictError: somebody else changed the store; reload first.
        """
        with self._lock:
            served = self.engine.served
            check_name(served.name, name)
            if "\0" in adapter:
                raise OptionError("adapter", "its path has a zero byte", "Give another path")
            newcomer = read_adapter(adapter, name)
            self._check_modules(newcomer)
            changed = self._stored.merge([newcomer])
            served.mixed.check_task(changed.model, name)
            return self._changed(changed)

    def _check_modules(self, newcomer: Adapter) -> None:
        """Refuse modules that the base model lacks before a merge, which may take long."""
        (named,) = common_names([newcomer], self._stored.model)
        known = {}
        for module, shape in named.shapes.items():
            sides = self._sides(module)
            fits = sides == (shape.out_features, shape.in_features)
            if sides is not None:
                known[module] = shape if fits else ModuleShape(*sides)
        refuse_other_modules(named, known, "the base model", "Give an adapter of this base model")

    def remove(self, name: str) -> Share:
        """Take a task away; batches that run go on with it.

        Raises:
            TaskNotFoundError: there is none of that name.
            StoreConflictError: somebody else changed the store; reload first.
        """
        with self._lock:
            return self._changed(self._stored.remove(name))

    def reload(self) -> Share:
        """Serve the store's current version.

        Raises:
            OptionError: the Share model is not of a store.
            TaskExistsError: a task is named as the base model; the version before stays in place.
            StoreError: it cannot be read; likewise.
        """
        with self._lock:
            if self.path is None:
                raise OptionError("reload", "the Share model is of no store", "Serve a path")
            stored = Share.load(self.path)
            self.engine.replace(servable(self.engine.served.name, self._sides, stored))
            self._stored = stored
            return stored

    def _changed(self, stored: Share) -> Share:
        # Before the commit: what cannot be served must not be stored by this server.
        servable(self.engine.served.name, self._sides, stored, warn=False)
        if self.path is not None:
            stored.save(self.path)
        self.engine.replace(servable(self.engine.served.name, self._sides, stored, warn=False))
        self._stored = stored
        return stored

    def _sides(self, module: str) -> tuple[int, int] | None:
        return self.engine.served.mixed.sides_of(module)
