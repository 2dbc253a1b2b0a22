"""Which tasks are relatives: a tree, an order, families, and a map in two dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sharespace.extras import require

ALIKE = 0.5
"""Mean cosine from which on tasks are called a family."""
_ORDERED = 200
"""Tasks up to which neighbours in the tree are put in the best order; it takes T^3 steps."""


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
    family: tuple[int | None, ...]
    """By task: number of its family, the largest first; None: it has none."""
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
    joins = tuple(Join(int(a), int(b), max(float(d), 0.0)) for a, b, d, _ in tree)
    order = tuple(int(i) for i in hierarchy.leaves_list(tree))
    groups = hierarchy.fcluster(tree, 1 - ALIKE, criterion="distance")
    return Relations(order, joins, _families(groups.tolist(), order), points, shown)


def _tree(hierarchy: Any, cosines: Tensor) -> Any:
    count = len(cosines)
    above = torch.triu_indices(count, count, 1)
    distances = (1 - cosines[above[0], above[1]]).clamp(0, 2).numpy()
    return hierarchy.linkage(distances, "average", optimal_ordering=count <= _ORDERED)


def _families(groups: Sequence[int], order: Sequence[int]) -> tuple[int | None, ...]:
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
    signs = torch.where(places.gather(0, places.abs().argmax(0)[None]) < 0, -1.0, 1.0)
    total = float(spread.sum())
    points = tuple((float(x), float(y)) for x, y in places * signs)
    return points, float(spread[:2].sum()) / total if total > 0 else 1.0
