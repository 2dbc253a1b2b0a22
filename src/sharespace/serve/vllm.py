"""vLLM serves the tasks of a Share model as LoRA adapters, written when they are first asked for.

vLLM loads the plugin by its entry point (group ``vllm.general_plugins``); it does something where
the environment names a Share model:

- ``SHARESPACE_VLLM_SHARE``: path of the store;
- ``SHARESPACE_VLLM_CACHE``: folder for the adapters (default: ``~/.cache/sharespace/vllm``);
- ``VLLM_ALLOW_RUNTIME_LORA_UPDATING=True``, so that vLLM asks for adapters it does not know.

A request names ``task`` (the current version, at the first request), ``task@7``, or a mixture such
as ``legal:0.7+medical:0.3``, which becomes one LoRA of their exact sum. vLLM keeps what
a name stood for, so a task that changed is asked for by its version. Adapters lie in folders named
by their content and are never deleted here, because a running server may hold them.

vLLM imports this module in every one of its processes, so it must load neither fastapi,
transformers nor peft.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sharespace.errors import (
    MismatchError,
    OptionError,
    StoreNotFoundError,
    TaskNotFoundError,
)
from sharespace.extras import require
from sharespace.formats import read_adapter
from sharespace.formats.engines import requested_weights, weights_samples, written_rank
from sharespace.formats.plain import check_updates
from sharespace.share import Share
from sharespace.subspace.base_weights import check_same_base

_LOG = logging.getLogger(__name__)

SHARE = "SHARESPACE_VLLM_SHARE"
CACHE = "SHARESPACE_VLLM_CACHE"


def register() -> None:
    """Give vLLM a resolver of task names; nothing happens where no Share model is named.

    vLLM calls this in each of its processes.

    Raises:
        OptionError: the Share model that the environment names is not there.
    """
    store = os.environ.get(SHARE)
    if not store:
        return
    if not Path(store).is_dir():
        raise OptionError(f"{SHARE}={store!r}", "there is no such folder", "Name a stored model")
    cache = Path(os.environ.get(CACHE) or "~/.cache/sharespace/vllm").expanduser()
    resolver = require("vllm.lora.resolver", "serve")
    registry = resolver.LoRAResolverRegistry
    registry.register_resolver("sharespace", _resolver(resolver, Path(store), cache))


def _resolver(api: Any, store: Path, cache: Path) -> Any:
    request = require("vllm.lora.request", "serve").LoRARequest

    class ShareResolver(api.LoRAResolver):  # type: ignore[misc, unused-ignore]
        """Task names of one Share model."""

        async def resolve_lora(self, base_model_name: str, lora_name: str) -> Any:
            """The adapter of that name; None: the Share model has none, vLLM says 404."""
            # In a thread: this runs in vLLM's event loop, which answers all other requests.
            adapter = await asyncio.to_thread(
                _write_if_known, store, lora_name, cache, base_model_name
            )
            if adapter is None:
                return None
            return request(lora_name, adapter.number, str(adapter.path))

    return ShareResolver()


def _write_if_known(store: Path, name: str, cache: Path, base: str) -> WrittenAdapter | None:
    try:
        share, _ = _find(store, name)
        check_base_files(share, base)
        return write(store, name, cache)
    except (TaskNotFoundError, StoreNotFoundError):
        return None


@dataclass(frozen=True)
class WrittenAdapter:
    """A task as a plain LoRA on disk."""

    path: Path
    """A PEFT directory, named by the SHA-256 of its files."""
    version: int
    """Version of the Share model."""
    rank: int
    """Rank of the LoRA, which the server's ``--max-lora-rank`` must allow."""

    @property
    def number(self) -> int:
        """vLLM's ``lora_int_id``: positive, and the same for the same content."""
        # From the content and not from a counter: vLLM's processes must agree without talking, and
        # an id that comes again with other content would be served from vLLM's cache. vLLM refuses
        # ids below 1.
        return int(self.path.name[:15], 16) % (2**31 - 1) + 1


def parse(name: str) -> tuple[str, int | None]:
    """Task and version (None: the current one) of ``task`` or ``task@version``.

    Only a number after the last ``@`` is a version: a task's name may hold one.
    """
    task, at, version = name.rpartition("@")
    if at and task and version.isdecimal():
        return task, int(version)
    return name, None


def write(store: Path, name: str, cache: Path) -> WrittenAdapter:
    """The task's adapter in the cache; written whole or not at all, and only where it is missing.

    Args:
        store: folder of the Share model.
        name: ``task`` or ``task@version``.
        cache: folder of the adapters.

    Raises:
        TaskNotFoundError: the Share model has no such task.
        StoreError: the Share model, or that version of it, cannot be read.
        UnsupportedAdapterError: the task is more than LoRA of linear layers.
        OptionError: vLLM takes no LoRA of the task's rank.
        MismatchError: what was written is not what the Share model holds.
    """
    share, task = _find(store, name)
    cache.mkdir(parents=True, exist_ok=True)
    # Within the cache, because only within one file system a rename is atomic.
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        (adapter,) = share.export(task, Path(folder) / "adapter", to="vllm")
        _check(share, task, adapter)
        target = cache / _digest(adapter)
        if not target.exists():
            _move(adapter, target)
    written = WrittenAdapter(target, share.version or 0, written_rank([target]))
    _LOG.info("%r is a LoRA of rank %d, of version %d", name, written.rank, written.version)
    return written


def check_base_files(share: Share, base: str) -> None:
    """Refuse a base model whose weights, in its files, are others than the Share model's base has.

    What cannot be compared is logged: weights that are quantised or fused, files that are not here,
    and a Share model whose base weights nobody has seen.

    Args:
        share: the version that is asked for.
        base: the base model's folder or Hub id, as vLLM was started with it.

    Raises:
        MismatchError: it is another base model.
    """
    known = share.model.base_samples
    samples = weights_samples(base, known, share.model.shapes)
    check_same_base(f"base model {base!r}", known, samples)
    if (missing := len(share.model.layers) - len(samples)) and base not in _NOT_COMPARED:
        _NOT_COMPARED.add(base)
        _LOG.warning(
            "base model %r: whether its weights are those of the Share model's base is not known "
            "in %d of %d modules. Make sure that it is the same base model",
            base, missing, len(share.model.layers),
        )  # fmt: skip


_NOT_COMPARED: set[str] = set()
"""Base models of which that was said."""


def _find(store: Path, name: str) -> tuple[Share, str]:
    """The version and the task that a name stands for; a task's own name goes first."""
    current = Share.load(store)
    if name in current.model.tasks:
        return current, name
    task, version = parse(name)
    share = current if version is None else Share.load(store, version)
    requested_weights(share.model, task)
    return share, task


def _check(share: Share, task: str, folder: Path) -> None:
    """Refuse an adapter that is not the task: vLLM takes shapes and scales as they come."""
    adapter, updates = read_adapter(folder, task), share.updates(task)
    if set(adapter.shapes) != set(updates):
        raise MismatchError(f"task {task!r}", "other modules were written than it adapts")
    check_updates({module: adapter.layer(module) for module in updates}, updates)


def _digest(folder: Path) -> str:
    """SHA-256 (hex) of the names and bytes of all files."""
    digest = hashlib.sha256()
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(f"{file.relative_to(folder)}\0{file.stat().st_size}\0".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _move(adapter: Path, target: Path) -> None:
    """Give the adapter its name; another process may have been faster, with the same files."""
    try:
        adapter.rename(target)
    except OSError:
        if not target.is_dir():
            raise
        shutil.rmtree(adapter)
