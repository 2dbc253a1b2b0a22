"""One layer under a byte budget: what each task takes of the common bases, or its own SVD.

Every task has what suits it (docs/method.md, "Consequence 2: storage per task must be an option"):
an update stored per task, or a core of its own rank in as many leading directions as pay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sharespace.linalg.allocate import (
    GroupSubspace,
    LayerOption,
    LayerOptions,
    allocate,
    layer_options,
)
from sharespace.linalg.frames import errors
from sharespace.linalg.problem import BasisPair, UpdateProblem
from sharespace.linalg.task_options import TaskChoices
from sharespace.linalg.updates import CanonicalUpdates, product_energy
from sharespace.subspace.adapter import Adapter, ModuleShape
from sharespace.subspace.basis_method import Projection, project
from sharespace.subspace.build_layer import (
    Build,
    LayerResult,
    by_name,
    certify,
    read_pairs,
    read_problem,
    stored_basis,
)
from sharespace.subspace.coefficients import Coefficients, PerTask
from sharespace.subspace.layer import Certificate, LayerSubspace, group_offsets, side_by_side


@dataclass(frozen=True)
class LayerChoice:
    """How the budget stores a module: an option, and the ranks of updates stored per task."""

    option: LayerOption
    own_ranks: tuple[int, ...]
    """Columns of each task where all tasks are stored on their own."""


def entry_energies(module: str, members: Sequence[Adapter], build: Build) -> list[float]:
    """|dW_i|^2 of one module as each task entered with it; no basis is looked for.

    Raises:
        CorruptAdapterError: a factor holds NaN or infinity.
    """
    energies = []
    for adapter, (up, down) in zip(members, read_pairs(members, module, build.device), strict=True):
        known = build.entry_norms.get(adapter.name, {}).get(module)
        energy = product_energy(up, down) if known is None else known**2
        energies.append(energy)
    return energies


def profile_layer(module: str, members: Sequence[Adapter], build: Build) -> LayerOptions:
    """What the split of a byte budget needs to know of a layer."""
    problem = _weighed(read_problem(module, members, build), members, build)
    return layer_options(problem, build.itemsize, build.dimension.budget)


def budget_layer(
    module: str, shape: ModuleShape, members: Sequence[Adapter], build: Build, choice: LayerChoice
) -> LayerResult:
    """One layer of a Share model that is kept to a byte budget."""
    problem = read_problem(module, members, build)
    if choice.option.is_own:
        layer, result = per_task_layer(shape, problem.updates, choice.own_ranks, build.dtype)
    else:
        layer, result = _mixed_layer(shape, problem, members, build, choice.option)
    return by_name(members, layer, result, problem.updates.norms)


def _mixed_layer(
    shape: ModuleShape,
    problem: UpdateProblem,
    members: Sequence[Adapter],
    build: Build,
    option: LayerOption,
) -> tuple[LayerSubspace, Projection]:
    weighed = _weighed(problem, members, build)
    groups = allocate(weighed, option, build.itemsize, build.dimension.budget)
    subspaces = [_group(shape, group.bases, build) for group in groups]
    whole = side_by_side(subspaces)
    certificates = [
        _certificate(problem.select(group.tasks), group.bases, group.choices) for group in groups
    ]
    layer = replace(whole, cap=whole.k, certificate=_summed(certificates))
    return layer, _projected(problem, groups, subspaces, layer.k)


def _group(shape: ModuleShape, bases: BasisPair, build: Build) -> LayerSubspace:
    left, right = (stored_basis(basis, build.dtype) for basis in (bases.left, bases.right))
    return LayerSubspace(shape, left, right)


def _projected(
    problem: UpdateProblem,
    groups: Sequence[GroupSubspace],
    subspaces: Sequence[LayerSubspace],
    k: tuple[int, int],
) -> Projection:
    """Every task in its own group's subspace, or stored per task."""
    values: dict[int, Coefficients] = {}
    lost = torch.zeros(len(problem.updates.ranks), dtype=torch.float64)
    for group, subspace, offset in zip(
        groups, subspaces, group_offsets([s.k for s in subspaces]), strict=True
    ):
        tasks = list(group.tasks)
        result = project_mixed(problem.updates.select(tasks), subspace, group.choices)
        lost[tasks] = result.lost
        values.update(zip(tasks, (v.placed(offset, k) for v in result.coefficients), strict=True))
    return Projection(tuple(values[task] for task in range(len(values))), lost)


def _weighed(problem: UpdateProblem, members: Sequence[Adapter], build: Build) -> UpdateProblem:
    """With 1 / |dW_i over all modules|: what counts where modules compete for bytes."""
    total = [build.totals[a.name] for a in members]
    # In float64 from the start: float32 has no inverse of a norm below 3e-39.
    return replace(problem, weights=torch.tensor(total, dtype=torch.float64).to(problem.weights))


def _certificate(problem: UpdateProblem, bases: BasisPair, choices: TaskChoices) -> Certificate:
    """The sum over tasks that are stored alike; own SVDs lose what is beyond their rank."""
    certificates = []
    for (a, b, rank), tasks in alike(choices).items():
        selected = replace(problem.select(tasks), p=rank)
        if a:
            certificates.append(certify(selected, bases.first((a, b))))
        else:
            tail = selected.sigma.double()[:, rank:].square().sum(1)
            certificates.append(
                Certificate(0.0, 0.0, float((selected.weights.square() * tail).sum()))
            )
    return _summed(certificates)


def _summed(certificates: Sequence[Certificate]) -> Certificate:
    return Certificate(
        sum(c.discarded_left for c in certificates),
        sum(c.discarded_right for c in certificates),
        sum(c.rank_tail for c in certificates),
    )


def per_task_layer(
    shape: ModuleShape, updates: CanonicalUpdates, ranks: Sequence[int], dtype: torch.dtype
) -> tuple[LayerSubspace, Projection]:
    """A layer without a subspace, every task stored as dW_i ~ P_i Q_i^T of the given rank.

    Args:
        shape: of the module.
        updates: the tasks' updates.
        ranks: columns that each task keeps.
        dtype: stored dtype.
    """
    layer = LayerSubspace.empty(shape, dtype, cap=(0, 0))
    stored = [_per_task(updates, task, keep, dtype) for task, keep in enumerate(ranks)]
    lost = torch.tensor([e for _, e in stored], dtype=torch.float64)
    return layer, Projection(tuple(v for v, _ in stored), lost)


def project_mixed(
    updates: CanonicalUpdates, layer: LayerSubspace, choices: TaskChoices
) -> Projection:
    """Every task by its choice: an update stored per task, or a core in leading directions.

    What a core does not use of the bases are zero rows at its end, which are not stored.
    """
    dtype = layer.left_basis.dtype
    values: dict[int, Coefficients] = {}
    lost = torch.zeros(len(updates.ranks), dtype=torch.float64)
    for (a, b, rank), tasks in alike(choices).items():
        if a:
            subspace = layer.subspace_at((0, 0), (a, b))
            result = project(updates.select(tasks), subspace, rank)
            lost[tasks] = result.lost
            values.update(
                zip(tasks, (v.placed((0, 0), layer.k) for v in result.coefficients), strict=True)
            )
            continue
        for task in tasks:
            values[task], lost[task] = _per_task(updates, task, rank, dtype)
    return Projection(tuple(values[i] for i in range(len(values))), lost)


def alike(choices: TaskChoices) -> dict[tuple[int, int, int], list[int]]:
    """(left directions, right directions, rank) -> tasks; without directions: stored per task."""
    tasks: dict[tuple[int, int, int], list[int]] = {}
    columns = (choices.left.tolist(), choices.right.tolist(), choices.rank.tolist())
    for task, (a, b, rank) in enumerate(zip(*columns, strict=True)):
        tasks.setdefault((a, b, rank), []).append(task)
    return tasks


def _per_task(
    updates: CanonicalUpdates, task: int, rank: int, dtype: torch.dtype
) -> tuple[PerTask, float]:
    one = updates.select([task])
    value = own_svd(one, rank, dtype)
    return value, _lost(one, value)


def own_svd(update: CanonicalUpdates, rank: int, dtype: torch.dtype) -> PerTask:
    """The truncated SVD of one task's update, in the stored dtype."""
    root = update.sigma[:rank].sqrt()
    return PerTask(
        _stored(update.left[:, :rank] * root, dtype), _stored(update.right[:, :rank] * root, dtype)
    )


def _stored(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to("cpu", dtype, copy=True, memory_format=torch.contiguous_format)


def _lost(update: CanonicalUpdates, value: PerTask) -> float:
    device = update.left.device
    core = torch.eye(value.rank, dtype=torch.float64, device=device)[None]
    return float(errors(update, value.left.to(device), value.right.to(device), core)[0])
