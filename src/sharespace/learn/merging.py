"""Merge what was trained in a ``PeftModel`` into a Share model, or hand it in for others to merge.

See docs/method.md, "Step 3: merge".
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from torch import nn

from sharespace.errors import OptionError
from sharespace.formats import read_adapter
from sharespace.gather import Submission, submit
from sharespace.protocols import AdapterConfig, PeftModel
from sharespace.share import Share
from sharespace.subspace.adapter import LEARNED, Adapter


def merge_from(
    share: Share,
    model: nn.Module,
    *,
    task: str | None = None,
    adapter: str = "default",
    cap: int | None = None,
) -> Share:
    """Merge what was trained in a ``PeftModel``, whatever trained it.

    Args:
        share: does not change; the result is a new one.
        model: made with ``ShareConfig``: its temporary directions and heads are merged with it; or
            with another configuration that ``Share.merge`` reads from disk, such as ``LoraConfig``:
            then it is saved to a temporary folder, by PEFT, and read back.
        task: the task's name; None: that of the ``ShareConfig``.
        adapter: PEFT's name for it.
        cap: a new cap of the dimension of every layer and side; None: the caps that it has.

    Returns:
        The Share model with the task, not saved yet.

    Raises:
        OptionError: the model has no such adapter, or nothing names the task.
        TaskExistsError: the name is taken.
        MismatchError: it belongs to another base model.
        UnsupportedAdapterError: an adapter of a kind whose update is not of low rank.
        MissingExtraError: PEFT or transformers is not installed.
    """
    from sharespace.tuner import ShareConfig, collect

    config, name = named_adapter("merge_from", model, task, adapter)
    if isinstance(config, ShareConfig):
        trained = collect(cast(PeftModel, model), name, adapter=adapter, base=share.model.base)
    else:
        with _saved(model, adapter) as folder:
            trained = _in_memory(read_adapter(folder, name))
    return share.merge(trained, cap=cap)


def contribute(
    model: nn.Module,
    inbox: str | os.PathLike[str],
    *,
    task: str | None = None,
    adapter: str = "default",
    plain: bool = False,
) -> Submission:
    """Hand in a trained task as one small file; ``sharespace gather`` merges it.

    Args:
        model: a ``PeftModel`` made with ``ShareConfig``: its coefficients, temporary directions and
            heads go into the file, and the id of the bases they belong to; or with another
            configuration that ``Share.merge`` reads, such as ``LoraConfig``: then its factors do.
        inbox: a folder (made where it is missing) or a URL such as ``s3://bucket/inbox``.
        task: the task's name; None: that of the ``ShareConfig``.
        adapter: PEFT's name for it.
        plain: carry whole factors instead of coefficients: larger, and independent of the history
            of the store.

    Raises:
        OptionError: the model has no such adapter, or nothing names the task.
        ContributionError: it cannot be merged: NaN, a name like a path.
        InboxError: the inbox cannot be written.
    """
    _, name = named_adapter("contribute", model, task, adapter)
    with _saved(model, adapter) as folder:
        return submit(folder, inbox, task=name, plain=plain)


def named_adapter(
    what: str, model: nn.Module, task: str | None, adapter: str
) -> tuple[AdapterConfig, str]:
    """An adapter's configuration, and the name of the task that it holds.

    Args:
        what: who asks, for errors.
        model: a ``PeftModel``; anything else has no adapters.
        task: the name; None: that of the configuration, if it has one.
        adapter: PEFT's name for it.

    Raises:
        OptionError: the model has no such adapter, or nothing names the task.
    """
    config: AdapterConfig | None = getattr(model, "peft_config", {}).get(adapter)
    if config is None:
        raise OptionError(
            what, f"no PEFT adapter {adapter!r} in the model", "Give a PeftModel, and adapter=NAME"
        )
    name: str | None = task or getattr(config, "task", None)
    if not name:
        raise OptionError(what, "the task has no name", "Give task=NAME")
    return config, name


@contextmanager
def _saved(model: nn.Module, adapter: str) -> Iterator[Path]:
    """An adapter's folder, as PEFT writes it, for the time of the block."""
    with tempfile.TemporaryDirectory() as folder:
        # "auto", the default, would ask the Hub whether the base model's vocabulary was resized.
        cast(PeftModel, model).save_pretrained(
            folder, selected_adapters=[adapter], save_embedding_layers=False
        )
        # PEFT writes the adapter "default" into the folder itself, others below their names.
        yield Path(folder) if adapter == "default" else Path(folder) / adapter


def _in_memory(read: Adapter) -> Adapter:
    """The same without its files, which tensors are otherwise read from when they are needed."""
    return Adapter.from_updates(
        read.name,
        {module: read.layer(module) for module in read.shapes},
        base=read.base,
        shapes=read.shapes,
        kept={key: read.kept[key].clone() for key in read.kept},
        config=read.config,
        provenance=LEARNED,
    )
