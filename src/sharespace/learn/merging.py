"""Merge what was trained in a ``PeftModel`` into a Share model (method.md, step 3).

Hand in what was trained in a ``PeftModel``, for somebody else to merge.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from sharespace.errors import OptionError
from sharespace.extras import require
from sharespace.formats import read_adapter
from sharespace.gather import Submission, submit
from sharespace.share import Share
from sharespace.subspace.adapter import LEARNED, Adapter


def merge_from(
    share: Share,
    model: Any,
    *,
    task: str | None = None,
    adapter: str = "default",
    k: int | None = None,
) -> Share:
    """Merge what was trained in a ``PeftModel``, whatever trained it.

    Args:
        model: made with ``ShareConfig``: its temporary directions and heads are merged with it; or
            with another configuration that ``Share.merge`` reads from disk, such as ``LoraConfig``:
            then it is saved to a temporary folder, by PEFT, and read back.
        task: its name; None: that of the ``ShareConfig``.
        adapter: PEFT's name for it.
        k: a new cap for every layer; None: the caps that it has.

    Raises:
        OptionError: the model has no such adapter, or nothing names the task.
        TaskExistsError: the name is taken.
        MismatchError: it belongs to another base model.
        UnsupportedAdapterError: an adapter of a kind whose update is not of low rank.
    """
    config = getattr(model, "peft_config", {}).get(adapter)
    if config is None:
        raise OptionError(f"adapter {adapter!r}", "the model has none of that name", "See adapter=")
    name = task or getattr(config, "task", None)
    if not name:
        raise OptionError("merge_from", "the task has no name", "Give task=NAME")
    ours = require("sharespace.tuner", "train")
    if isinstance(config, ours.ShareConfig):
        found = ours.collect(model, name, adapter=adapter, base=share.model.base)
    else:
        found = _saved(model, name, adapter)
    return share.merge(found, cap=k)


def _saved(model: Any, task: str, adapter: str) -> Adapter:
    """An adapter of PEFT's own, by way of its files, whole in memory."""
    with tempfile.TemporaryDirectory() as folder:
        # "auto" would ask the Hub whether the base model's vocabulary was resized.
        model.save_pretrained(folder, selected_adapters=[adapter], save_embedding_layers=False)
        place = Path(folder) if adapter == "default" else Path(folder) / adapter
        read = read_adapter(place, task)
        return Adapter.from_updates(
            task,
            {module: read.layer(module) for module in read.shapes},
            base=read.base,
            shapes=read.shapes,
            kept={key: read.kept[key].clone() for key in read.kept},
            config=read.config,
            provenance=LEARNED,
        )


def contribute(
    model: Any,
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
        task: its name; None: that of the ``ShareConfig``.
        adapter: PEFT's name for it.
        plain: carry whole factors instead of coefficients: larger, and independent of the history
            of the store.

    Raises:
        OptionError: the model has no such adapter, or nothing names the task.
        ContributionError: it cannot be merged: NaN, a name like a path.
        InboxError: the inbox cannot be written.
    """
    config = getattr(model, "peft_config", {}).get(adapter)
    if config is None:
        raise OptionError(f"adapter {adapter!r}", "the model has none of that name", "See adapter=")
    name = task or getattr(config, "task", None)
    if not name:
        raise OptionError("contribute", "the task has no name", "Give task=NAME")
    with tempfile.TemporaryDirectory() as folder:
        # "auto" would ask the Hub whether the base model's vocabulary was resized.
        model.save_pretrained(folder, selected_adapters=[adapter], save_embedding_layers=False)
        place = Path(folder) if adapter == "default" else Path(folder) / adapter
        return submit(place, inbox, task=name, plain=plain)
