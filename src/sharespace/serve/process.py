"""The process: load, listen, and leave in good order."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sharespace.errors import OptionError, UnavailableError
from sharespace.extras import require
from sharespace.serve.base_model import load_base
from sharespace.serve.engine import Engine, Limits
from sharespace.serve.http import Rules, make_app
from sharespace.share import Share


@dataclass(frozen=True)
class Options:
    """Of ``sharespace serve``."""

    base: str | None = None
    """Path or Hub id; None: what the Share model says."""
    name: str | None = None
    """What the base model is called in requests; None: as ``base``."""
    host: str = "127.0.0.1"
    port: int = 8000
    dtype: str = "float32"
    slots: int = 256
    limits: Limits = field(default_factory=Limits)
    rules: Rules = field(default_factory=Rules)
    drain: float = 30.0
    """Seconds that running requests get at the end."""
    device: str | None = None
    """Where the model runs; None: the first GPU, or the CPU where there is none."""


def serve(path: Path, options: Options) -> None:
    """Serve a stored Share model until SIGINT or SIGTERM; then finish what was asked.

    Raises:
        OptionError: no base model is known, or a task is named as it.
        MismatchError: the base model is not the Share model's.
        StoreError: the store cannot be read.
        UnavailableError: requests were not finished in time.
    """
    uvicorn = require("uvicorn", "serve")
    share = Share.load(path)
    engine = Engine(_base(share, options), options.limits)
    app = make_app(engine, path=path, rules=options.rules)
    config = uvicorn.Config(
        app,
        host=options.host,
        port=options.port,
        log_level="info",
        timeout_graceful_shutdown=int(options.drain),
        # Slow clients: a connection that says nothing is closed.
        timeout_keep_alive=15,
    )
    try:
        uvicorn.Server(config).run()
    finally:
        ended = engine.close(options.drain)
    if not ended:
        raise UnavailableError("engine", f"still busy after {options.drain:g} s", "Raise --drain")


def _base(share: Share, options: Options) -> Any:
    base = options.base or share.model.base.id
    if not base:
        raise OptionError("base model", "the Share model does not say which", "Give --base")
    served = load_base(
        base,
        share,
        name=options.name,
        dtype=options.dtype,
        slots=options.slots,
        device=options.device,
    )
    if served.name in share.model.tasks:
        raise OptionError(
            f"task {served.name!r}", "is named as the base model", "Give the base another --name"
        )
    return served
