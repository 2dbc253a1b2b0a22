"""One layer under a byte budget: what each task takes of the common bases, or its own SVD."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sharespace.linalg.budget import Point, Profile, profile, settle
from sharespace.linalg.joint import Bases, Problem
from sharespace.linalg.menu import Allocation
from sharespace.shapes import ModuleShape
from sharespace.subspace.adapter import Adapter
from sharespace.subspace.layers import (
    Build,
    LayerResult,
    by_name,
    certify,
    read_pairs,
    read_problem,
    stored_basis,
)
from sharespace.subspace.private import groups, private_layer, project_mixed
from sharespace.subspace.project import Projection
from sharespace.subspace.state import Certificate, LayerSubspace


@dataclass(frozen=True)
class Choice:
    """How the budget stores a module."""

    point: Point
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


def profile_layer(module: str, members: Sequence[Adapter], build: Build) -> Profile:
    """What the split of a byte budget needs to know of a layer."""
    problem = _weighed(read_problem(module, members, build), members, build)
    return profile(problem, build.itemsize, build.dimension.budget)


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
    shape: ModuleShape, problem: Problem, members: Sequence[Adapter], build: Build, point: Point
) -> tuple[LayerSubspace, Projection]:
    weighed = _weighed(problem, members, build)
    bases, chosen = settle(weighed, point, build.itemsize, build.dimension.budget)
    layer = LayerSubspace(
        shape=shape,
        left_basis=stored_basis(bases.left, build.dtype),
        right_basis=stored_basis(bases.right, build.dtype),
        cap=bases.k,
        certificate=_certificate(problem, bases, chosen),
    )
    return layer, project_mixed(problem.updates, layer, chosen)


def _weighed(problem: Problem, members: Sequence[Adapter], build: Build) -> Problem:
    """With 1 / |dW_i over all modules|: what counts where modules compete for bytes."""
    total = [build.totals[a.name] for a in members]
    return replace(problem, weights=torch.tensor(total).to(problem.weights))


def _certificate(problem: Problem, bases: Bases, chosen: Allocation) -> Certificate:
    """The sum of the groups' certificates; what a private update loses is beyond its rank."""
    parts = [0.0, 0.0, 0.0]
    for (a, b, rank), tasks in groups(chosen).items():
        some = replace(
            problem, updates=problem.updates.select(tasks), weights=problem.weights[tasks], p=rank
        )
        if a:
            found = certify(some, bases.first((a, b)))
            for i, x in enumerate((found.discarded_left, found.discarded_right, found.rank_tail)):
                parts[i] += x
        else:
            tail = some.sigma.double()[:, rank:].square().sum(1)
            parts[2] += float((some.weights.square() * tail).sum())
    return Certificate(*parts)
