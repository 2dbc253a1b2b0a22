"""Modules of the base model: change their weights for a while, fill heads, give all back as it was.

A head of a task that a Share model knows goes where PEFT keeps modules that are trained whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

import torch
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn

from sharespace.errors import MismatchError
from sharespace.protocols import PeftModel
from sharespace.subspace.adapter import LayerUpdate
from sharespace.subspace.naming import WRAPPER_PARTS, other_names, unwrapped
from sharespace.subspace.state import Task

PREFIX = "base_model.model."
"""What PEFT puts before the name of every tensor of the base model."""


def wrapped_by(module: nn.Module) -> str | None:
    """The name under which a wrapper (torch.compile, FSDP, DDP ...) holds its module.

    None: the module is no wrapper. DDP and its like hold one child, ``module``, and nothing else;
    the same is true of residual blocks of a few models, whose forward is not their child's, so that
    this is looked at only where a path does not go on otherwise.
    """
    # TorchScript's has no other way than this to be read as a dictionary.
    children = dict(module._modules.items())
    for name in children:
        if name in WRAPPER_PARTS:
            return name
    return "module" if list(children) == ["module"] and not module._parameters else None


def bare(model: nn.Module) -> nn.Module:
    """The model without the wrappers around it as a whole."""
    name = wrapped_by(model)
    while name is not None and isinstance(inner := getattr(model, name), nn.Module):
        model = inner
        name = wrapped_by(model)
    return model


def way_to(model: nn.Module, path: str) -> list[tuple[nn.Module, str]]:
    """Steps to the module of that path, as the bare model has it: parent, and name of the child.

    Steps into wrappers come in between, and at the end, where the module itself is wrapped. Where
    the path is that of another class of the model, or of another release of transformers, they lead
    to the module that is meant, if one alone may be.

    Raises:
        AttributeError: there is no such module.
    """
    try:
        return _way_by_name(model, path)
    except AttributeError:
        ways = [*_ways_by_other_names(model, path)]
        if len({id(parent._modules[child]) for parent, child in (way[-1] for way in ways)}) != 1:
            raise
        return ways[0]


def _ways_by_other_names(model: nn.Module, path: str) -> Iterator[list[tuple[nn.Module, str]]]:
    class_word = getattr(bare(model), "base_model_prefix", "")
    for name in other_names(path, class_word if isinstance(class_word, str) else ""):
        with suppress(AttributeError):
            if way := _way_by_name(model, name):
                yield way


def _way_by_name(model: nn.Module, path: str) -> list[tuple[nn.Module, str]]:
    steps: list[tuple[nn.Module, str]] = []
    for part in filter(None, path.split(".")):
        while part not in model._modules and (wrapper := wrapped_by(model)) is not None:
            steps.append((model, wrapper))
            model = model.get_submodule(wrapper)
        steps.append((model, part))
        model = model.get_submodule(part)
    while (wrapper := wrapped_by(model)) in WRAPPER_PARTS:
        steps.append((model, wrapper))
        model = model.get_submodule(wrapper)
    return steps


def bare_names(model: nn.Module) -> dict[str, nn.Module]:
    """The model's modules by the paths that the bare model has; of a wrapped one the inner one."""
    return {unwrapped(path): module for path, module in model.named_modules()}


def find_module(model: nn.Module, path: str) -> nn.Module:
    """The module of a path as the bare model has it, whatever wraps the model or parts of it.

    Raises:
        MismatchError: there is none.
    """
    try:
        steps = way_to(model, path)
    except AttributeError as error:
        raise MismatchError(
            f"module {path!r}", "not in this model", "Use the base model the adapters belong to"
        ) from error
    return steps[-1][0].get_submodule(steps[-1][1]) if steps else model


def head_tensors(task: Task) -> dict[str, Tensor]:
    """What a task carries besides its coefficients, by the name in the base model."""
    return {key.removeprefix(PREFIX): task.kept[key] for key in task.kept}


def head_modules(model: nn.Module, task: Task) -> list[str]:
    """Modules of the base model that hold the task's heads.

    Raises:
        MismatchError: the task carries something that is no whole module of this model.
    """
    modules = bare_names(model)
    saved = task.config.get("modules_to_save") or []
    named = [m for m in modules for s in saved if m == s or m.endswith(f".{s}")]  # type: ignore[attr-defined]
    heads: dict[str, None] = {}
    for key in head_tensors(task):
        inside = [m for m in named if key.startswith(f"{m}.")] or [_head_of(key, task)]
        if inside[0] not in modules or not _has(modules[inside[0]], key[len(inside[0]) + 1 :]):
            raise MismatchError(
                f"task {task.name!r}",
                f"carries {key!r}, which is no part of a module of this model trained whole",
                "Load the base model with the task's head, or export the task as plain LoRA",
            )
        heads[min(inside, key=len)] = None
    return list(heads)


def _head_of(key: str, task: Task) -> str:
    """The module that a tensor's head is: the outermost, or its own where that would be the whole
    model, as with embeddings that were resized for added tokens."""
    outermost = key.partition(".")[0]
    holds_all = any(module.startswith(f"{outermost}.") for module in task.coefficients)
    return key.rpartition(".")[0] if holds_all else outermost


def _has(module: nn.Module, key: str) -> bool:
    return key in _entries(module)


def _entries(module: nn.Module) -> Mapping[str, Tensor]:
    inner = module.original_module if isinstance(module, ModulesToSaveWrapper) else module
    entries: Mapping[str, Tensor] = inner.state_dict()
    return entries


@torch.no_grad()
def fill_heads(model: nn.Module, adapter: str, task: Task) -> None:
    """Copy the task's heads into the adapter's own copies of those modules.

    Raises:
        MismatchError: a head has another shape in this model.
    """
    tensors = head_tensors(task)
    for name, module in model.named_modules():
        if not isinstance(module, ModulesToSaveWrapper) or adapter not in module.modules_to_save:
            continue
        for key, target in module.modules_to_save[adapter].state_dict().items():
            value = tensors.get(f"{unwrapped(name).removeprefix(PREFIX)}.{key}")
            if value is None or target.is_meta:
                continue
            if value.shape != target.shape:
                raise MismatchError(
                    f"head {name!r} of task {task.name!r}",
                    f"{key} is {tuple(value.shape)}, but in this model {tuple(target.shape)}",
                    "Load the base model with the task's number of labels",
                )
            target.copy_(value)


def copy_heads(model: nn.Module, source: str, adapter: str) -> None:
    """Give an adapter the values of another one's own copies of modules that are trained whole."""
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper) and source in module.modules_to_save:
            values = module.modules_to_save[source].state_dict()
            module.modules_to_save[adapter].load_state_dict(values)


def refuse_other_bases(
    layer: nn.Module, state_dict: Mapping[str, Tensor], prefix: str, *_: object
) -> None:
    """Hook before a layer's tensors are loaded: the bases in a checkpoint must be the layer's own.

    A checkpoint that did not go through PEFT (FSDP's FULL_STATE_DICT, ``model.state_dict()``) has
    bases and no id: it would put others in the place of those that the configuration names.

    Raises:
        MismatchError: they are others.
    """
    for name in ("left_basis", "right_basis"):
        own, met = layer.get_buffer(name), state_dict.get(prefix + name)
        # NaN is the room for bases that an adapter brings along.
        if met is None or met.shape != own.shape or own.is_meta or met.is_meta or not own.numel():
            continue
        own, met = own.detach().float().cpu(), met.detach().float().cpu()
        # Either may have been rounded to 16 bits.
        if not own.isnan().any() and (own - met).abs().max() > 2**-7 * own.abs().max():
            raise MismatchError(
                f"module {unwrapped(prefix.rstrip('.'))!r}",
                "the checkpoint has other bases than the model: it belongs to another version of "
                "the Share model",
                "Make the model with ShareConfig(..., share_version=N), the version it was trained "
                "in",
            )


def is_transposed(module: nn.Module) -> bool:
    """True for Conv1D of transformers (GPT-2), whose weight is d x n.

    Args:
        module: any module of a base model.
    """
    return type(module).__name__ == "Conv1D"


def device_of(module: nn.Module) -> torch.device | None:
    """The device that a module computes on; None: it has no weights, or they are nowhere (meta).

    accelerate leaves "meta" in the place of weights that it offloads to the CPU or to disk, and
    loads them for each pass.

    Args:
        module: of a base model.
    """
    parameter = next(module.parameters(), None)
    if parameter is not None and not parameter.is_meta:
        return parameter.device
    hook = getattr(module, "_hf_hook", None)
    devices = [getattr(one, "execution_device", None) for one in getattr(hook, "hooks", [hook])]
    return next((torch.device(device) for device in devices if device is not None), None)


def adapted_module(model: nn.Module, name: str, sides: tuple[int, int]) -> nn.Module:
    """The module of that name, whose weight is n x d (Conv1D: d x n; a convolution: flattened).

    Raises:
        MismatchError: the model has no such module, or it has another shape.
    """
    module = find_module(model, name)
    weight = getattr(module, "weight", None)
    flat = weight.flatten(1) if isinstance(weight, Tensor) and weight.ndim > 1 else None
    met = tuple(flat.shape) if flat is not None else ()
    met = met[::-1] if is_transposed(module) else met
    if met != sides:
        raise MismatchError(
            f"module {name!r}",
            f"is {type(module).__name__} of {met}, but the update is {sides[0]}x{sides[1]}",
            "Use the base model the adapters belong to",
        )
    return module


@contextmanager
def applied(
    model: nn.Module,
    updates: Mapping[str, LayerUpdate],
    tensors: Mapping[str, Tensor] | None = None,
) -> Iterator[nn.Module]:
    """The model with W0 + dW for the time of the block; afterwards it is as before, bit for bit.

    Args:
        model: its weights are changed in place.
        updates: module -> update, up n x r and down r x d.
        tensors: parameter name -> value that takes its place, such as a task's head.

    Raises:
        MismatchError: an update does not fit the model, or weights are offloaded; nothing is
            changed then.
    """
    changed: dict[str, Tensor] = dict(tensors or {})
    for name, update in updates.items():
        module = adapted_module(model, name, (update.up.shape[0], update.down.shape[1]))
        delta = update.scaling * (update.up.double() @ update.down.double())
        weight = _parameter(model, f"{name}.weight").detach().double()
        turned = delta.mT if is_transposed(module) else delta
        changed[f"{name}.weight"] = weight + turned.reshape(weight.shape)
    parameters = {name: _parameter(model, name) for name in changed}
    before = {name: p.detach().clone() for name, p in parameters.items()}
    try:
        _copy(changed, parameters)
        yield model
    finally:
        _copy(before, parameters)


def _parameter(model: nn.Module, path: str) -> nn.Parameter:
    """A parameter by the path that the bare model has.

    Raises:
        MismatchError: it has no numbers here.
    """
    owner, _, name = path.rpartition(".")
    parameter = find_module(model, owner).get_parameter(name)
    if parameter.is_meta:
        raise MismatchError(
            f"parameter {path!r}",
            "its numbers are offloaded or not loaded yet, so that they cannot be changed",
            "Load the model without offloading, or run the task with MixedTasks",
        )
    return parameter


@torch.no_grad()
def _copy(values: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter]) -> None:
    for name, value in values.items():
        parameters[name].copy_(value)


def release(model: PeftModel) -> nn.Module:
    """The base model of a ``PeftModel`` without adapters, its own heads in place again.

    Args:
        model: made by ``get_peft_model``, ``prepare``, ``adapt``, ``finetune`` or ``load_task``;
            it cannot be used afterwards.

    Returns:
        The object that PEFT's layers were put into.
    """
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            # PEFT's ``unload`` alone leaves the active adapter's trained head in the model.
            module.set_adapter([])
    return model.unload()
