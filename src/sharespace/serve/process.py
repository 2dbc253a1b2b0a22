"""The process of ``sharespace serve``: load, listen, and leave in good order.

uvicorn limits neither the time to a request's headers nor the time in which a client takes its
answer, and a connection costs a file descriptor however silent it is: a few hundred of them, left
open, keep everybody else out. So a connection that says nothing, or takes nothing, is closed.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from uvicorn.protocols.http.h11_impl import H11Protocol

from sharespace.errors import MismatchError, OptionError, UnavailableError
from sharespace.extras import require
from sharespace.linalg.precision import usable_device
from sharespace.options import check_options, option
from sharespace.serve.admission import servable
from sharespace.serve.base_model import ServedModel
from sharespace.serve.engine import Engine, EngineLimits
from sharespace.serve.http import HttpSettings, make_app
from sharespace.serve.mixed import MixedTasks
from sharespace.serve.mixed.mixed_tasks import as_module, module_sides
from sharespace.share import Share
from sharespace.subspace.base_weights import misfits

ModelDtype = Literal["float32", "bfloat16", "float16"]


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


@dataclass(frozen=True)
class ServeSettings:
    """How to serve. Raises OptionError where a value is out of its limits."""

    base: str | None = option(None)
    """Path or Hub id of the base model; None: what the Share model says."""
    name: str | None = option(None)
    """What the base model is called in requests; None: as ``base``, of a folder the last part of
    its path."""
    host: str = option("127.0.0.1")
    """Address to listen at."""
    port: int = option(8000, least=0, most=65535)
    """Port to listen at; 0: any that is free."""
    dtype: ModelDtype = option("float32")
    """Dtype of the model, the bases and the coefficients."""
    slots: int = option(256, least=1)
    """Tasks in memory at the same time."""
    limits: EngineLimits = field(default_factory=EngineLimits)
    http: HttpSettings = field(default_factory=HttpSettings)
    connections: ConnectionLimits = field(default_factory=ConnectionLimits)
    drain: float = option(30.0, least=0)
    """Seconds that running requests get at the end."""
    device: str | None = option(None)
    """Where the model runs; None: the first GPU, or the CPU where there is none."""

    def __post_init__(self) -> None:
        check_options(self)
        for name in ("base", "name", "host"):
            # An empty host would be all of the machine's addresses.
            if getattr(self, name) == "":
                raise OptionError(name, "it is empty", "Give one, or leave it out")


def serve(path: Path, settings: ServeSettings) -> None:
    """Serve a stored Share model until SIGINT or SIGTERM; then finish what was asked.

    Args:
        path: of the store.
        settings: how to serve.

    Raises:
        OptionError: no base model is known, or a task is named as it.
        MismatchError: the base model is not the Share model's.
        StoreError: the store cannot be read.
        UnavailableError: requests were not finished in time.
    """
    uvicorn = require("uvicorn", "serve")
    share = Share.load(path)
    _log_answers()
    engine = Engine(_served_model(share, settings), settings.limits)
    app = make_app(engine, path=path, settings=settings.http, stored=share)
    config = server_config(app, settings)
    try:
        uvicorn.Server(config).run()
    finally:
        # After the listener: as long as it takes requests, the engine must answer them.
        ended = engine.close(settings.drain)
    if not ended:
        raise UnavailableError("engine", f"still busy after {settings.drain:g} s", "Raise --drain")


def _log_answers() -> None:
    """Lines that say where each answer came from, beside uvicorn's own."""
    answers = logging.getLogger("sharespace.serve.identity")
    if not answers.handlers:
        answers.addHandler(logging.StreamHandler())
    answers.setLevel(logging.INFO)
    answers.propagate = False


def server_config(app: Any, settings: ServeSettings) -> Any:
    """uvicorn's configuration, with limits for connections.

    Args:
        app: of ``make_app``.
        settings: how to serve.
    """
    uvicorn = require("uvicorn", "serve")
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=guarded_protocol(settings.connections),
        ws="none",
        log_level="info",
        timeout_graceful_shutdown=int(settings.drain),
        timeout_keep_alive=min(15, int(settings.connections.seconds)),
    )


def _served_model(share: Share, settings: ServeSettings) -> ServedModel:
    base = settings.base or share.model.base.id
    if not base:
        raise OptionError("base model", "the Share model does not say which", "Give --base")
    return load_base(
        base,
        share,
        name=settings.name,
        dtype=settings.dtype,
        slots=settings.slots,
        device=settings.device,
    )


def load_base(
    base: str,
    share: Share,
    *,
    name: str | None = None,
    dtype: ModelDtype = "float32",
    slots: int = 256,
    device: str | None = None,
) -> ServedModel:
    """A base model by path or Hub id, of the class that its own config names.

    Args:
        base: path or Hub id.
        share: its tasks; those that the model cannot run, or that cannot be asked for, are left
            out, and each is named in a warning.
        name: what the base model is called in requests; None: as ``base`` says, of a folder the
            last part of its path.
        dtype: of the model, the bases and the coefficients.
        slots: tasks in memory at the same time.
        device: where the model runs; None: the first GPU, or the CPU where there is none.

    Raises:
        OptionError: there is no such device.
        TaskExistsError: a task is named as the base model.
        MissingExtraError: transformers is not installed.
        MismatchError: it is of no class of transformers, or not the Share model's base.
    """
    transformers = require("transformers", "serve")
    place = usable_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    config = transformers.AutoConfig.from_pretrained(base)
    # The class that saved it, and not AutoModel, which has no head: the head decides whether the
    # model generates text or classifies.
    names = getattr(config, "architectures", None) or []
    architecture = next((getattr(transformers, n) for n in names if hasattr(transformers, n)), None)
    if architecture is None:
        raise MismatchError(
            f"base model {base!r}",
            f"its config names {names or 'no architecture'}, which transformers does not have",
            "Give a model that was saved by transformers",
        )
    kind = getattr(torch, dtype)
    model = architecture.from_pretrained(base, dtype=kind).eval().requires_grad_(False).to(place)
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    called = name or (Path(base).resolve().name if Path(base).is_dir() else base)
    module = as_module(model, share.model.layers)
    modules = partial(module_sides, module)
    served = servable(called, modules, share)
    if len(served.tasks) < 1 <= len(share.tasks) or not served.model.layers:
        # Nothing of the Share model is left: it is another model's.
        for error in misfits(share.model.shapes, modules).values():
            raise error
    return ServedModel(MixedTasks(model, served, slots=slots, dtype=kind), tokenizer, called)


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
            (connection._deadline.when(), number, connection)
            for number, connection in enumerate(self.connections)
            if isinstance(connection, _GuardedProtocol)
            and connection is not self
            and connection._deadline is not None
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
