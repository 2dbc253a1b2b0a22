"""What the tasks' updates say of each other: how alike they are, and what few directions explain.

``study`` makes one pass over the layers; the cores of one layer are in memory at a time.
``relations`` then puts the tasks into a tree, an order, families and a map. At the end are the
names of layers: those that do the same job at different depths belong together.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sharespace.subspace.basis_method import dense_cores
from sharespace.subspace.coefficients import Coefficients
from sharespace.subspace.layer import LayerSubspace
from sharespace.subspace.state import ShareModel

FAMILY_OVERLAP = 0.05
"""Overlap of directions beyond chance from which on two tasks can be called relatives."""

_MOST_CHANCE = 0.9
"""Overlap of chance from which on a layer says nothing: the updates fill its space."""


@dataclass(frozen=True, eq=False)
class Study:
    """The cores of all layers."""

    names: tuple[str, ...]
    """Tasks of the rows and columns of ``cosines``."""
    cosines: Tensor
    """float64 [tasks, tasks]: mean over the layers that two tasks have in common of the cosine of
    their updates, each layer counting alike; NaN where there is no such layer."""
    overlaps: Tensor
    """float64 [tasks, tasks]: likewise of how far two updates use the same directions: 1 the same,
    0 no more than updates of random directions do."""
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
    Random directions are not orthogonal in a space of n dimensions: what they would have on
    average, sqrt(rho_i rho_j) / n with rho = |dW|^4 / |dW dW^T|^2 directions in use, is taken off
    and the rest put on a scale to 1, as Cohen's kappa does.
    """
    left = _beyond_chance(*_aligned(values, cores, layer.left_basis.double(), flipped=False))
    right = _beyond_chance(*_aligned(values, cores.mT, layer.right_basis.double(), flipped=True))
    # A side that says nothing, as that of a head of few classes, leaves the word to the other.
    return torch.stack((left, right)).nanmean(0)


def _beyond_chance(products: Tensor, energies: Tensor, size: int) -> Tensor:
    """Cosines of Gram matrices less those of random directions in ``size`` dimensions."""
    # The square root of rho.
    used = energies / products.diagonal().clamp_min(0).sqrt()
    chance = used[:, None] * used / size
    adjusted = (cosines(products) - chance) / (1 - chance)
    adjusted = torch.where(chance < _MOST_CHANCE, adjusted, torch.nan)
    # A task has the directions of itself, however many they are.
    return torch.where(torch.eye(len(used), dtype=torch.bool), cosines(products), adjusted)


def _aligned(
    values: Sequence[Coefficients], cores: Tensor, basis: Tensor, *, flipped: bool
) -> tuple[Tensor, Tensor, int]:
    """|dW_i^T dW_j|^2 (flipped: |dW_i dW_j^T|^2), |dW_i|^2, and the length of the directions."""
    grams = (cores @ cores.mT).flatten(1)
    products, energies = grams @ grams.mT, cores.square().sum((1, 2))
    per_task = {i: _frame(v, flipped) for i, v in enumerate(values) if not v.is_shared}
    for i, first in per_task.items():
        seen = basis.mT @ first
        row = grams @ (seen @ seen.mT).flatten()
        for j, second in per_task.items():
            row[j] = (second.mT @ first).square().sum()
        products[i], products[:, i] = row, row
        energies[i] = first.square().sum()
    return products, energies, len(basis)


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
    overlap: float
    """Mean overlap between the tasks of one branch and those of the other."""


@dataclass(frozen=True, eq=False)
class Relations:
    """What is drawn of the overlaps of tasks."""

    order: tuple[int, ...]
    """The tasks so that relatives are neighbours."""
    joins: tuple[Join, ...]
    """Average linkage; T - 1, nearest first."""
    families: tuple[int | None, ...]
    """By task: number of its family, the largest first; None: it has none."""
    points: tuple[tuple[float, float], ...]
    """By task: place on the map (classical scaling of the overlaps)."""
    shown: float
    """Part of the spread of the tasks that the map's two axes show, 0 to 1."""


def relations(overlaps: Tensor) -> Relations:
    """Compare tasks; those that have no layer in common count as unrelated (overlap 0).

    Args:
        overlaps: float64 [T, T], symmetric, adjusted for chance; NaN: not comparable.
    """
    known = overlaps.nan_to_num(0).clone()
    known.fill_diagonal_(1)
    points, shown = classical_scaling(known)
    joins = average_linkage(known)
    order = _leaf_order(joins, known)
    return Relations(order, joins, _families(joins, order), points, shown)


def average_linkage(overlaps: Tensor) -> tuple[Join, ...]:
    """Join the two branches with the largest mean overlap until there is one (UPGMA).

    Sokal & Michener, "A statistical method for evaluating systematic relationships", University of
    Kansas Science Bulletin 38 (1958). It takes T^3 steps, all but T of them inside of torch.
    """
    count = len(overlaps)
    mean = overlaps.clone().fill_diagonal_(-torch.inf)
    branches, sizes = list(range(count)), [1] * count
    joins = []
    for step in range(count - 1):
        i, j = divmod(int(mean.argmax()), count)
        joins.append(Join(branches[i], branches[j], float(mean[i, j])))
        row = (sizes[i] * mean[i] + sizes[j] * mean[j]) / (sizes[i] + sizes[j])
        mean[i], mean[:, i] = row, row
        mean[j], mean[:, j] = -torch.inf, -torch.inf
        mean[i, i] = -torch.inf
        branches[i], sizes[i] = count + step, sizes[i] + sizes[j]
    return tuple(joins)


def _leaf_order(joins: Sequence[Join], overlaps: Tensor) -> tuple[int, ...]:
    """The leaves of the tree; each join turns its branches so that the nearest ends meet."""
    count = len(overlaps)
    leaves: list[list[int]] = [[task] for task in range(count)]
    for join in joins:
        one, two = leaves[join.first], leaves[join.second]
        turns = [(a, b) for a in (one, one[::-1]) for b in (two, two[::-1])]
        left, right = max(turns, key=lambda turn: float(overlaps[turn[0][-1], turn[1][0]]))
        leaves.append(left + right)
    return tuple(leaves[-1]) if leaves else ()


def _families(joins: Sequence[Join], order: Sequence[int]) -> tuple[int | None, ...]:
    """The branches that stand out most from the branch that they are part of.

    A branch counts by its tasks times the logarithm of how much larger the overlap inside is than
    that with its neighbours, and the branches are chosen whose sum is largest: the excess of mass
    of Campello, Moulavi & Sander, "Density-Based Clustering Based on Hierarchical Density
    Estimates", PAKDD 2013. Families may so be tight or loose beside each other, and no threshold
    parts them; only what is below ``FAMILY_OVERLAP`` counts as nothing.
    """
    count = len(order)
    parents = {child: at for at, j in enumerate(joins) for child in (j.first, j.second)}
    members: list[list[int]] = [[task] for task in range(count)]
    mass = [0.0] * count
    families: list[list[list[int]]] = [[] for _ in range(count)]
    for at, join in enumerate(joins):
        tasks = members[join.first] + members[join.second]
        members.append(tasks)
        around = joins[parents[count + at]].overlap if count + at in parents else 0.0
        level, outer = (max(value, FAMILY_OVERLAP) for value in (join.overlap, around))
        own = len(tasks) * math.log(level / outer)
        parts = mass[join.first] + mass[join.second]
        # Of a branch and its parts that say as much the branch is taken: the fewer families.
        whole = own > 0 and own >= parts
        mass.append(own if whole else parts)
        families.append([tasks] if whole else families[join.first] + families[join.second])
    return _numbered(families[-1] if families else [], order)


def _numbered(families: Sequence[Sequence[int]], order: Sequence[int]) -> tuple[int | None, ...]:
    """By task: the number of its family; the largest first, then by where they stand."""
    place = {task: at for at, task in enumerate(order)}
    ranked = sorted(families, key=lambda tasks: (-len(tasks), min(place[t] for t in tasks)))
    numbers = {task: number for number, tasks in enumerate(ranked) for task in tasks}
    return tuple(numbers.get(task) for task in range(len(order)))


def classical_scaling(overlaps: Tensor) -> tuple[tuple[tuple[float, float], ...], float]:
    """Points whose squared distances are as near to 2 (1 - overlap) as two axes allow.

    Torgerson, "Multidimensional scaling: I. Theory and method", Psychometrika 17 (1952).

    Returns:
        The points, and the part of the spread that they show.
    """
    count = len(overlaps)
    if count < 2:
        return ((0.0, 0.0),) * count, 1.0
    centred = overlaps - overlaps.mean(0) - overlaps.mean(1)[:, None] + overlaps.mean()
    values, vectors = torch.linalg.eigh(centred)
    # A mean over layers that not all tasks have may have negative parts.
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
