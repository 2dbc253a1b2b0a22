"""Step 3: merge newcomers into a Share model, exactly in core space, without the old adapters.

Up to the cap the bases grow by what the newcomers need and no old task changes by a bit. At the cap
the joint problem is solved again on the cores alone, with the weights that the tasks entered with,
and *every* task is re-expressed in the new bases (docs/method.md, "Exact merge in core space").

The union of two Share models of one base goes the same way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from sharespace.errors import OptionError
from sharespace.linalg.dimension import Dimension
from sharespace.linalg.frames import framed_coefficients
from sharespace.linalg.precision import common_dtype, full_float32, usable_device
from sharespace.subspace.adapter import (
    Adapter,
    BaseModel,
    ModuleShape,
    common_base,
    common_shapes,
    samples_of,
    stating_base,
)
from sharespace.subspace.base_weights import joined_samples
from sharespace.subspace.build import (
    MergeJob,
    Progress,
    build_layers,
    check_newcomers,
    collect_results,
    make_layer,
    merge_one_layer,
    new_task,
)
from sharespace.subspace.build_layer import Build, LayerResult
from sharespace.subspace.executor import LOCAL, Executor
from sharespace.subspace.layer import LayerSubspace
from sharespace.subspace.merge_layer import MergeSide, merge_layer
from sharespace.subspace.naming import common_names, renaming
from sharespace.subspace.state import (
    BuildSettings,
    Ledger,
    ShareModel,
    Task,
    as_adapter,
    check_free_names,
    refuse_overflow,
)


@full_float32()
def merge(
    model: ShareModel,
    adapters: Sequence[Adapter],
    *,
    cap: int | None = None,
    base: BaseModel | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    executor: Executor = LOCAL,
    memory: int | None = None,
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
        executor: where the layers are computed.
        memory: bytes that one layer of all newcomers may take; see ``initialise``.

    Raises:
        MismatchError: an adapter belongs to another base model.
        TaskExistsError: a name is taken.
        OptionError: no adapter, a name that no new task may have, or a cap together with a byte
            budget.
        CorruptAdapterError: a factor or a head holds NaN or infinity.
        UnsupportedAdapterError: an update is too small to compute with.
    """
    check_newcomers(adapters, model.tasks)
    agreed = base or common_base(adapters, model.base)
    adapters = [stating_base(a, agreed, stated=base is not None) for a in adapters]
    adapters = common_names(adapters, model, stated=base is not None)
    model = with_cap(replace(model, base=agreed), cap)
    common_shapes(adapters, model.shapes)
    model = replace(model, base_samples=joined_samples(model.base_samples, samples_of(adapters)))
    if model.settings.budget is not None:
        return merge_under_budget(model, adapters, "merge", {}, device, progress, executor, memory)
    build = Build(
        settings=model.settings,
        dimension=_rule_for_new_layers(model.settings),
        dtype=model.dtype,
        device=usable_device(device),
        memory=memory,
        entry_norms={a.name: a.entry_norms for a in adapters if a.entry_norms},
    )
    modules = list(common_shapes(adapters))
    jobs = (MergeJob(m, model, [a for a in adapters if m in a.shapes], build) for m in modules)
    results = collect_results(modules, executor.map(merge_job, jobs), progress)
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
    known = [_re_expressed(task, results, event, model.dtype) for task in model.tasks.values()]
    new = [
        new_task(a, results, event, model.dtype, t.ledger if t else None, exact=t is not None)
        for a, t in newcomers
    ]
    return model.with_layers(layers).with_tasks([*known, *new])


def _re_expressed(
    task: Task, results: Mapping[str, LayerResult], event: str, dtype: torch.dtype
) -> Task:
    """A known task with its new coefficients; the ledger only grows when something was lost."""
    own = {m: r for m, r in results.items() if task.name in r.coefficients}
    if not own:
        return task
    lost = {m: r.lost[task.name] for m, r in own.items()}
    refuse_overflow(task.name, lost, dtype)
    ledger = task.ledger.with_event(event, lost) if any(lost.values()) else task.ledger
    moved = {m: r.coefficients[task.name] for m, r in own.items()}
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


def _rule_for_new_layers(settings: BuildSettings) -> Dimension:
    """Of a method that builds new layers: at most the cap, or all directions."""
    return Dimension(k=settings.cap) if settings.cap else Dimension(variance=1.0)


def merge_job(job: MergeJob) -> LayerResult:
    """One layer with the newcomers in it."""
    model, module, members, build = job.model, job.module, job.members, job.build
    if module not in model.layers:
        shape = members[0].shapes[module]
        # An empty layer grows by weighed directions of updates, which such a method does not use.
        if build.method.builds_new_layers:
            return make_layer(module, shape, members, build)
        model = replace(model, layers={module: _empty_layer(model, shape)})
    return merge_one_layer(model, module, members, build)


def _empty_layer(model: ShareModel, shape: ModuleShape) -> LayerSubspace:
    """A layer that the model does not have yet: no directions, the model's cap."""
    cap = model.settings.cap
    return LayerSubspace.empty(shape, model.dtype, None if cap is None else (cap, cap))


def merge_under_budget(
    model: ShareModel,
    adapters: Sequence[Adapter],
    event: str,
    ledgers: Mapping[str, Ledger],
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    executor: Executor = LOCAL,
    memory: int | None = None,
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
            **{a.name: a.entry_norms for a in adapters if a.entry_norms},
            **{n: dict(zip(x.modules, x.norms.tolist(), strict=True)) for n, x in ledgers.items()},
        },
        memory=memory,
    )
    layers, tasks = build_layers([*known, *adapters], build, event, ledgers, progress, executor)
    return model.with_layers(layers).with_tasks(tasks)


def union(first: ShareModel, second: ShareModel, *, cap: int | None = None) -> ShareModel:
    """The tasks of both in one model, with the settings and caps of the first.

    Exact while the caps have room; tasks keep their weights, ledgers and all they carry.

    Args:
        cap: a new largest k for every layer; None: the first model's caps.

    Raises:
        TaskExistsError: a task is in both (rename it in one of them first).
        MismatchError: they are of different base models.
        OptionError: a cap together with a byte budget.
    """
    check_free_names(second.tasks, first.tasks)
    base = common_base([as_adapter(second, t) for t in second.tasks.values()], first.base)
    second = with_names_of(second, first)
    newcomers = [(as_adapter(second, t), t) for t in second.tasks.values()]
    adapters = [a for a, _ in newcomers]
    first = replace(first, base=base)
    common_shapes(adapters, first.shapes)
    second_samples = [("the second Share model", second.base_samples)]
    first = replace(first, base_samples=joined_samples(first.base_samples, second_samples))
    first = widened(with_cap(first, cap), common_dtype(first.dtype, second.dtype))
    second = widened(second, first.dtype)
    if first.settings.budget is not None:
        ledgers = {t.name: t.ledger for _, t in newcomers}
        return merge_under_budget(first, adapters, "union", ledgers)
    room = {
        m: _empty_layer(first, layer.shape)
        for m, layer in second.layers.items()
        if m not in first.layers
    }
    first = replace(first, layers={**first.layers, **room})
    results = {m: _merge_module(first, second, m) for m in second.layers}
    return with_results(first, results, newcomers, "union")


def with_names_of(model: ShareModel, other: ShareModel) -> ShareModel:
    """The model with the names that another one of the same base has for its modules.

    Raises:
        MismatchError: nothing tells that they are of one base model, or the names are not certain.
    """
    adapters = [as_adapter(model, task) for task in model.tasks.values()]
    renamed = common_names(adapters, other)
    names = renaming("the other Share model", model.shapes, other.shapes)
    if not names:
        return model
    layers = {names.get(module, module): layer for module, layer in model.layers.items()}
    tasks = [
        replace(
            task,
            coefficients={names.get(m, m): c for m, c in task.coefficients.items()},
            ledger=task.ledger.with_names(names),
            kept=adapter.kept,
            config=adapter.config,
        )
        for task, adapter in zip(model.tasks.values(), renamed, strict=True)
    ]
    samples = {names.get(module, module): rows for module, rows in model.base_samples.items()}
    return replace(model, base_samples=samples).with_layers(layers).with_tasks(tasks)


def widened(model: ShareModel, dtype: torch.dtype) -> ShareModel:
    """The same numbers in a dtype that holds them all exactly."""
    if dtype == model.dtype:
        return model
    layers = {m: layer.cast(dtype) for m, layer in model.layers.items()}
    tasks = [
        replace(t, coefficients={m: c.cast(dtype) for m, c in t.coefficients.items()})
        for t in model.tasks.values()
    ]
    return replace(model, dtype=dtype, layers=layers).with_tasks(tasks)


def _merge_module(first: ShareModel, second: ShareModel, module: str) -> LayerResult:
    """The second model's tasks at one layer; updates stored per task come along as they are."""
    layer = second.layers[module]
    tasks = {n: t for n, t in second.tasks.items() if module in t.coefficients}
    values = {n: t.coefficients[module] for n, t in tasks.items()}
    norms = {n: t.ledger.norm(module) for n, t in tasks.items()}
    shared = {n: c for n, c in values.items() if c.is_shared}
    per_task = {n: c for n, c in values.items() if not c.is_shared}
    lost = dict.fromkeys(per_task, 0.0)
    if not shared:
        return LayerResult(first.layers[module], per_task, lost, norms)
    factors = [c.factors() for c in shared.values()]
    side = MergeSide(
        tuple(shared),
        framed_coefficients(layer.left_basis, layer.right_basis, factors),
        torch.tensor([norms[n] for n in shared], dtype=torch.float64),
    )
    result = merge_layer(first, module, side)
    return LayerResult(
        result.layer, {**result.coefficients, **per_task}, {**result.lost, **lost}, norms
    )
