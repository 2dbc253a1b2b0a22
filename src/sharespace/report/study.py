"""What the tasks' updates say of each other: how alike they are, and what few directions explain.

``study`` makes one pass over the layers; the cores of one layer are in memory at a time.
``relations`` then puts the tasks into a tree, an order, groups and a map. At the end are the names
of layers: those that do the same job at different depths belong together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sharespace.extras import require
from sharespace.subspace.basis_method import dense_cores
from sharespace.subspace.coefficients import Coefficients
from sharespace.subspace.layer import LayerSubspace
from sharespace.subspace.state import ShareModel

ALIKE = 0.5
"""Mean cosine from which on tasks are called a group."""

_ORDERED = 200
"""Tasks up to which neighbours in the tree are put in the best order; it takes T^3 steps."""


@dataclass(frozen=True, eq=False)
class Study:
    """The cores of all layers."""

    names: tuple[str, ...]
    """Tasks of the rows and columns of ``cosines``."""
    cosines: Tensor
    """float64 [tasks, tasks]: mean over the layers that two tasks have in common of the cosine of
    their updates, each layer counting alike; NaN where there is no such layer."""
    overlaps: Tensor
    """float64 [tasks, tasks]: likewise of how far two updates use the same directions, 0 to 1."""
    explained: dict[str, tuple[float, ...]]
    """Module -> for k = 1, 2, ... the part of the tasks' weighed energy in the best k directions
    a side; a module without a subspace has none."""


def study(model: ShareModel, names: Sequence[str]) -> Study:
    """Compare these tasks; explained variance is of them alone.

    Cosines are taken between the stored updates. In a subspace they are the cosines of the cores,
    because the bases are orthonormal; bases in 16 bits are so to their rounding. Subspaces of
    groups are not orthogonal to each other: their cores are turned into one basis of all of them.
    """
    tasks = [model.tasks[name] for name in names]
    lost = [dict(zip(t.ledger.modules, t.ledger.estimates.tolist(), strict=True)) for t in tasks]
    alike, common = _Mean(len(tasks)), _Mean(len(tasks))
    explained: dict[str, tuple[float, ...]] = {}
    for module, layer in model.layers.items():
        members = [i for i, task in enumerate(tasks) if module in task.coefficients]
        values = [tasks[i].coefficients[module] for i in members]
        layer, cores = _orthonormal(layer, dense_cores(values, layer))
        alike.add(members, cosines(_products(values, cores, layer)))
        common.add(members, overlaps(values, cores, layer))
        inside = [n for n, value in enumerate(values) if value.is_shared]
        losses = [lost[members[n]][module] for n in inside]
        curve = explained_variance(cores[inside], torch.tensor(losses, dtype=torch.float64))
        if curve:
            explained[module] = curve
    return Study(tuple(names), alike.value, common.value, explained)


def _orthonormal(layer: LayerSubspace, cores: Tensor) -> tuple[LayerSubspace, Tensor]:
    """The layer with one orthonormal basis a side, and the cores in it."""
    if not layer.groups:
        return layer, cores
    (left, turn_left), (right, turn_right) = (
        torch.linalg.qr(basis.double()) for basis in (layer.left_basis, layer.right_basis)
    )
    turned = turn_left @ cores @ turn_right.mT
    return replace(layer, left_basis=left, right_basis=right, groups=()), turned


class _Mean:
    """Mean of matrices over the layers that know them."""

    def __init__(self, count: int) -> None:
        self._total = torch.zeros(count, count, dtype=torch.float64)
        self._known = torch.zeros_like(self._total)

    def add(self, members: Sequence[int], values: Tensor) -> None:
        """A layer's values between its members; NaN: not known."""
        at = torch.tensor(members, dtype=torch.long)
        self._total[at[:, None], at] += values.nan_to_num(0)
        self._known[at[:, None], at] += (~values.isnan()).double()

    @property
    def value(self) -> Tensor:
        """NaN where no layer knows it."""
        return self._total / self._known


def cosines(products: Tensor) -> Tensor:
    """float64 [T, T] from inner products; NaN where one of two is zero."""
    norms = products.diagonal().clamp_min(0).sqrt()
    scale = norms[:, None] * norms
    # Rounding puts the cosine of equal updates a little above 1, and a distance below 0.
    return torch.where(scale > 0, products / scale, torch.nan).clamp(-1, 1)


def _products(values: Sequence[Coefficients], cores: Tensor, layer: LayerSubspace) -> Tensor:
    """<dW_i, dW_j> of one layer's updates, float64 [T, T]."""
    flat = cores.flatten(1)
    products = flat @ flat.mT
    per_task = {i: v.factors() for i, v in enumerate(values) if not v.is_shared}
    left, right = layer.left_basis.double(), layer.right_basis.double()
    for i, factors in per_task.items():
        up, down = (factor.double() for factor in factors)
        # <L C R^T, P Q^T> = <C, (L^T P)(R^T Q)^T>
        seen = (left.mT @ up) @ (right.mT @ down).mT
        row = flat @ seen.flatten()
        for j, (far_up, far_down) in per_task.items():
            row[j] = ((far_up.double().mT @ up) * (far_down.double().mT @ down)).sum()
        products[i], products[:, i] = row, row
    return products


def overlaps(values: Sequence[Coefficients], cores: Tensor, layer: LayerSubspace) -> Tensor:
    """How far the updates of one layer use the same directions, float64 [T, T], mean of both sides.

    A side's is the cosine of dW_i dW_i^T and dW_j dW_j^T (uncentred linear CKA, arXiv 1905.00414):
    1 for the same directions in the same measure, 0 where the updates' column spaces are
    orthogonal. Unlike the cosine of the updates it does not ask what is done with the directions.
    """
    left = cosines(_aligned(values, cores, layer.left_basis.double(), flipped=False))
    right = cosines(_aligned(values, cores.mT, layer.right_basis.double(), flipped=True))
    return (left + right) / 2


def _aligned(
    values: Sequence[Coefficients], cores: Tensor, basis: Tensor, *, flipped: bool
) -> Tensor:
    """|dW_i^T dW_j|^2; flipped: |dW_i dW_j^T|^2."""
    grams = (cores @ cores.mT).flatten(1)
    products = grams @ grams.mT
    per_task = {i: _frame(v, flipped) for i, v in enumerate(values) if not v.is_shared}
    for i, first in per_task.items():
        seen = basis.mT @ first
        row = grams @ (seen @ seen.mT).flatten()
        for j, second in per_task.items():
            row[j] = (second.mT @ first).square().sum()
        products[i], products[:, i] = row, row
    return products


def _frame(value: Coefficients, flipped: bool) -> Tensor:
    """X with X X^T = dW dW^T (flipped: dW^T dW), float64."""
    near, far = reversed(value.factors()) if flipped else value.factors()
    small: Tensor = torch.linalg.qr(far.double(), mode="r")[1]
    return near.double() @ small.mT


def explained_variance(cores: Tensor, lost: Tensor) -> tuple[float, ...]:
    """For k = 1, 2, ...: part of the weighed energy that the best k directions a side keep.

    The directions are the leading ones of the weighed cores on each side (HOSVD), which is a lower
    bound on what the best pair keeps. The last value is what the model keeps.

    Args:
        cores: float64 [T, k_left, k_right].
        lost: float64 [T], norm of what each update lost; each update with it counts 1.

    Returns:
        max(k_left, k_right) values from 0 to 1; none where there is no core or all are zero.
    """
    energy = cores.square().sum((1, 2)) + lost.square()
    # Each task counts 1, however large its update: otherwise the largest would speak for all.
    weighed = cores[energy > 0] / energy[energy > 0].sqrt()[:, None, None]
    if not weighed.numel():
        return ()
    left = _leading(torch.einsum("tab,tcb->ac", weighed, weighed))
    right = _leading(torch.einsum("tab,tac->bc", weighed, weighed))
    grid = (left.mT @ weighed @ right).square().sum(0).cumsum(0).cumsum(1) / len(weighed)
    rows, columns = grid.shape
    # Where one side has fewer directions, it has all of them from there on.
    steps = range(max(rows, columns))
    return tuple(min(1.0, float(grid[min(k, rows - 1), min(k, columns - 1)])) for k in steps)


def _leading(gram: Tensor) -> Tensor:
    """Eigenvectors, those of the largest eigenvalues first."""
    vectors: Tensor = torch.linalg.eigh(gram)[1].flip(1)
    return vectors


@dataclass(frozen=True)
class Join:
    """Two branches of the tree that become one."""

    first: int
    """Number of a task (0 to T - 1), or T + the number of an earlier join."""
    second: int
    distance: float
    """1 - mean cosine between the tasks of one branch and those of the other."""


@dataclass(frozen=True, eq=False)
class Relations:
    """What is drawn of the tasks' cosines."""

    order: tuple[int, ...]
    """The tasks so that relatives are neighbours."""
    joins: tuple[Join, ...]
    """Average linkage; T - 1, nearest first."""
    groups: tuple[int | None, ...]
    """By task: number of its group, the largest first; None: it has none."""
    points: tuple[tuple[float, float], ...]
    """By task: place on the map (classical scaling of the cosines)."""
    shown: float
    """Part of the spread of the tasks that the map's two axes show, 0 to 1."""


def relations(cosines: Tensor) -> Relations:
    """Compare tasks; those that have no layer in common count as unrelated (cosine 0).

    Args:
        cosines: float64 [T, T], symmetric; NaN: not comparable.

    Raises:
        MissingExtraError: scipy is not installed.
    """
    known = cosines.nan_to_num(0).clone()
    known.fill_diagonal_(1)
    points, shown = classical_scaling(known)
    if len(known) < 2:
        return Relations(tuple(range(len(known))), (), (None,) * len(known), points, shown)
    hierarchy = require("scipy.cluster.hierarchy", "report")
    tree = _tree(hierarchy, known)
    # Averages of distances that are 0 may be negative by rounding.
    joins = tuple(Join(int(a), int(b), max(float(d), 0.0)) for a, b, d, _ in tree)
    order = tuple(int(i) for i in hierarchy.leaves_list(tree))
    groups = hierarchy.fcluster(tree, 1 - ALIKE, criterion="distance")
    return Relations(order, joins, _numbered(groups.tolist(), order), points, shown)


def _tree(hierarchy: Any, cosines: Tensor) -> Any:
    count = len(cosines)
    # scipy takes the triangle above the diagonal, row by row.
    above = torch.triu_indices(count, count, 1)
    distances = (1 - cosines[above[0], above[1]]).clamp(0, 2).numpy()
    return hierarchy.linkage(distances, "average", optimal_ordering=count <= _ORDERED)


def _numbered(groups: Sequence[int], order: Sequence[int]) -> tuple[int | None, ...]:
    """Number the groups of at least two by their size, then by where they stand."""
    sizes = {group: groups.count(group) for group in dict.fromkeys(groups[i] for i in order)}
    largest = sorted((g for g in sizes if sizes[g] > 1), key=lambda g: -sizes[g])
    numbers = {group: number for number, group in enumerate(largest)}
    return tuple(numbers.get(group) for group in groups)


def classical_scaling(cosines: Tensor) -> tuple[tuple[tuple[float, float], ...], float]:
    """Points whose squared distances are as near to 2 (1 - cosine) as two axes allow.

    Torgerson, "Multidimensional scaling: I. Theory and method", Psychometrika 17 (1952).

    Returns:
        The points, and the part of the spread that they show.
    """
    count = len(cosines)
    if count < 2:
        return ((0.0, 0.0),) * count, 1.0
    centred = cosines - cosines.mean(0) - cosines.mean(1)[:, None] + cosines.mean()
    values, vectors = torch.linalg.eigh(centred)
    # A sum of cosines over layers that not all tasks have may have negative parts.
    spread = values.clamp_min(0).flip(0)
    places = vectors.flip(1)[:, :2] * spread[:2].sqrt()
    # An eigenvector has no sign of its own: the largest entry of each axis is made positive, so
    # that the same tasks always give the same map.
    signs = torch.where(places.gather(0, places.abs().argmax(0)[None]) < 0, -1.0, 1.0)
    total = float(spread.sum())
    points = tuple((float(x), float(y)) for x, y in places * signs)
    return points, float(spread[:2].sum()) / total if total > 0 else 1.0


def kind(module: str) -> str:
    """The module's name with numbers left open: ``encoder.layer.*.attention.self.query``."""
    return ".".join("*" if part.isdecimal() else part for part in module.split("."))


def by_kind(modules: Iterable[str]) -> dict[str, list[str]]:
    """Kind -> its modules, both in the order in which they come."""
    kinds: dict[str, list[str]] = {}
    for module in modules:
        kinds.setdefault(kind(module), []).append(module)
    return kinds


def labels(names: Sequence[str]) -> dict[str, str]:
    """Name -> what is left of it without the parts that all begin and end with.

    A single name keeps its last two parts.
    """
    split = [name.split(".") for name in names]
    if len(names) == 1:
        return {names[0]: ".".join(split[0][-2:])}
    shortest = min(map(len, split), default=0)
    head = _common(split, shortest - 1)
    tail = _common([parts[head:][::-1] for parts in split], shortest - head - 1)
    return {
        name: ".".join(parts[head : len(parts) - tail])
        for name, parts in zip(names, split, strict=True)
    }


def _common(split: Sequence[Sequence[str]], most: int) -> int:
    """How many first parts are the same in all."""
    same = 0
    while same < most and len({parts[same] for parts in split}) == 1:
        same += 1
    return same
