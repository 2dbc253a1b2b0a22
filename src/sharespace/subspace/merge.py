"""Step 3: merge newcomers into a Share model, exactly in core space, without the old adapters.

Up to the cap the bases grow by what the newcomers need and no old task changes by a bit. At the cap
the joint problem is solved again on the cores alone, with the weights that the tasks entered with,
and *every* task is re-expressed in the new bases (method.md, "Exact merge in core space").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sharespace.errors import OptionError
from sharespace.linalg.allocate import Dimension
from sharespace.linalg.canonical import weights
from sharespace.linalg.core_merge import (
    Framed,
    framed_coefficients,
    framed_updates,
    new_directions,
    together,
)
from sharespace.linalg.cores import seen_by
from sharespace.linalg.factor_svd import factor_bases
from sharespace.linalg.joint import Bases, Problem, joint
from sharespace.linalg.precision import compute_dtype, stored_rounding, tolerance, usable_device
from sharespace.linalg.residual import frame_difference
from sharespace.shapes import ModuleShape
from sharespace.subspace.adapter import Adapter, BaseModel
from sharespace.subspace.compatible import common_base, common_shapes
from sharespace.subspace.initialise import Progress, build_layers, new_task
from sharespace.subspace.layers import (
    Build,
    LayerResult,
    build_layer,
    certify,
    read_updates,
    stored_basis,
)
from sharespace.subspace.project import coefficients_of, dense_cores
from sharespace.subspace.reconstruct import as_adapter, factor_pair
from sharespace.subspace.state import (
    Certificate,
    Coefficients,
    Core,
    Factors,
    LayerSubspace,
    Ledger,
    Settings,
    ShareModel,
    Task,
    check_new_names,
)


@dataclass(frozen=True, eq=False)
class Side:
    """One group of tasks (those known, or the newcomers) at one layer."""

    names: tuple[str, ...]
    framed: Framed
    norms: Tensor
    """float64 [tasks]: |dW_i| at entry, whose inverse is the weight."""


def merge(
    model: ShareModel,
    adapters: Sequence[Adapter],
    *,
    cap: int | None = None,
    base: BaseModel | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> ShareModel:
    """The model with the adapters as new tasks.

    Args:
        model: stays as it is.
        adapters: one or many; merging them one by one or at once gives the same tasks as long as
            the cap has room.
        cap: a new largest k for every layer; None: the caps that the layers have.
        base: overrides what the adapters say of their base model.
        device: where to compute.
        progress: called after each module.

    Raises:
        MismatchError: an adapter belongs to another base model.
        TaskExistsError: a name is taken.
        OptionError: no adapter, or a cap together with a byte budget.
        CorruptAdapterError: a factor holds NaN or infinity.
    """
    if not adapters:
        raise OptionError("adapters", "there are none", "Give at least one adapter")
    check_new_names([a.name for a in adapters], model.tasks)
    model = with_cap(replace(model, base=base or common_base(adapters, model.base)), cap)
    common_shapes(adapters, model.shapes)
    if model.settings.budget is not None:
        return merge_under_budget(model, adapters, "merge", {}, device, progress)
    build = Build(
        settings=model.settings,
        dimension=_rule_for_new_layers(model.settings),
        dtype=model.dtype,
        device=usable_device(device),
    )
    modules = list(common_shapes(adapters))
    results: dict[str, LayerResult] = {}
    for done, module in enumerate(modules, 1):
        results[module] = _merge_module(model, module, adapters, build)
        if progress:
            progress(module, done, len(modules))
    return with_results(model, results, [(a, None) for a in adapters], "merge")


def with_results(
    model: ShareModel,
    results: Mapping[str, LayerResult],
    newcomers: Sequence[tuple[Adapter, Task | None]],
    event: str,
) -> ShareModel:
    """The model with the merged layers, every task re-expressed, and the newcomers.

    Args:
        newcomers: each with the task that it was in another Share model, whose ledger goes on.
    """
    layers = {**model.layers, **{m: r.layer for m, r in results.items()}}
    known = [_moved(task, results, event) for task in model.tasks.values()]
    new = [
        new_task(a, results, event, t.ledger if t else None, t is not None) for a, t in newcomers
    ]
    return replace(model, layers=layers).with_tasks([*known, *new])


def _moved(task: Task, results: Mapping[str, LayerResult], event: str) -> Task:
    """A known task with its new coefficients; the ledger only grows when something was lost."""
    mine = {m: r for m, r in results.items() if task.name in r.coefficients}
    if not mine:
        return task
    lost = {m: r.lost[task.name] for m, r in mine.items()}
    ledger = task.ledger.with_event(event, lost) if any(lost.values()) else task.ledger
    moved = {m: r.coefficients[task.name] for m, r in mine.items()}
    return replace(task, coefficients={**task.coefficients, **moved}, ledger=ledger)


def with_cap(model: ShareModel, cap: int | None) -> ShareModel:
    """The model with another largest k for every layer; None leaves the caps as they are.

    Raises:
        OptionError: the cap is below 1, or the model is kept to a byte budget.
    """
    if cap is None:
        return model
    if model.settings.budget is not None or cap < 1:
        why = "the model is kept to a byte budget" if cap >= 1 else "it must be at least 1"
        raise OptionError(f"cap {cap}", why, "Leave the cap out, or choose another")
    layers = {m: replace(layer, cap=(cap, cap)) for m, layer in model.layers.items()}
    return replace(model, settings=replace(model.settings, cap=cap), layers=layers)


def _rule_for_new_layers(settings: Settings) -> Dimension:
    """Method ``share``: a module that no known task adapts starts at the cap, or with all."""
    return Dimension(k=settings.cap) if settings.cap else Dimension(variance=1.0)


def _merge_module(
    model: ShareModel, module: str, adapters: Sequence[Adapter], build: Build
) -> LayerResult:
    members = [a for a in adapters if module in a.shapes]
    if module not in model.layers:
        shape = members[0].shapes[module]
        if build.settings.method == "share":
            return build_layer(module, shape, members, build)
        model = replace(model, layers={module: empty_layer(model, shape)})
    updates = read_updates(members, module, build.device)
    new = Side(tuple(a.name for a in members), framed_updates(updates), updates.norms)
    return merge_layer(model, module, new)


def empty_layer(model: ShareModel, shape: ModuleShape) -> LayerSubspace:
    """A layer that the model does not have yet: no directions, the model's cap."""
    cap = model.settings.cap
    return LayerSubspace(
        shape,
        torch.zeros(shape.out_features, 0, dtype=model.dtype),
        torch.zeros(shape.in_features, 0, dtype=model.dtype),
        cap=None if cap is None else (cap, cap),
    )


def merge_layer(model: ShareModel, module: str, new: Side) -> LayerResult:
    """One layer with newcomers in whatever orthonormal coordinates they come."""
    layer = model.layers[module]
    old, coefficients = _known_side(model, module, new.framed.left.device)
    dtype = layer.left_basis.dtype
    extra = _extra(old, new, stored_rounding(dtype), model.settings.p)
    grown = layer.k[0] + extra[0].shape[1], layer.k[1] + extra[1].shape[1]
    if layer.cap is None or (grown[0] <= layer.cap[0] and grown[1] <= layer.cap[1]):
        return _grow(layer, extra, old, coefficients, new, model.settings)
    return _truncate(layer, old, new, model.settings)


def _extra(old: Side, new: Side, rounding: float, p: int | None = None) -> list[Tensor]:
    """Directions (left, right) that the newcomers need, but for rounding, to keep rank p."""
    frames = new.framed.weighed(weights(new.norms), p)
    bases = (old.framed.left, old.framed.right)
    return [new_directions(b, f, rounding**2) for b, f in zip(bases, frames, strict=True)]


def _known_side(
    model: ShareModel, module: str, device: torch.device
) -> tuple[Side, tuple[Factors | Core, ...]]:
    """The known tasks that live in the layer's subspace (private updates stay as they are)."""
    layer = model.layers[module]
    found = [
        (t.name, c, t.ledger.norm(module))
        for t in model.tasks.values()
        if isinstance(c := t.coefficients.get(module), Factors | Core)
    ]
    pairs = [factor_pair(c) for _, c, _ in found]
    framed = framed_coefficients(
        layer.left_basis.to(device),
        layer.right_basis.to(device),
        [(e.to(device), f.to(device)) for e, f in pairs],
    )
    norms = torch.tensor([norm for _, _, norm in found], dtype=torch.float64, device=device)
    return Side(tuple(n for n, _, _ in found), framed, norms), tuple(c for _, c, _ in found)


def _grow(
    layer: LayerSubspace,
    extra: Sequence[Tensor],
    old: Side,
    coefficients: Sequence[Factors | Core],
    new: Side,
    settings: Settings,
) -> LayerResult:
    """Below the cap: append directions, pad the known tasks with zeros, lose nothing."""
    dtype = layer.left_basis.dtype
    grown = replace(
        layer,
        left_basis=torch.cat([layer.left_basis, stored_basis(extra[0], dtype)], dim=1),
        right_basis=torch.cat([layer.right_basis, stored_basis(extra[1], dtype)], dim=1),
        certificate=_with_tail(layer.certificate, new, settings.p),
    )
    padded = {
        name: pad(value, grown.k) for name, value in zip(old.names, coefficients, strict=True)
    }
    newcomers = _express(new.framed, grown, settings.p)
    lost = _lost(new.framed, grown, newcomers)
    return LayerResult(
        grown,
        {**padded, **dict(zip(new.names, newcomers, strict=True))},
        {**dict.fromkeys(old.names, 0.0), **dict(zip(new.names, lost, strict=True))},
        dict(zip(new.names, new.norms.tolist(), strict=True)),
    )


def _with_tail(known: Certificate | None, new: Side, p: int | None) -> Certificate | None:
    """The certificate after newcomers that lose nothing but what is beyond rank p."""
    if p is None:
        return known
    core = new.framed.core
    energies = core.blocks(core.sigma)[:, p:].square().sum(1)
    tail = float((weights(new.norms).square() * energies).sum())
    if known is None:
        return Certificate(0.0, 0.0, tail) if tail else None
    return replace(known, rank_tail=known.rank_tail + tail)


def pad(value: Factors | Core, k: tuple[int, int]) -> Factors | Core:
    """Coefficients in a basis that only gained directions at its end."""
    if isinstance(value, Core):
        rows, columns = k[0] - value.matrix.shape[0], k[1] - value.matrix.shape[1]
        return Core(torch.nn.functional.pad(value.matrix, (0, columns, 0, rows)))
    left = torch.nn.functional.pad(value.left, (0, 0, 0, k[0] - value.left.shape[0]))
    right = torch.nn.functional.pad(value.right, (0, 0, 0, k[1] - value.right.shape[0]))
    return Factors(left, right)


def _truncate(layer: LayerSubspace, old: Side, new: Side, settings: Settings) -> LayerResult:
    """At the cap: solve the problem on the cores, rotate the bases once, re-express everybody."""
    rounding = tolerance(compute_dtype(layer.left_basis.dtype))
    left, right = (
        torch.cat([basis, more], dim=1)
        for basis, more in zip(
            (old.framed.left, old.framed.right), _extra(old, new, rounding), strict=True
        )
    )
    everyone = together(old.framed, new.framed, left, right)
    norms = torch.cat([old.norms, new.norms])
    problem = Problem(everyone.core, weights(norms), settings.p, settings.seed)
    bases = _bases_of_cores(problem, layer.cap or layer.k, settings)
    moved = replace(
        layer,
        left_basis=stored_basis(left @ bases.left, layer.left_basis.dtype),
        right_basis=stored_basis(right @ bases.right, layer.right_basis.dtype),
        certificate=certify(problem, bases),
    )
    coefficients = _express(everyone, moved, settings.p)
    known = len(old.names)
    # In their own frames: what of the newcomers was left out as rounding is counted, too.
    lost = [
        *_lost(old.framed, moved, coefficients[:known]),
        *_lost(new.framed, moved, coefficients[known:]),
    ]
    names = (*old.names, *new.names)
    return LayerResult(
        moved,
        dict(zip(names, coefficients, strict=True)),
        dict(zip(names, lost, strict=True)),
        dict(zip(new.names, new.norms.tolist(), strict=True)),
    )


def _bases_of_cores(problem: Problem, k: tuple[int, int], settings: Settings) -> Bases:
    if settings.method == "joint":
        return joint(problem, k)
    updates = problem.updates
    root = updates.sigma.sqrt()
    pair = (updates.left * root, updates.right * root)
    return factor_bases([pair], k, centred=settings.centred, seed=settings.seed)


def _express(framed: Framed, layer: LayerSubspace, p: int | None) -> tuple[Coefficients, ...]:
    """Coefficients of tasks in a layer's stored bases."""
    left = framed.left.mT @ layer.left_basis.to(framed.left)
    right = framed.right.mT @ layer.right_basis.to(framed.right)
    core = framed.core
    return coefficients_of(seen_by(core, left), core, seen_by(core.flipped, right), layer, p)


def _lost(framed: Framed, layer: LayerSubspace, found: Sequence[Coefficients]) -> list[float]:
    """The norm of what each task loses when it is stored so."""
    before = (framed.left, framed.right, framed.cores())
    device = framed.left.device
    stored = (layer.left_basis, layer.right_basis, dense_cores(found, layer))
    after = (stored[0].to(device), stored[1].to(device), stored[2].to(device))
    return [float(x) for x in frame_difference(before, after)]


def merge_under_budget(
    model: ShareModel,
    adapters: Sequence[Adapter],
    event: str,
    ledgers: Mapping[str, Ledger],
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> ShareModel:
    """Split the model's byte budget again over all tasks, the known ones as they are stored now.

    Args:
        event: name of the ledgers' event.
        ledgers: of those newcomers that were in another Share model.
    """
    known = [as_adapter(model, t) for t in model.tasks.values()]
    ledgers = {**{t.name: t.ledger for t in model.tasks.values()}, **ledgers}
    build = Build(
        settings=model.settings,
        dimension=Dimension(budget=model.settings.budget),
        dtype=model.dtype,
        device=usable_device(device),
        entry_norms={
            n: dict(zip(x.modules, x.norms.tolist(), strict=True)) for n, x in ledgers.items()
        },
    )
    layers, tasks = build_layers([*known, *adapters], build, event, ledgers, progress)
    return replace(model, layers=layers).with_tasks(tasks)
