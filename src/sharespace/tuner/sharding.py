"""What was trained, whole, where it is cut into parts over processes: FSDP, ``fully_shard``.

Gathering is collective: every process has to ask, and every one gets all. It asks for adapters and
for modules that are trained whole alone; the base model stays as it is cut.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, distributed, nn

from sharespace.errors import MismatchError
from sharespace.subspace.naming import unwrapped
from sharespace.tuner.modules import bare
from sharespace.tuner.subspace_layer import SubspaceLayer

PATIENCE = 60.0
"""Seconds that a process waits for the others, which may still be writing a checkpoint."""

_OWNERS = (BaseTunerLayer, AuxiliaryTrainingWrapper)
"""What holds adapters: PEFT's layers, and its wrappers of modules that are trained whole."""


def is_cut(model: nn.Module) -> bool:
    """Whether parameters of a model are cut into parts over processes.

    Args:
        model: wrapped or not.
    """
    return bool(_units(model)) or any(map(_is_part, model.parameters()))


def refuse_unreadable(what: str, model: nn.Module) -> None:
    """Refuse a model whose parameters are cut in a way that they cannot be gathered from.

    Args:
        what: who asks, for the error.
        model: wrapped or not.

    Raises:
        MismatchError: DeepSpeed cut them, or FSDP did and its wrapper is not at hand.
    """
    if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        raise MismatchError(
            what,
            "DeepSpeed ZeRO-3 has cut the parameters into parts, which are not gathered here",
            "Train with ZeRO-2 or FSDP, or let the Trainer save the adapter and merge its folder",
        )
    inside = set(itertools.chain.from_iterable(unit.modules() for unit in _units(model)))
    for path, module in model.named_modules():
        if module not in inside and isinstance(module, _OWNERS) and _is_flattened(module):
            raise MismatchError(
                what,
                f"FSDP has cut the parameters of {unwrapped(path)!r} into parts, and is not in the "
                "model that was given",
                "Give the model that FSDP made, as accelerator.prepare returned it",
            )


def whole_parameters(what: str, model: nn.Module, *, patient: bool = False) -> dict[str, Tensor]:
    """The parameters and buffers of all adapters, and those of embeddings, on the CPU.

    Args:
        what: who asks, for errors.
        model: a ``PeftModel`` as it was trained, with its wrappers.
        patient: wait without limit until every process asks, not for ``PATIENCE``.

    Returns:
        Name in the bare model -> tensor; empty where nothing is cut.

    Raises:
        MismatchError: they cannot be gathered, or not every process asks.
    """
    refuse_unreadable(what, model)
    if not is_cut(model):
        return {}
    if not patient:
        _meet(what)
    root = bare(model)
    wanted = dict(_wanted(root))
    units = _units(model)
    tensors: dict[str, Tensor] = {}
    with torch.no_grad():
        # One unit after the other: only one's parameters are whole at a time.
        for unit in (None, *units):
            own = _own_modules(root if unit is None else unit, units)
            with _summoned(unit):
                # In one order on all processes: every cut tensor is gathered by a call of its own.
                for module in (m for m in wanted if m in own):
                    tensors |= _tensors_of(module, wanted[module])
    return tensors


@contextmanager
def whole_adapters(
    what: str, model: nn.Module, *, patient: bool = False
) -> Iterator[dict[str, Tensor]]:
    """What ``whole_parameters`` gives; in the block the layers of a Share model have it, too.

    Args:
        what, model, patient: as for ``whole_parameters``.

    Raises:
        MismatchError: they cannot be gathered, or not every process asks.
    """
    tensors = whole_parameters(what, model, patient=patient)
    by_name = {unwrapped(name): tensor for name, tensor in tensors.items()}
    replaced: list[tuple[nn.ParameterDict, str, object]] = []
    try:
        for path, layer in model.named_modules() if tensors else ():
            names = layer.adapter_layer_names if isinstance(layer, SubspaceLayer) else ()
            for name, adapter in [(n, a) for n in names for a in getattr(layer, n)]:
                whole = by_name[f"{unwrapped(path)}.{name}.{adapter}"]
                adapters = getattr(layer, name)
                replaced.append((adapters, adapter, getattr(adapters, adapter)))
                _put(
                    adapters, adapter, nn.Parameter(whole.to(layer.get_buffer("left_basis").device))
                )
        yield tensors
    finally:
        for adapters, adapter, part in replaced:
            _put(adapters, adapter, part)


def _put(adapters: nn.ParameterDict, name: str, value: object) -> None:
    """Put a parameter in its place, or what FSDP leaves there, without its being copied."""
    adapters.__dict__.pop(name, None)
    if isinstance(value, nn.Parameter):
        adapters._parameters[name] = value
    else:
        adapters._parameters.pop(name, None)
        adapters.__dict__[name] = value


def _is_part(parameter: Tensor) -> bool:
    return hasattr(parameter, "full_tensor") or hasattr(parameter, "_fsdp_flattened")


def _is_flattened(owner: nn.Module) -> bool:
    """Whether FSDP holds a module's numbers in a flat parameter of many modules.

    Without ``use_orig_params`` it leaves tensors that are no parameters in their places.
    """
    if any(hasattr(parameter, "_fsdp_flattened") for parameter in owner.parameters()):
        return True
    dictionaries = [module for module in owner.modules() if isinstance(module, nn.ParameterDict)]
    values = itertools.chain.from_iterable(by_name.values() for by_name in dictionaries)
    return not all(isinstance(value, nn.Parameter) for value in values)


def _units(model: nn.Module) -> list[nn.Module]:
    """The modules that ``FullyShardedDataParallel`` wraps, outermost first."""
    # Nothing can be wrapped where it was not imported.
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None:
        return []
    return [m for m in model.modules() if isinstance(m, fsdp.FullyShardedDataParallel)]


def _own_modules(unit: nn.Module, units: list[nn.Module]) -> set[nn.Module]:
    """The modules of a unit that are in no other unit inside of it."""
    nested = (other for other in units if other is not unit and other in set(unit.modules()))
    return set(unit.modules()) - set(itertools.chain.from_iterable(o.modules() for o in nested))


@contextmanager
def _summoned(unit: nn.Module | None) -> Iterator[None]:
    if unit is None:
        yield
        return
    from torch.distributed.fsdp import FullyShardedDataParallel

    with FullyShardedDataParallel.summon_full_params(unit, recurse=False, writeback=False):
        yield


def _wanted(root: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Modules whose own tensors belong to an adapter, or to embeddings, with their names.

    Up to the layer or head that holds them the names are those of ``root.named_modules()``, as PEFT
    looks for them; below, wrappers are left out.
    """
    embeddings = [
        find() if callable(find := getattr(root, f"get_{which}_embeddings", None)) else None
        for which in ("input", "output")
    ]
    owners: dict[str, nn.Module] = {}
    for path, module in root.named_modules():
        if isinstance(module, _OWNERS) or module in embeddings:
            owners[path] = module
    for path, owner in owners.items():
        for inner, module in owner.named_modules():
            first = inner.partition(".")[0]
            if isinstance(owner, BaseTunerLayer) and first == "base_layer":
                continue
            yield module, ".".join(filter(None, [path, unwrapped(inner)]))


def _tensors_of(module: nn.Module, path: str) -> dict[str, Tensor]:
    own = (module.named_parameters(recurse=False), module.named_buffers(recurse=False))
    return {f"{path}.{name}": _whole(tensor) for name, tensor in itertools.chain(*own)}


def _whole(tensor: Tensor) -> Tensor:
    full: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full.detach().cpu().clone()


def _meet(what: str) -> None:
    """Wait until every process is here: a collective call of some of them would never end.

    Raises:
        MismatchError: some have not come.
    """
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return
    # The store by which the processes found each other: unlike a barrier of the backend it can be
    # waited at with a limit, and left again.
    store = distributed.distributed_c10d._get_default_store()
    names = [f"sharespace/{rank}" for rank in range(distributed.get_world_size())]
    own = names[distributed.get_rank()]
    store.set(own, "here")
    try:
        store.wait(names, timedelta(seconds=PATIENCE))
    except RuntimeError as error:
        store.delete_key(own)
        raise MismatchError(
            what,
            "the parameters are cut into parts over processes, and not every process asked for "
            f"them within {PATIENCE:.0f} seconds",
            "Call it on every process; each gets the whole",
        ) from error
    distributed.barrier()
    store.delete_key(own)
