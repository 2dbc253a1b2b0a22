"""The process of ``sharespace serve``: load, listen, and leave in good order."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from sharespace.errors import MismatchError, OptionError, UnavailableError
from sharespace.extras import require
from sharespace.linalg.precision import usable_device
from sharespace.options import check_options, option
from sharespace.serve.admission import servable
from sharespace.serve.base_model import ServedModel
from sharespace.serve.connections import ConnectionLimits, guarded_protocol
from sharespace.serve.engine import Engine, EngineLimits
from sharespace.serve.http import HttpSettings, make_app
from sharespace.serve.mixed import MixedTasks
from sharespace.serve.mixed.mixed_tasks import as_module, module_sides
from sharespace.share import Share
from sharespace.subspace.base_weights import misfits

ModelDtype = Literal["float32", "bfloat16", "float16"]


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
