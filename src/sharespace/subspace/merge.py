"""Step 3: merge newcomers into a Share model, exactly in core space, without the old adapters.

Up to the cap the bases grow by what the newcomers need and no old task changes by a bit. At the cap
the joint problem is solved again on the cores alone, with the weights that the tasks entered with,
and *every* task is re-expressed in the new bases (method.md, "Exact merge in core space").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from sharespace.errors import OptionError
from sharespace.executor import LOCAL, Executor
from sharespace.linalg.allocate import Dimension
from sharespace.linalg.precision import full_float32, usable_device
from sharespace.shapes import ModuleShape
from sharespace.subspace.adapter import Adapter, BaseModel
from sharespace.subspace.compatible import common_base, common_shapes
from sharespace.subspace.initialise import Progress, build_layers, gathered, new_task
from sharespace.subspace.jobs import MergeJob
from sharespace.subspace.layers import Build, LayerResult
from sharespace.subspace.one_layer import make_layer, merge_one_layer
from sharespace.subspace.reconstruct import as_adapter
from sharespace.subspace.state import (
    LayerSubspace,
    Ledger,
    Settings,
    ShareModel,
    Task,
    check_new_names,
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
        OptionError: no adapter, or a cap together with a byte budget.
        CorruptAdapterError: a factor holds NaN or infinity.
    """
    if not adapters:
        raise OptionError("adapters", "there are none", "Give at least one adapter")
    check_new_names([a.name for a in adapters], model.tasks)
    model = with_cap(replace(model, base=base or common_base(adapters, model.base)), cap)
    common_shapes(adapters, model.shapes)
    if model.settings.budget is not None:
        return merge_under_budget(model, adapters, "merge", {}, device, progress, executor, memory)
    build = Build(
        settings=model.settings,
        dimension=_rule_for_new_layers(model.settings),
        dtype=model.dtype,
        device=usable_device(device),
        memory=memory,
    )
    modules = list(common_shapes(adapters))
    jobs = (MergeJob(m, model, [a for a in adapters if m in a.shapes], build) for m in modules)
    results = gathered(modules, executor.map(merged, jobs), progress)
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
    return model.with_layers(layers).with_tasks([*known, *new])


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


def merged(job: MergeJob) -> LayerResult:
    """One layer with the newcomers in it."""
    model, module, members, build = job.model, job.module, job.members, job.build
    if module not in model.layers:
        shape = members[0].shapes[module]
        if build.settings.method == "share":
            return make_layer(module, shape, members, build)
        model = replace(model, layers={module: empty_layer(model, shape)})
    return merge_one_layer(model, module, members, build)


def empty_layer(model: ShareModel, shape: ModuleShape) -> LayerSubspace:
    """A layer that the model does not have yet: no directions, the model's cap."""
    cap = model.settings.cap
    return LayerSubspace(
        shape,
        torch.zeros(shape.out_features, 0, dtype=model.dtype),
        torch.zeros(shape.in_features, 0, dtype=model.dtype),
        cap=None if cap is None else (cap, cap),
    )


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
            n: dict(zip(x.modules, x.norms.tolist(), strict=True)) for n, x in ledgers.items()
        },
        memory=memory,
    )
    layers, tasks = build_layers([*known, *adapters], build, event, ledgers, progress, executor)
    return model.with_layers(layers).with_tasks(tasks)
