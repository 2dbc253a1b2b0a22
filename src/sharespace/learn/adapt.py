"""Learn one task inside a Share model's subspace: attach, train with any loop, collect.

The result is an ordinary Adapter whose update holds the temporary directions too, so that
``sharespace.subspace.merge.merge`` absorbs them (method.md, steps 2 and 3). No earlier task's data,
coefficients or head is read or changed, but for the mean core if the start asks for it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from sharespace.errors import MismatchError, OptionError
from sharespace.nn import SubspaceLinear, linear_module, replace_modules
from sharespace.subspace.adapter import Adapter, BaseModel, Provenance
from sharespace.subspace.project import dense_cores
from sharespace.subspace.state import Private, ShareModel

Start = Literal["zero", "mean"]

PREFIX = "base_model.model."
"""What PEFT puts before the name of every tensor of the base model."""


@dataclass(frozen=True, eq=False)
class Attached:
    """A model made ready for one new task; give it back with ``detach``."""

    model: nn.Module
    layers: Mapping[str, SubspaceLinear]
    """Adapted module -> what stands in its place."""
    heads: Mapping[str, nn.Module]
    """Module that is trained whole -> the copy that stands in its place."""
    originals: Mapping[str, nn.Module]
    """What stood there before."""
    was_trainable: Mapping[str, bool]
    """Parameter of the model as it was -> its requires_grad."""
    was_training: bool
    base: BaseModel

    @property
    def trainable(self) -> int:
        """Numbers that training changes: coefficients, temporary directions and heads."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)


def attach(
    model: nn.Module,
    share: ShareModel,
    *,
    p: int,
    phi: int,
    seed: int = 0,
    start: Start = "zero",
    heads: Sequence[str] = ("classifier",),
) -> Attached:
    """Put a trainable layer over every module of the subspace; freeze everything else.

    Args:
        model: the base model, changed in place until ``detach``; its heads are copied.
        share: its bases are used as they are; it does not change.
        p: pseudo-rank of the new task.
        phi: temporary directions a side; 0 trains coefficients only.
        seed: of the random start.
        start: ``"zero"`` (dW = 0) or ``"mean"`` (the mean of the known tasks' cores).
        heads: modules that are trained whole.

    Raises:
        OptionError: p, phi or start is out of range.
        MismatchError: the model is not the Share model's base; it is unchanged then.
    """
    _check_options(p, phi, start)
    _check_heads(model, share, heads)
    layers = _layers(model, share, p, phi, seed, start)
    flags = {name: q.requires_grad for name, q in model.named_parameters()}
    model.requires_grad_(False)
    copies = {n: copy.deepcopy(model.get_submodule(n)).requires_grad_(True) for n in heads}
    originals = replace_modules(model, {**layers, **copies})
    return Attached(model, layers, copies, originals, flags, model.training, share.base)


def detach(handle: Attached) -> nn.Module:
    """The model as it was before ``attach``, bit for bit; what was trained stays in the handle."""
    replace_modules(handle.model, handle.originals)
    for name, parameter in handle.model.named_parameters():
        parameter.requires_grad_(handle.was_trainable[name])
    return handle.model.train(handle.was_training)


def collect(handle: Attached, name: str, config: Mapping[str, object] | None = None) -> Adapter:
    """The task as trained so far, temporary directions and heads included.

    Args:
        handle: attached or detached.
        name: of the task.
        config: more fields of PEFT's ``LoraConfig``, for example ``task_type``.
    """
    updates = {module: layer.update() for module, layer in handle.layers.items()}
    rank = max((u.up.shape[1] for u in updates.values()), default=0)
    fields: dict[str, object] = {
        "peft_type": "LORA",
        "task_type": None,
        "bias": "none",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": sorted(updates),
        "modules_to_save": list(handle.heads) or None,
    }
    return Adapter.from_updates(
        name,
        updates,
        base=handle.base,
        kept=_head_tensors(handle.heads),
        config={**fields, **(config or {})},
        provenance=Provenance("learned"),
    )


def _check_options(p: int, phi: int, start: Start) -> None:
    if p < 1 or phi < 0:
        raise OptionError(f"p={p}, phi={phi}", "p is at least 1 and phi at least 0", "Change them")
    if start not in ("zero", "mean"):
        raise OptionError(f"start={start!r}", "not known", "Choose 'zero' or 'mean'")


def _check_heads(model: nn.Module, share: ShareModel, heads: Sequence[str]) -> None:
    known = {name for name, _ in model.named_modules()}
    for name in heads:
        if name not in known:
            raise MismatchError(f"head {name!r}", "not in this model", "Name its module in heads")
        if name in share.layers:
            raise OptionError(f"head {name!r}", "is in the subspace", "Leave it out of heads")


def _layers(
    model: nn.Module, share: ShareModel, p: int, phi: int, seed: int, start: Start
) -> dict[str, SubspaceLinear]:
    """A layer for every module of the subspace; an empty subspace without phi has nothing to train.

    Raises:
        MismatchError: a module is missing or has another shape.
    """
    generator = torch.Generator().manual_seed(seed)
    return {
        name: SubspaceLinear(
            linear_module(model, name, layer.shape),
            layer.left_basis,
            layer.right_basis,
            p=p,
            phi=phi,
            generator=generator,
            core=_mean_core(share, name) if start == "mean" else None,
        )
        for name, layer in share.layers.items()
        if min(layer.k) + phi > 0
    }


def _mean_core(share: ShareModel, module: str) -> Tensor | None:
    """Mean over the tasks that have the module in the subspace, float64; None without any."""
    found = [t.coefficients[module] for t in share.tasks.values() if module in t.coefficients]
    cores = [c for c in found if not isinstance(c, Private)]
    return dense_cores(cores, share.layers[module]).mean(dim=0) if cores else None


def _head_tensors(heads: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Copies of the heads' tensors under the keys that PEFT gives them."""
    return {
        f"{PREFIX}{name}.{key}": tensor.detach().cpu().clone().contiguous()
        for name, head in heads.items()
        for key, tensor in head.state_dict().items()
    }
