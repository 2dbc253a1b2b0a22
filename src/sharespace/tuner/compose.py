"""Adapters of one model put together, scaled and exchanged, as PEFT has it for LoRA."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from sharespace.errors import MismatchError, OptionError, TaskNotFoundError
from sharespace.tuner.bases import locate_share
from sharespace.tuner.collect import layers_of
from sharespace.tuner.modules import bare, fill_heads, head_modules
from sharespace.tuner.start import StartValues, known_task
from sharespace.tuner.subspace_layer import SubspaceLayer

if TYPE_CHECKING:
    from sharespace.protocols import PeftModel
    from sharespace.tuner.config import ShareConfig

SUMS = ("linear", "cat", "svd")
"""PEFT's names of combinations that are, or are meant as, the sum of the updates."""


def summed_values(layer: SubspaceLayer, weights: Mapping[str, float]) -> StartValues:
    """The exact weighed sum of several adapters' updates to one module, as values of one adapter.

    Args:
        layer: the module; adapters that it lacks count as zero.
        weights: adapter -> weight, on top of its scale.

    Returns:
        Factors side by side: pseudo-ranks and temporary directions add up.
    """
    k_left, k_right = layer.left_basis.shape[1], layer.right_basis.shape[1]
    lefts, rights = [], []
    for name, weight in weights.items():
        if not layer.has(name):
            continue
        values, (left, right) = layer.values(name), layer.coefficients(name)
        sides = values.left_temporary, values.right_temporary
        if layer.starts_from_known(name):
            # Its whole update, with what it starts from, as temporary directions: exact as well.
            sides = layer.factors(name)
            one = torch.eye(sides[0].shape[1]).to(sides[0])
            left, right = (torch.cat([one.new_zeros(k, len(one)), one]) for k in (k_left, k_right))
        lefts.append((weight * layer.scaling[name] * left.detach(), sides[0]))
        rights.append((right.detach(), sides[1]))
    return StartValues(
        _stacked([coefficients for coefficients, _ in lefts], k_left),
        _stacked([coefficients for coefficients, _ in rights], k_right),
        torch.cat([directions.detach() for _, directions in lefts], dim=1),
        torch.cat([directions.detach() for _, directions in rights], dim=1),
    )


def _stacked(coefficients: Sequence[Tensor], k: int) -> Tensor:
    """Rows of the bases side by side; below them each part's own rows of temporary directions."""
    shared = torch.cat([matrix[:k] for matrix in coefficients], dim=1)
    own = torch.block_diag(*[m[k:] for m in coefficients])  # type: ignore[no-untyped-call]
    return torch.cat([shared, own])


def sum_config(
    configs: Mapping[str, ShareConfig],
    weights: Mapping[str, float],
    given: tuple[int, int],
    name: str,
    kind: str,
) -> ShareConfig:
    """The configuration of an adapter that is the weighed sum of others; it carries its bases.

    Args:
        configs: of all adapters in the model.
        weights: adapter -> weight.
        given: numbers of adapters and of weights that were named.
        name: of the new adapter.
        kind: PEFT's ``combination_type``.

    Raises:
        OptionError: see ``ShareTuner.add_weighted_adapter``.
    """
    known = [configs[part] for part in weights if part in configs]
    problems = (
        (name in configs, f"there is an adapter {name!r}"),
        (not weights or given != (len(weights), len(weights)), "not one weight for each adapter"),
        (len(known) < len(weights), "not all of these adapters are in the model"),
        (kind not in SUMS, f"{kind!r} is none of {', '.join(SUMS)}"),
        (
            any(config.modules_to_save for config in known),
            "adapters have heads of their own, which cannot be added up",
        ),
    )
    for wrong, why in problems:
        if wrong:
            remedy = "Merge the tasks, and use Share.combine with its methods and heads"
            raise OptionError(f"add_weighted_adapter {name!r}", why, remedy)
    config = replace(
        known[0],
        task=None,
        form="factors",
        start="zero",
        known=None,
        started_from=None,
        save_basis=True,
        layout=None,
    )
    config.inference_mode = True
    return config


@contextmanager
def rescale_adapter_scale(model: nn.Module, multiplier: float) -> Iterator[None]:
    """Multiply the scale of all adapters inside the block; afterwards they are as before.

    As ``peft.helpers.rescale_adapter_scale``, which takes LoRA only.

    Args:
        model: a ``PeftModel`` with ``ShareConfig`` adapters, or the model in it.
        multiplier: factor of every adapter's update.

    Raises:
        OptionError: it is no number, or the model has no such adapters.
    """
    if isinstance(multiplier, bool) or not isinstance(multiplier, int | float):
        raise OptionError(f"multiplier={multiplier!r}", "is not a number", "Give one such as 0.5")
    layers = [module for module in model.modules() if isinstance(module, SubspaceLayer)]
    if not layers:
        raise OptionError("model", "it has no ShareConfig adapters", "Give the PeftModel")
    before = [dict(layer.scaling) for layer in layers]
    try:
        for layer in layers:
            layer.scaling = {name: multiplier * s for name, s in layer.scaling.items()}
        yield
    finally:
        for layer, scaling in zip(layers, before, strict=True):
            layer.scaling = scaling


@torch.no_grad()
def hotswap_task(model: nn.Module, task: str, *, adapter: str = "default") -> None:
    """Put another known task in the place of an adapter's, in the parameters that are there.

    Parameters stay the same objects of the same sizes, so that compiled code goes on. As PEFT's
    ``hotswap_adapter``, which takes LoRA only.

    Args:
        model: a ``PeftModel`` made with ``ShareConfig``; all of it is checked before it changes.
        task: a task of the Share model that the adapter's configuration names.
        adapter: PEFT's name for the adapter.

    Raises:
        TaskNotFoundError: the Share model has no such task.
        OptionError: the configuration names no Share model.
        MismatchError: the task needs parameters of other sizes, adapts modules that the adapter
            does not, or has other heads.
    """
    peft_model = cast("PeftModel", bare(model))
    config = cast("ShareConfig", peft_model.peft_config[adapter])
    if config.share is None:
        raise OptionError("hotswap_task", "the adapter names no Share model", "Set its share")
    share = locate_share(config.share, config.share_version, config.basis_id).model
    if task not in share.tasks:
        raise TaskNotFoundError(f"task {task!r}", "not in this Share model", "See its tasks")
    known, start = share.tasks[task], f"{config.component}." if config.component else ""
    layers = {start + name: layer for name, layer in layers_of(peft_model, adapter).items()}
    whole = cast(nn.Module, peft_model.get_base_model())
    wanted, present = set(head_modules(whole, known)), set(config.modules_to_save or ())
    missing = sorted(set(known.coefficients) - set(layers))
    if missing or wanted != present:
        why = f"it adapts {missing[0]!r}, which the adapter does not" if missing else "other heads"
        raise MismatchError(f"task {task!r}", why, "Load it as an adapter of its own")
    changes: list[tuple[Tensor, Tensor]] = []
    for name, layer in layers.items():
        value = known.coefficients.get(name)
        old = layer.values(adapter)
        new = old if value is None else known_task(share.layers[name], value, config.p, config.seed)
        changes += _changes(task, name, old, new, empty=value is None)
    for target, values in changes:
        target.copy_(values)
    for layer in layers.values():
        layer.scaling[adapter] = 1.0
    fill_heads(whole, adapter, known)
    config.task = task


def _changes(
    task: str, module: str, old: StartValues, new: StartValues, *, empty: bool
) -> list[tuple[Tensor, Tensor]]:
    """Parameters of one module and what they are to hold.

    Raises:
        MismatchError: sizes differ, or the adapter starts from known tasks.
    """
    if empty:
        # The task leaves the module as it is: an update of zero.
        zeroed = old.left_coefficients if old.core is None else old.core
        return [(zeroed, torch.zeros_like(zeroed))]
    changes = []
    for field in fields(StartValues):
        target, values = getattr(old, field.name), getattr(new, field.name)
        shapes = [getattr(x, "shape", None) for x in (target, values)]
        if shapes[0] != shapes[1] or (field.name == "known" and target is not None):
            raise MismatchError(
                f"task {task!r}, module {module!r}",
                f"{field.name} of {_size(values)} where the adapter has {_size(target)}",
                "Make the adapter with a p that holds both tasks: ShareConfig(..., p=N)",
            )
        if isinstance(target, Tensor):
            changes.append((target, values))
    return changes


def _size(values: object) -> str:
    return str(tuple(values.shape)) if isinstance(values, Tensor) else "nothing"
