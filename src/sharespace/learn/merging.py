"""Merge what was trained in a ``PeftModel`` into a Share model, or hand it in for others to merge.

See docs/method.md, "Step 3: merge".
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast

from torch import Tensor, nn

from sharespace.errors import OptionError
from sharespace.formats import read_adapter
from sharespace.formats.companions import labels_of
from sharespace.formats.lora_config import PREFIX
from sharespace.gather import Submission
from sharespace.gather.submit import hand_in, read_contribution
from sharespace.protocols import AdapterConfig, PeftModel
from sharespace.share import Share
from sharespace.subspace.adapter import LEARNED, Adapter, BaseModel, common_base
from sharespace.subspace.base_weights import base_samples, check_same_base
from sharespace.subspace.naming import unwrapped

_SETS = ("target_modules", "exclude_modules", "modules_to_save", "target_parameters")
"""Fields of PEFT's configurations in which the order says nothing."""


def merge_from(
    share: Share,
    model: nn.Module,
    *,
    task: str | None = None,
    adapter: str = "default",
    cap: int | None = None,
    base: str | None = None,
) -> Share:
    """Merge what was trained in a ``PeftModel``, whatever trained it.

    Where FSDP or ``fully_shard`` has cut the parameters into parts, every process has to call it:
    they are gathered, and every process gets the result, which one of them saves.

    Args:
        share: does not change; the result is a new one.
        model: made with ``ShareConfig``: its temporary directions and heads are merged with it; or
            with another configuration that ``Share.merge`` reads from disk, such as ``LoraConfig``:
            then it is saved to a temporary folder, by PEFT, and read back.
        task: the task's name; None: that of the ``ShareConfig``.
        adapter: PEFT's name for it.
        cap: a new cap of the dimension of every layer and side; None: the caps that it has.
        base: id of the base model, where the model names it differently than the Share model and
            no weights are known yet that would tell.

    Returns:
        The Share model with the task, not saved yet.

    Raises:
        OptionError: the model has no such adapter, or nothing names the task.
        TaskExistsError: the name is taken.
        MismatchError: it belongs to another base model, or its parameters are cut into parts that
            cannot be gathered (DeepSpeed ZeRO-3, a process that does not call).
        UnsupportedAdapterError: an adapter of a kind whose update is not of low rank.
        MissingExtraError: PEFT or transformers is not installed.
    """
    return merge_trained(share, trained_adapter(model, task, adapter), cap=cap, base=base)


def trained_adapter(
    model: nn.Module, task: str | None, adapter: str, *, patient: bool = False
) -> Adapter:
    """What was trained in a ``PeftModel``, as ``merge_from`` merges it.

    Args:
        model, task, adapter: as for ``merge_from``.
        patient: where parameters are cut into parts, wait for the other processes without limit,
            not for a minute.

    Raises:
        OptionError, MismatchError, UnsupportedAdapterError, MissingExtraError: see ``merge_from``.
    """
    from sharespace.tuner import ShareConfig, collect

    config, name = named_adapter("merge_from", model, task, adapter)
    if isinstance(config, ShareConfig):
        return collect(cast(PeftModel, model), name, adapter=adapter, patient=patient)
    with _saved("merge_from", model, adapter, patient) as folder:
        trained = _in_memory(read_adapter(folder, name))
    return replace(
        trained,
        labels=_labels(model) if trained.kept else (),
        base_samples=_samples(model, trained.shapes),
    )


def merge_trained(share: Share, trained: Adapter, *, cap: int | None, base: str | None) -> Share:
    """Merge what ``trained_adapter`` gave; arguments and errors are those of ``merge_from``."""
    return share.merge(_known_base(share, trained), cap=cap, base=base)


def _ordered(config: Mapping[str, object]) -> dict[str, object]:
    """PEFT writes sets of modules in an order that differs between processes."""
    return {
        key: sorted(value) if key in _SETS and isinstance(value, list) else value
        for key, value in config.items()
    }


def _labels(model: nn.Module) -> tuple[str, ...]:
    from sharespace.tuner.modules import bare

    return labels_of(getattr(getattr(bare(model), "config", None), "id2label", None))


def _known_base(share: Share, adapter: Adapter) -> Adapter:
    """The adapter under the Share model's name of the base, where both have base weights.

    Weights say more than names, of which a model has several (mirrors, copies); the merge compares
    them.
    """
    if share.model.base_samples and adapter.base_samples:
        return replace(adapter, base=share.model.base)
    return adapter


def check_base_of(share: Share, model: nn.Module, adapter: str, base: str | None) -> None:
    """Refuse, before training, a base model that ``merge_from`` would refuse after it.

    Args:
        share: what the task will be merged into.
        model: a ``PeftModel``.
        adapter: PEFT's name for it.
        base: as for ``merge_from``.

    Raises:
        MismatchError: another base model, by its weights or, where none are known, by its name.
    """
    config, _ = named_adapter("merge_from", model, "task", adapter)
    samples = _samples(model, share.model.layers)
    name = getattr(config, "base_model_name_or_path", None)
    stub = Adapter.from_updates("of the model", {}, base=BaseModel(name or None))
    known = _known_base(share, replace(stub, base_samples=samples))
    check_same_base("the model", share.model.base_samples, samples)
    if base is None:
        common_base([known], share.model.base)


def _samples(model: nn.Module, modules: Iterable[str]) -> dict[str, Tensor]:
    """Module -> sample of its base weight, of modules by their names in the base model."""
    known = {unwrapped(n).removeprefix(PREFIX): m for n, m in model.named_modules()}
    return base_samples({name: known[name] for name in modules if name in known})


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
            Where FSDP or ``fully_shard`` has cut its parameters into parts, every process has to
            call this; each writes the same file.
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
    with _saved("contribute", model, adapter) as folder:
        contribution = read_contribution(folder, task=name, plain=plain)
        contribution = replace(
            contribution,
            config=_ordered(contribution.config),
            labels=_labels(model) if contribution.kept else (),
            base_samples=_samples(model, contribution.updates),
        )
        return hand_in(contribution, inbox)


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
    from sharespace.tuner.modules import bare

    config: AdapterConfig | None = getattr(bare(model), "peft_config", {}).get(adapter)
    if config is None:
        raise OptionError(
            what, f"no PEFT adapter {adapter!r} in the model", "Give a PeftModel, and adapter=NAME"
        )
    name: str | None = task or getattr(config, "task", None)
    if not name:
        raise OptionError(what, "the task has no name", "Give task=NAME")
    return config, name


@contextmanager
def _saved(what: str, model: nn.Module, adapter: str, patient: bool = False) -> Iterator[Path]:
    """An adapter's folder, as PEFT writes it, for the time of the block."""
    from sharespace.tuner import vocabulary_resized
    from sharespace.tuner.modules import bare
    from sharespace.tuner.sharding import whole_parameters

    tensors = whole_parameters(what, model, patient=patient)
    inner = bare(model)
    with tempfile.TemporaryDirectory() as temporary:
        # One name for all processes: the contribution says where it was read from.
        folder = Path(temporary) / "trained"
        # "auto", the default, would ask the Hub whether the base model's vocabulary was resized.
        cast(PeftModel, inner).save_pretrained(
            folder,
            selected_adapters=[adapter],
            save_embedding_layers=vocabulary_resized(inner),
            state_dict=tensors or None,
        )
        # PEFT writes the adapter "default" into the folder itself, others below their names.
        yield folder if adapter == "default" else folder / adapter


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
