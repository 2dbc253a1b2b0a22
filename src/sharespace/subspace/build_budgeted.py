"""One layer under a byte budget: what each task takes of the common bases, or its own SVD.

Tasks outside the subspace, each by its own truncated SVD, beside those inside it.

Under a byte budget every task has what suits it (method.md, consequence 2): a private update, or a
core of its own rank in as many leading directions as pay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sharespace.linalg.budget.allocate import (
    GroupSubspace,
    LayerOption,
    LayerOptions,
    allocate,
    layer_options,
)
from sharespace.linalg.budget.task_options import TaskChoices
from sharespace.linalg.frames import errors
from sharespace.linalg.problem import BasisPair, UpdateProblem
from sharespace.linalg.updates import CanonicalUpdates
from sharespace.subspace.adapter import Adapter, ModuleShape
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
from sharespace.subspace.project import Projection, project


@dataclass(frozen=True)
class Choice:
    """How the budget stores a module."""

    point: LayerOption
    own_ranks: tuple[int, ...]
    """Columns of each task where all tasks are stored on their own."""


def entry_energies(module: str, members: Sequence[Adapter], build: Build) -> list[float]:
    """|dW_i|^2 of one module as each task entered with it; no basis is looked for.

    Raises:
        CorruptAdapterError: a factor holds NaN or infinity.
    """
    found = []
    for adapter, (up, down) in zip(members, read_pairs(members, module, build.device), strict=True):
        known = build.entry_norms.get(adapter.name, {}).get(module)
        energy = _energy(up, down) if known is None else known**2
        found.append(energy)
    return found


def _energy(up: Tensor, down: Tensor) -> float:
    """|up down^T|^2 through the triangular factors: a product of Grams would cancel."""
    left = torch.linalg.qr(up.double(), mode="r")[1]
    right = torch.linalg.qr(down.double(), mode="r")[1]
    return float((left @ right.mT).square().sum())


def profile_layer(module: str, members: Sequence[Adapter], build: Build) -> LayerOptions:
    """What the split of a byte budget needs to know of a layer."""
    problem = _weighed(read_problem(module, members, build), members, build)
    return layer_options(problem, build.itemsize, build.dimension.budget)


def budget_layer(
    module: str, shape: ModuleShape, members: Sequence[Adapter], build: Build, choice: Choice
) -> LayerResult:
    """One layer of a Share model that is kept to a byte budget."""
    problem = read_problem(module, members, build)
    if choice.point.is_own:
        layer, result = private_layer(shape, problem.updates, choice.own_ranks, build.dtype)
    else:
        layer, result = _mixed_layer(shape, problem, members, build, choice.point)
    return by_name(members, layer, result, problem.updates.norms)


def _mixed_layer(
    shape: ModuleShape,
    problem: UpdateProblem,
    members: Sequence[Adapter],
    build: Build,
    point: LayerOption,
) -> tuple[LayerSubspace, Projection]:
    weighed = _weighed(problem, members, build)
    settled = allocate(weighed, point, build.itemsize, build.dimension.budget)
    parts = [_part(shape, found.bases, build) for found in settled]
    whole = side_by_side(parts)
    certificates = [
        _certificate(problem.select(found.tasks), found.bases, found.choices) for found in settled
    ]
    layer = replace(whole, cap=whole.k, certificate=_summed(certificates))
    return layer, _projected(problem, settled, parts, layer.k)


def _part(shape: ModuleShape, bases: BasisPair, build: Build) -> LayerSubspace:
    left, right = (stored_basis(basis, build.dtype) for basis in (bases.left, bases.right))
    return LayerSubspace(shape, left, right)


def _projected(
    problem: UpdateProblem,
    settled: Sequence[GroupSubspace],
    parts: Sequence[LayerSubspace],
    k: tuple[int, int],
) -> Projection:
    """Every task in its own part of the layer, or private."""
    values: dict[int, Coefficients] = {}
    lost = torch.zeros(len(problem.updates.ranks), dtype=torch.float64)
    for found, part, offset in zip(
        settled, parts, group_offsets([p.k for p in parts]), strict=True
    ):
        tasks = list(found.tasks)
        mine = project_mixed(problem.updates.select(tasks), part, found.choices)
        lost[tasks] = mine.lost
        values.update(zip(tasks, (v.placed(offset, k) for v in mine.coefficients), strict=True))
    return Projection(tuple(values[task] for task in range(len(values))), lost)


def _weighed(problem: UpdateProblem, members: Sequence[Adapter], build: Build) -> UpdateProblem:
    """With 1 / |dW_i over all modules|: what counts where modules compete for bytes."""
    total = [build.totals[a.name] for a in members]
    return replace(problem, weights=torch.tensor(total).to(problem.weights))


def _certificate(problem: UpdateProblem, bases: BasisPair, chosen: TaskChoices) -> Certificate:
    """The sum of the groups' certificates; what a private update loses is beyond its rank."""
    found = []
    for (a, b, rank), tasks in groups(chosen).items():
        some = replace(problem.select(tasks), p=rank)
        if a:
            found.append(certify(some, bases.first((a, b))))
        else:
            tail = some.sigma.double()[:, rank:].square().sum(1)
            found.append(Certificate(0.0, 0.0, float((some.weights.square() * tail).sum())))
    return _summed(found)


def _summed(found: Sequence[Certificate]) -> Certificate:
    return Certificate(
        sum(c.discarded_left for c in found),
        sum(c.discarded_right for c in found),
        sum(c.rank_tail for c in found),
    )


def private_layer(
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
    found = [_private(updates, task, keep, dtype) for task, keep in enumerate(ranks)]
    lost = torch.tensor([e for _, e in found], dtype=torch.float64)
    return layer, Projection(tuple(v for v, _ in found), lost)


def project_mixed(
    updates: CanonicalUpdates, layer: LayerSubspace, chosen: TaskChoices
) -> Projection:
    """Every task as it was chosen: a private update, or a core in the layer's leading directions.

    What a core does not use of the bases are zero rows at its end, which are not stored.
    """
    dtype = layer.left_basis.dtype
    values: dict[int, Coefficients] = {}
    lost = torch.zeros(len(updates.ranks), dtype=torch.float64)
    for (a, b, rank), tasks in groups(chosen).items():
        if a:
            part = layer.subspace_at((0, 0), (a, b))
            found = project(updates.select(tasks), part, rank)
            lost[tasks] = found.lost
            values.update(
                zip(tasks, (v.placed((0, 0), layer.k) for v in found.coefficients), strict=True)
            )
            continue
        for task in tasks:
            values[task], lost[task] = _private(updates, task, rank, dtype)
    return Projection(tuple(values[i] for i in range(len(values))), lost)


def groups(chosen: TaskChoices) -> dict[tuple[int, int, int], list[int]]:
    """(left directions, right directions, rank) -> tasks; without directions: private."""
    found: dict[tuple[int, int, int], list[int]] = {}
    parts = (chosen.left.tolist(), chosen.right.tolist(), chosen.rank.tolist())
    for task, (a, b, rank) in enumerate(zip(*parts, strict=True)):
        found.setdefault((a, b, rank), []).append(task)
    return found


def _private(
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
