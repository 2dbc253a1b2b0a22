"""The app: endpoints of OpenAI's API for the base model and every task, and a few of its own."""

from __future__ import annotations

import asyncio
import hmac
import logging
import math
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse

from sharespace.errors import (
    QueueFullError,
    SharespaceError,
    StoreConflictError,
    StoreLockedError,
    TaskExistsError,
    TaskNotFoundError,
    UnavailableError,
)
from sharespace.serve import openai
from sharespace.serve.ask import merged, one, pieces, unless_gone, whole
from sharespace.serve.engine import Engine
from sharespace.serve.guard import Admin, BodyGuard, Counted, Numbers
from sharespace.serve.openai import (
    AdapterBody,
    ChatBody,
    ClassifyBody,
    CompletionBody,
    EmbeddingBody,
    Sampled,
    chat_tokens,
    sampling,
    token_lists,
)
from sharespace.serve.requests import Classify, Embed, Generate, Piece, Scores, Vector

_LOG = logging.getLogger(__name__)
STATUS: tuple[tuple[type[Exception], int], ...] = (
    (TaskNotFoundError, 404),
    (TaskExistsError, 409),
    (StoreConflictError, 409),
    (StoreLockedError, 409),
    (QueueFullError, 429),
    (UnavailableError, 503),
    (asyncio.TimeoutError, 504),
    (SharespaceError, 400),
)
"""The first that fits; anything else is 500."""


@dataclass(frozen=True)
class Rules:
    """Of the app."""

    seconds: float = 120.0
    """That an answer may take, the time in the queue included; then 504."""
    body: int = 2**20
    """Bytes of a body; then 413."""
    body_seconds: float = 20.0
    """That a body may take to arrive; then 408."""
    answer: int = 128
    """Tokens of an answer where a request does not say; fewer where the model has no room."""
    api_key: str | None = None
    """Wanted as a bearer token by everything under /v1; None: nothing is."""
    admin_token: str | None = None
    """Wanted by what changes tasks; None: nobody can."""


def make_app(engine: Engine, *, path: Path | None = None, rules: Rules | None = None) -> FastAPI:
    """The app over an engine.

    Args:
        engine: runs the model.
        path: of the store, so that changes are committed there; None: they are lost at the end.
        rules: None: the defaults.
    """
    rules = rules or Rules()
    app = FastAPI(title="sharespace", docs_url=None, redoc_url=None)
    numbers = Numbers()
    engine.watch = numbers.batch
    ends = Endpoints(engine, Admin(engine, path), rules, numbers)
    for kind in (Exception, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, _failed)
    for kind, _ in STATUS:
        app.add_exception_handler(kind, _failed)
    app.add_middleware(BodyGuard, size=rules.body, seconds=rules.body_seconds)
    app.add_middleware(Counted, count=numbers.answered)
    _routes(app, ends, rules)
    return app


def _routes(app: FastAPI, ends: Endpoints, rules: Rules) -> None:
    user = [Depends(_token(rules.api_key))] if rules.api_key else []
    for path, call in (
        ("/v1/completions", ends.completions),
        ("/v1/chat/completions", ends.chat),
        ("/v1/embeddings", ends.embeddings),
        ("/v1/classify", ends.classify),
    ):
        app.add_api_route(path, call, methods=["POST"], dependencies=user, response_model=None)
    app.add_api_route("/v1/models", ends.models, dependencies=user)
    app.add_api_route("/v1/models/{name:path}", ends.model, dependencies=user)
    admin = [Depends(_token(rules.admin_token))]
    app.add_api_route("/v1/tasks", ends.add, methods=["POST"], dependencies=admin)
    app.add_api_route("/v1/tasks/{name:path}", ends.remove, methods=["DELETE"], dependencies=admin)
    app.add_api_route("/v1/reload", ends.reload, methods=["POST"], dependencies=admin)
    app.add_api_route("/health", ends.health)
    app.add_api_route("/ready", ends.ready)
    app.add_api_route("/metrics", ends.metrics, response_class=Response)


def _token(wanted: str | None) -> Callable[[str], None]:
    def check(authorization: Annotated[str, Header()] = "") -> None:
        given = authorization.removeprefix("Bearer ")
        if wanted is None:
            raise HTTPException(403, "this server was started without an admin token")
        if not hmac.compare_digest(given.encode(), wanted.encode()):
            raise HTTPException(401, "the bearer token is missing or wrong")

    return check


def _failed(request: Request, error: Exception) -> JSONResponse:
    """Any error as OpenAI's clients understand it."""
    status, text = _status(error)
    if status == 500:
        _LOG.error("%s %s failed", request.method, request.url.path, exc_info=error)
    kind = "invalid_request_error" if status < 500 else "server_error"
    headers = {"Retry-After": "1"} if status in (429, 503) else None
    return JSONResponse(openai.error(text, kind, status), status, headers)


def _status(error: Exception) -> tuple[int, str]:
    if isinstance(error, HTTPException):
        return error.status_code, str(error.detail)
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        where = ".".join(str(x) for x in first["loc"] if x != "body")
        return 400, f"{where}: {first['msg']}" if where else str(first["msg"])
    if isinstance(error, asyncio.TimeoutError):
        return 504, "the answer took too long"
    status = next((s for kind, s in STATUS if isinstance(error, kind)), 500)
    return status, str(error) if status != 500 else "the server failed"


class Endpoints:
    """One method an endpoint."""

    def __init__(self, engine: Engine, admin: Admin, rules: Rules, numbers: Numbers) -> None:
        self.engine = engine
        self.admin = admin
        self.rules = rules
        self.numbers = numbers
        self.created = int(time.time())

    def _task(self, model: str) -> str | None:
        """The task that a request names; None: the base model."""
        return None if model == self.engine.served.name else model

    def _room(self, prompt: tuple[int, ...]) -> int:
        """Tokens of an answer where the request does not say."""
        return max(1, min(self.rules.answer, self.engine.served.longest - len(prompt)))

    async def completions(self, body: CompletionBody, request: Request) -> Response:
        """Continue one or more texts."""
        prompts = token_lists(self.engine.served.tokenizer, body.prompt)
        return await self._texts(body, prompts, openai.Form("text", body.model), request)

    async def chat(self, body: ChatBody, request: Request) -> Response:
        """Answer a conversation."""
        prompt = chat_tokens(self.engine.served.tokenizer, body)
        return await self._texts(body, [prompt], openai.Form("chat", body.model), request)

    async def _texts(
        self, body: Sampled, prompts: list[tuple[int, ...]], form: openai.Form, request: Request
    ) -> Response:
        asked = [
            Generate(self._task(body.model), tokens, sampling(body, self._room(tokens), choice))
            for tokens in prompts
            for choice in range(body.n)
        ]
        read = sum(map(len, prompts))
        if body.stream:
            return await self._stream(asked, form, read, body.with_usage)
        work = [whole(self.engine, one, self.rules.seconds) for one in asked]
        answers = await unless_gone(request, asyncio.gather(*work))
        if answers is None:
            return Response(status_code=499)
        self.numbers.tokens(read, sum(answer.tokens for answer in answers))
        return JSONResponse(form.whole(answers, read))

    async def _stream(
        self, asked: list[Generate], form: openai.Form, read: int, with_usage: bool
    ) -> Response:
        found = merged([pieces(self.engine, one, self.rules.seconds) for one in asked])
        # The first piece is waited for, so that what is refused has a status of its own.
        first = await anext(found)
        events = self._events(first, found, form, len(asked), (read, with_usage))
        return StreamingResponse(events, media_type="text/event-stream")

    async def _events(
        self,
        first: tuple[int, Piece],
        rest: AsyncIterator[tuple[int, Piece]],
        form: openai.Form,
        choices: int,
        counted: tuple[int, bool],
    ) -> AsyncIterator[bytes]:
        written = dict.fromkeys(range(choices), 0)
        for index in range(choices):
            if (opening := form.opening(index)) is not None:
                yield openai.event(opening)
        try:
            async for number, piece in _after(first, rest):
                written[number] = piece.tokens
                yield openai.event(form.chunk(number, piece))
        except Exception as error:  # noqa: BLE001 - a stream has no other way to say it
            status, text = _status(error)
            yield openai.event(openai.error(text, "server_error", status))
            return
        read, with_usage = counted
        self.numbers.tokens(read, sum(written.values()))
        if with_usage:
            yield openai.event(form.last(read, sum(written.values())))
        yield openai.DONE

    async def embeddings(self, body: EmbeddingBody, request: Request) -> Response:
        """Mean last hidden states."""
        texts = token_lists(self.engine.served.tokenizer, body.input)
        task = self._task(body.model)
        work = [one(self.engine, Embed(task, text), self.rules.seconds) for text in texts]
        found = await unless_gone(request, asyncio.gather(*work))
        rows = [
            {
                "object": "embedding",
                "index": i,
                "embedding": openai.embedding(vector.values, body.encoding_format),
            }
            for i, vector in enumerate(found or ())
            if isinstance(vector, Vector)
        ]
        read = sum(map(len, texts))
        self.numbers.tokens(read, 0)
        used = {"prompt_tokens": read, "total_tokens": read}
        return JSONResponse({"object": "list", "data": rows, "model": body.model, "usage": used})

    async def classify(self, body: ClassifyBody, request: Request) -> Response:
        """Probabilities of the task's labels."""
        texts = token_lists(self.engine.served.tokenizer, body.input)
        task = self._task(body.model)
        work = [one(self.engine, Classify(task, text), self.rules.seconds) for text in texts]
        found = await unless_gone(request, asyncio.gather(*work))
        rows = [_label(i, s) for i, s in enumerate(found or ()) if isinstance(s, Scores)]
        read = sum(map(len, texts))
        self.numbers.tokens(read, 0)
        used = {"prompt_tokens": read, "total_tokens": read}
        return JSONResponse({"object": "list", "data": rows, "model": body.model, "usage": used})

    async def models(self) -> dict[str, Any]:
        """The base model and every task."""
        names = [self.engine.served.name, *self.engine.share.tasks]
        return {"object": "list", "data": [self._model(name) for name in names]}

    async def model(self, name: str) -> dict[str, Any]:
        """One of them."""
        if self._task(name) is not None and name not in self.engine.share.model.tasks:
            self.engine.share.task(name)
        return self._model(name)

    def _model(self, name: str) -> dict[str, Any]:
        base = self.engine.served.name
        return {
            "id": name,
            "object": "model",
            "created": self.created,
            "owned_by": "sharespace",
            "root": base,
            "parent": None if name == base else base,
        }

    async def add(self, body: AdapterBody) -> dict[str, Any]:
        """Merge an adapter as a new task."""
        return _version(await asyncio.to_thread(self.admin.add, body.name, body.adapter))

    async def remove(self, name: str) -> dict[str, Any]:
        """Take a task away."""
        return _version(await asyncio.to_thread(self.admin.remove, name))

    async def reload(self) -> dict[str, Any]:
        """Serve the store's current version."""
        return _version(await asyncio.to_thread(self.admin.reload))

    async def health(self) -> dict[str, str]:
        """Whether the process can still do its work."""
        if not self.engine.alive:
            raise UnavailableError("engine", "its thread has ended", "Restart the server")
        return {"status": "ok"}

    async def ready(self) -> dict[str, str]:
        """Whether new requests are welcome."""
        if self.engine.draining or not self.engine.alive:
            raise UnavailableError("server", "it is shutting down", "Ask another one")
        return {"status": "ready"}

    async def metrics(self) -> Response:
        """For Prometheus."""
        text = self.numbers.text(self.engine.waiting, len(self.engine.share.model.tasks))
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


async def _after(
    first: tuple[int, Piece], rest: AsyncIterator[tuple[int, Piece]]
) -> AsyncIterator[tuple[int, Piece]]:
    yield first
    async for found in rest:
        yield found


def _label(index: int, scores: Scores) -> dict[str, Any]:
    most = max(scores.logits)
    parts = [math.exp(x - most) for x in scores.logits]
    chances = [part / sum(parts) for part in parts]
    best = chances.index(max(chances))
    return {"index": index, "label": str(best), "probs": chances, "num_classes": len(chances)}


def _version(share: Any) -> dict[str, Any]:
    return {"version": share.version, "tasks": len(share.tasks)}
