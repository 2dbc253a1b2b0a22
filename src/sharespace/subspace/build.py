"""Step 1: a Share model from adapters, one layer in memory at a time.

A layer is one job, which any process can do: pickled, a job holds only its own layer's part of the
adapters and the model, as byte ranges where the adapters are files. Where a layer's adapters do not
fit in memory together, it is built or merged out of core.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from sharespace.errors import OptionError
from sharespace.linalg.allocate import LayerOptions, split_budget, spread_remaining
from sharespace.linalg.dimension import Dimension
from sharespace.linalg.frames import framed_updates
from sharespace.linalg.precision import (
    canonical_rounding,
    common_dtype,
    compute_dtype,
    full_float32,
    usable_device,
)
from sharespace.linalg.updates import weights
from sharespace.subspace.adapter import (
    Adapter,
    BaseModel,
    ModuleShape,
    common_base,
    common_shapes,
    refuse_not_finite,
    samples_of,
    stating_base,
)
from sharespace.subspace.base_weights import joined_samples
from sharespace.subspace.basis_methods import DEFAULT_METHOD, basis_method
from sharespace.subspace.build_budgeted import (
    LayerChoice,
    budget_layer,
    entry_energies,
    profile_layer,
)
from sharespace.subspace.build_layer import (
    Build,
    LayerResult,
    build_layer,
    read_pairs,
    read_updates,
)
from sharespace.subspace.build_streamed import (
    TooWideError,
    build_bytes,
    build_streamed,
    merge_bytes,
    merge_streamed,
)
from sharespace.subspace.executor import LOCAL, Executor
from sharespace.subspace.layer import LayerSubspace
from sharespace.subspace.merge_layer import MergeSide, known_tasks, merge_layer
from sharespace.subspace.naming import common_names
from sharespace.subspace.state import (
    BuildSettings,
    Ledger,
    ShareModel,
    Task,
    check_new_names,
    refuse_overflow,
)

Progress = Callable[[str, int, int], None]
"""Called with (module, modules done, modules in all)."""

DEFAULT_MEMORY = 2_000_000_000
"""Bytes that one layer of all adapters may take where nothing else is said."""


@full_float32()
def initialise(
    adapters: Sequence[Adapter],
    dimension: Dimension,
    settings: BuildSettings | None = None,
    *,
    base: BaseModel | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    executor: Executor = LOCAL,
    memory: int | None = None,
) -> ShareModel:
    """Build one subspace per adapted module and express every adapter in it.

    Args:
        adapters: at least one, of one base model; ranks, modules and dtypes may differ.
        dimension: how k is chosen.
        settings: method, pseudo-rank and seed.
        base: overrides what the adapters say of their base model.
        dtype: stored dtype; None: the one that holds all the adapters' factors.
        device: where to compute; the result is on the CPU.
        progress: called after each module.
        executor: where the layers are computed.
        memory: bytes that one layer of all adapters may take. A layer that would take more is built
            out of core, from a few passes over the files. None: ``DEFAULT_MEMORY``; then
            what cannot be built out of core is built in memory all the same.

    Raises:
        MismatchError: the adapters are not of one base model.
        TaskExistsError: two adapters have the same name.
        OptionError: no adapter, or a rule that cannot be fulfilled (in the memory given).
        CorruptAdapterError: a factor or a head holds NaN or infinity.
        UnsupportedAdapterError: an update is too small to compute with.
    """
    check_newcomers(adapters, [])
    stated, base = base is not None, base or common_base(adapters)
    adapters = [stating_base(a, base, stated=stated) for a in adapters]
    adapters = common_names(adapters, stated=stated)
    samples = joined_samples({}, samples_of(adapters))
    build = Build(
        settings=with_rule(settings or BuildSettings(), dimension),
        dimension=dimension,
        dtype=dtype or common_dtype(*(a.dtype for a in adapters)),
        device=usable_device(device),
        memory=memory,
    )
    layers, tasks = build_layers(adapters, build, "init", {}, progress, executor)
    by_name = {task.name: task for task in tasks}
    return ShareModel(base, build.settings, build.dtype, layers, by_name, samples)


def check_newcomers(adapters: Sequence[Adapter], known: Collection[str]) -> None:
    """Refuse what can be no new tasks, before a layer is read.

    Args:
        adapters: the newcomers.
        known: names of the tasks that are there.

    Raises:
        OptionError: no adapter, or a name that no new task may have.
        TaskExistsError: a name is taken, or there twice.
        CorruptAdapterError: a head holds NaN or infinity.
    """
    if not adapters:
        raise OptionError("adapters", "there are none", "Give at least one adapter")
    check_new_names([adapter.name for adapter in adapters], known)
    for adapter in adapters:
        refuse_not_finite(f"adapter {adapter.name!r}", adapter.kept)


def with_rule(settings: BuildSettings, dimension: Dimension) -> BuildSettings:
    """The settings with what later merges need of the rule.

    Raises:
        OptionError: the method has no such rule.
    """
    basis_method(settings.method).check_rule(dimension)
    # With a k by pattern each layer has its own cap, and a module that comes later has none.
    cap = dimension.k if isinstance(dimension.k, int) else settings.cap
    return replace(settings, cap=cap, budget=dimension.budget)


def build_layers(
    adapters: Sequence[Adapter],
    build: Build,
    event: str,
    ledgers: Mapping[str, Ledger],
    progress: Progress | None,
    executor: Executor = LOCAL,
) -> tuple[dict[str, LayerSubspace], list[Task]]:
    """Layers and tasks of a model, built from the adapters alone.

    Args:
        event: name of the ledger's event.
        ledgers: of tasks that are known already and only change their form.
    """
    shapes = common_shapes(adapters)
    jobs = list(_jobs(adapters, shapes, build))
    if build.dimension.budget is not None:
        jobs = _split_budget(jobs, build.dimension.budget, executor)
    results = collect_results(shapes, executor.map(build_job, jobs), progress)
    tasks = [new_task(a, results, event, build.dtype, ledgers.get(a.name)) for a in adapters]
    return {m: r.layer for m, r in results.items()}, tasks


def _jobs(
    adapters: Sequence[Adapter], shapes: Mapping[str, ModuleShape], build: Build
) -> Iterator[BuildJob]:
    for module, shape in shapes.items():
        yield BuildJob(module, shape, [a for a in adapters if module in a.shapes], build)


def collect_results(
    modules: Collection[str], results: Iterable[LayerResult], progress: Progress | None
) -> dict[str, LayerResult]:
    """Module -> result, with the progress told after each."""
    by_module: dict[str, LayerResult] = {}
    for module, result in zip(modules, results, strict=True):
        by_module[module] = result
        if progress:
            progress(module, len(by_module), len(modules))
    return by_module


def new_task(
    adapter: Adapter,
    results: Mapping[str, LayerResult],
    event: str,
    dtype: torch.dtype,
    known: Ledger | None,
    *,
    exact: bool = False,
) -> Task:
    """A task from the layers' results; its ledger continues where it has one.

    Args:
        dtype: that it is stored in.
        exact: its updates were not rounded on their way into canonical form, and what is stored is
            multiplied out in the same dtype as before.

    Raises:
        OptionError: coefficients are too large for the dtype.
    """
    name = adapter.name
    own = {m: r for m, r in results.items() if name in r.coefficients}
    refuse_overflow(name, {m: r.lost[name] for m, r in own.items()}, dtype)
    # Canonical form rounds every update by itself, before any basis does; and whoever multiplies
    # what is stored into an update rounds it again, in the compute dtype of what is stored.
    rounding = max(canonical_rounding(compute_dtype(d)) for d in (adapter.dtype, dtype))
    rounded = {m: 0.0 if exact else rounding * r.norms[name] for m, r in own.items()}
    lost = {m: r.lost[name] + rounded[m] for m, r in own.items()}
    norms = [adapter.entry_norms.get(m, r.norms[name]) for m, r in own.items()]
    ledger = known or Ledger(
        modules=tuple(own),
        norms=torch.tensor(norms, dtype=torch.float64),
        truncations=torch.zeros(len(own), 0, dtype=torch.float64),
        events=(),
    )
    return Task(
        name=name,
        coefficients={m: r.coefficients[name] for m, r in own.items()},
        ledger=ledger.with_event(event, lost),
        kept=adapter.kept,
        files=adapter.files,
        labels=adapter.labels,
        started_from=adapter.started_from,
        config=adapter.config,
        provenance=adapter.provenance,
        adapter_bytes=adapter.nbytes,
    )


def _split_budget(jobs: Sequence[BuildJob], budget: int, executor: Executor) -> list[BuildJob]:
    """The jobs with how the budget stores their layers, from two passes over all of them."""
    totals = _total_weights(jobs, executor.map(measure_job, jobs))
    jobs = [replace(job, build=replace(job.build, totals=totals)) for job in jobs]
    profiles = list(executor.map(profile_job, jobs))
    weighed = [
        torch.tensor([totals[a.name] for a in job.members], dtype=torch.float64) for job in jobs
    ]
    offers = [p.affordable(w, budget) for p, w in zip(profiles, weighed, strict=True)]
    options = spread_remaining(split_budget(offers, budget), budget)
    return [
        replace(job, choice=LayerChoice(option, tuple(p.own_ranks(w, option.columns))))
        for job, p, w, option in zip(jobs, profiles, weighed, options, strict=True)
    ]


def _total_weights(
    jobs: Sequence[BuildJob], energies: Iterable[Sequence[float]]
) -> dict[str, float]:
    """1 / |dW_i over all modules| of each task, as it was at entry."""
    total: dict[str, float] = {}
    for job, squares in zip(jobs, energies, strict=True):
        for adapter, energy in zip(job.members, squares, strict=True):
            total[adapter.name] = total.get(adapter.name, 0.0) + energy
    norms = torch.tensor(list(total.values()), dtype=torch.float64).sqrt()
    return dict(zip(total, weights(norms).tolist(), strict=True))


@dataclass(frozen=True, eq=False)
class BuildJob:
    """One layer to build from the adapters that adapt it."""

    module: str
    shape: ModuleShape
    members: Sequence[Adapter]
    build: Build
    choice: LayerChoice | None = None
    """How a byte budget stores the layer."""

    def __reduce__(self) -> tuple[Any, ...]:
        members = [a.part(self.module) for a in self.members]
        build = part_of_build(self.build, self.module)
        return BuildJob, (self.module, self.shape, members, build, self.choice)


@dataclass(frozen=True, eq=False)
class MergeJob:
    """One layer of a model, and the newcomers that adapt it."""

    module: str
    model: ShareModel
    members: Sequence[Adapter]
    build: Build

    def __reduce__(self) -> tuple[Any, ...]:
        model = part_of_model(self.model, self.module)
        members = [a.part(self.module) for a in self.members]
        return MergeJob, (self.module, model, members, part_of_build(self.build, self.module))


def build_job(job: BuildJob) -> LayerResult:
    """The layer and its tasks' coefficients."""
    return make_layer(job.module, job.shape, job.members, job.build, job.choice)


def measure_job(job: BuildJob) -> list[float]:
    """|dW_i|^2 of the layer, as each of the tasks entered with it."""
    return entry_energies(job.module, job.members, job.build)


def profile_job(job: BuildJob) -> LayerOptions:
    """What the split of a byte budget needs to know of the layer."""
    return profile_layer(job.module, job.members, job.build)


def part_of_build(build: Build, module: str) -> Build:
    """What one layer needs of the build."""
    return replace(
        build,
        entry_norms={
            name: {module: norms[module]}
            for name, norms in build.entry_norms.items()
            if module in norms
        },
    )


def part_of_model(model: ShareModel, module: str) -> ShareModel:
    """What one layer's merge needs of the model: its bases, coefficients and entry norms."""
    layers = {module: model.layers[module]} if module in model.layers else {}
    tasks = {
        name: _part_of_task(task, module)
        for name, task in model.tasks.items()
        if module in task.coefficients
    }
    return ShareModel(model.base, model.settings, model.dtype, layers, tasks)


def _part_of_task(task: Task, module: str) -> Task:
    norms = torch.tensor([task.ledger.norm(module)], dtype=torch.float64)
    ledger = Ledger((module,), norms, torch.zeros(1, 0, dtype=torch.float64), ())
    return Task(task.name, {module: task.coefficients[module]}, ledger)


def make_layer(
    module: str,
    shape: ModuleShape,
    members: Sequence[Adapter],
    build: Build,
    choice: LayerChoice | None = None,
) -> LayerResult:
    """One layer of a Share model from all the adapters that adapt it.

    Args:
        choice: how a byte budget stores it.

    Raises:
        CorruptAdapterError: a factor holds NaN or infinity, or numbers too large to compute with.
        OptionError: it does not fit in the memory that was given, and cannot be built out of core.
    """
    needed, memory = build_bytes(members, module), build.memory or DEFAULT_MEMORY
    if needed <= memory:
        return _in_memory(module, shape, members, build, choice)
    why = _why_in_memory(build)
    if why is None:
        try:
            return build_streamed(module, shape, members, build, memory)
        except TooWideError as error:
            why = f"the explained variance needs {error}"
    _refuse(module, build, needed, why)
    return _in_memory(module, shape, members, build, choice)


def _in_memory(
    module: str,
    shape: ModuleShape,
    members: Sequence[Adapter],
    build: Build,
    choice: LayerChoice | None,
) -> LayerResult:
    if choice is not None:
        return budget_layer(module, shape, members, build, choice)
    return build_layer(module, shape, members, build)


def merge_one_layer(
    model: ShareModel, module: str, members: Sequence[Adapter], build: Build
) -> LayerResult:
    """One layer of a model with newcomers in it.

    Raises:
        CorruptAdapterError: a factor holds NaN or infinity, or numbers too large to compute with.
        OptionError: as ``make_layer``.
    """
    needed, memory = merge_bytes(members, module), build.memory or DEFAULT_MEMORY
    method = build.method
    if needed > memory and not method.in_memory_because:
        known = known_tasks(model, module, build.device)
        return merge_streamed(model.layers[module], known, members, module, build, memory)
    if needed > memory:
        _refuse(module, build, needed, method.in_memory_because)
    updates = read_updates(members, module, build.device)
    pairs = list(read_pairs(members, module, build.device)) if method.needs_factors else []
    framed = framed_updates(updates, pairs)
    names = tuple(a.name for a in members)
    learned = [build.entry_norms.get(n, {}).get(module, torch.nan) for n in names]
    entry = torch.tensor(learned).to(updates.norms)
    norms = torch.where(entry.isnan(), updates.norms, entry)
    side = MergeSide(names, framed, norms, reserves=not bool(entry.isnan().all()))
    result = merge_layer(model, module, side)
    return replace(result, norms=dict(zip(names, updates.norms.tolist(), strict=True)))


def _why_in_memory(build: Build) -> str | None:
    """Why a layer can only be built in memory; None where it need not."""
    dimension = build.dimension
    if build.method.in_memory_because:
        return build.method.in_memory_because
    if dimension.budget is not None:
        return "a byte budget looks at every direction of every adapter"
    if dimension.error is not None:
        return "a largest error looks at every direction of every adapter"
    if dimension.variance == 1.0:
        return "a variance of 1 keeps every direction of every adapter"
    return None


def _refuse(module: str, build: Build, needed: int, why: str) -> None:
    """Memory that was asked for is kept to; what nobody asked for is only a default.

    Raises:
        OptionError: see ``make_layer``.
    """
    if build.memory is not None:
        raise OptionError(
            f"memory of {build.memory:,} bytes",
            f"module {module!r} takes {needed:,}, and {why}",
            f"Give {needed:,}, leave the memory out, or use method {DEFAULT_METHOD} with k or a "
            "variance below 1: these are built out of core",
        )


def refuse_erased(model: ShareModel) -> None:
    """A byte budget that leaves nothing of a task is a mistake, not a choice.

    Raises:
        OptionError: the last event of a task's ledger took all of it.
    """
    budget = model.settings.budget
    for task in model.tasks.values() if budget is not None else ():
        ledger = task.ledger
        # Not 1: what is left of a task that lost all but rounding is no task either.
        if ledger.total_norm and ledger.truncations[:, -1].norm() >= 0.999 * ledger.total_norm:
            raise OptionError(
                f"budget of {budget} bytes",
                f"nothing of task {task.name!r} would be left",
                "Give more; plan --variance or plan --error say what other rules need",
            )
