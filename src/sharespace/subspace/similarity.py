"""How alike subspaces and independently trained updates are, and how bases change by merges."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Literal

import torch
from torch import Tensor

from sharespace.errors import MismatchError
from sharespace.subspace.adapter import Adapter, LayerUpdate
from sharespace.subspace.state import ShareModel

UpdateSide = Literal["left", "right"]


def principal_angles(first: Tensor, second: Tensor) -> Tensor:
    """The min(a, b) angles between two subspaces, ascending.

    By cosines where the angle is large and by sines where it is small: an arc cosine alone loses
    half of the digits near 0. Björck & Golub, "Numerical methods for computing angles between
    linear subspaces", Math. Comp. 27 (1973); Knyazev & Argentati, SIAM J. Sci. Comput. 23 (2002).

    Args:
        first: n x a, independent columns of any floating dtype; a may be 0.
        second: n x b.

    Returns:
        float64 [min(a, b)], radians from 0 to pi / 2.

    Raises:
        MismatchError: they are not of the same n.
    """
    wide, narrow = sorted(_frames(first, second), key=lambda q: -q.shape[1])
    seen = wide.mT @ narrow
    # Both ascending as angles: svdvals descends.
    cosines = torch.linalg.svdvals(seen).clamp(max=1)
    sines = torch.linalg.svdvals(narrow - wide @ seen).flip(0).clamp(max=1)
    return torch.where(cosines.square() >= 0.5, sines.asin(), cosines.acos())


def overlap(first: Tensor, second: Tensor) -> float:
    """Mean cos^2 of the principal angles: 1 where one subspace lies in the other, 0 where they are
    orthogonal; max(a, b) / n on average for random ones.

    Args:
        first: n x a, independent columns; a > 0.
        second: n x b; b > 0.

    Raises:
        MismatchError: they are not of the same n, or one is empty.
    """
    one, two = _frames(first, second)
    if not one.shape[1] or not two.shape[1]:
        raise MismatchError("overlap", "a subspace of no dimension", "Leave such modules out")
    return float((one.mT @ two).square().sum()) / min(one.shape[1], two.shape[1])


def _frames(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal to float64: a basis stored in 16 bits is not."""
    if first.shape[0] != second.shape[0]:
        why = f"vectors of {first.shape[0]} and of {second.shape[0]} numbers"
        raise MismatchError("subspaces", why, "Compare the same module and side")
    one, two = (torch.linalg.qr(basis.double())[0] for basis in (first, second))
    return one, two


@dataclass(frozen=True)
class CkaMatrix:
    """Linear CKA of every pair of adapters."""

    names: tuple[str, ...]
    """Names of the adapters of the rows, and of the columns."""
    values: tuple[tuple[float | None, ...], ...]
    """0 to 1, symmetric; None where a pair has no module in common (or only zero updates)."""

    @property
    def mean(self) -> float | None:
        """Over all pairs of different adapters; None where no pair can be compared."""
        count = len(self.names)
        pairs = [self.values[i][j] for i in range(count) for j in range(i)]
        known = [value for value in pairs if value is not None]
        return fmean(known) if known else None


def linear_cka(
    updates: Sequence[LayerUpdate], *, side: UpdateSide = "left", centred: bool = True
) -> list[list[float | None]]:
    """Linear CKA of every pair of updates dW_i (n x d) of one module.

    Kornblith et al., "Similarity of Neural Network Representations Revisited", arXiv 1905.00414,
    equation 5: |X_j^T X_i|^2 / (|X_i^T X_i| |X_j^T X_j|), columns of X centred, with X = dW (side
    ``left``: which outputs are changed alike) or X = dW^T (``right``: which inputs are read alike).
    Uncentred, ``right`` is the CKA of what the updates put out for white inputs.
    Unchanged by scaling an update and by orthogonal maps of its other side. From the factors:
    O(T n r^2 + T^2 n r^2), never an n x d matrix.

    Args:
        updates: T of them.
        side: see above.
        centred: False leaves the mean over the rows of X in.

    Returns:
        T x T values from 0 to 1; None where an update is zero (centred: constant).

    Raises:
        MismatchError: the updates are of different shapes.
    """
    sizes = {(u.up.shape[0], u.down.shape[1]) for u in updates}
    if len(sizes) > 1:
        raise MismatchError("updates", f"of the shapes {sorted(sizes)}", "Compare one module")
    spanned = [_representation(u, side, centred) for u in updates]
    self_products = [_product(x, x) for x in spanned]
    matrix: list[list[float | None]] = [[None] * len(updates) for _ in updates]
    for i, first in enumerate(spanned):
        for j, second in enumerate(spanned[: i + 1]):
            scale = (self_products[i] * self_products[j]) ** 0.5
            if scale > 0:
                matrix[i][j] = matrix[j][i] = min(1.0, _product(first, second) / scale)
    return matrix


def _representation(update: LayerUpdate, side: UpdateSide, centred: bool) -> Tensor:
    """X up to an orthogonal map of its columns, of norm 1 (or 0): float64, rows x at most r."""
    up, down = update.up.double(), update.down.double().mT
    near, far = (up, down) if side == "left" else (down, up)
    rows = near @ torch.linalg.qr(far, mode="r")[1].mT * update.scaling
    whole = float(rows.norm())
    if centred:
        rows = rows - rows.mean(dim=0)
    size = float(rows.norm())
    # A constant X leaves only rounding when it is centred.
    return rows / size if size > 1e-12 * whole else torch.zeros_like(rows)


def _product(first: Tensor, second: Tensor) -> float:
    return float((first.mT @ second).square().sum())


def adapters_cka(
    adapters: Sequence[Adapter], *, side: UpdateSide = "left", centred: bool = True
) -> CkaMatrix:
    """Linear CKA of independently trained adapters, mean over the modules that a pair has in
    common (the paper's first figure).

    Args:
        adapters: of one base model; read module by module.
        side: see ``linear_cka``.
        centred: likewise.

    Raises:
        MismatchError: a module has different shapes.
    """
    count = len(adapters)
    sums: list[list[list[float]]] = [[[] for _ in adapters] for _ in adapters]
    for module in dict.fromkeys(m for a in adapters for m in a.shapes):
        members = [i for i in range(count) if module in adapters[i].shapes]
        updates = [adapters[i].layer(module) for i in members]
        matrix = linear_cka(updates, side=side, centred=centred)
        for i, row in zip(members, matrix, strict=True):
            for j, value in zip(members, row, strict=True):
                if value is not None:
                    sums[i][j].append(value)
    values = tuple(tuple(fmean(cell) if cell else None for cell in row) for row in sums)
    return CkaMatrix(tuple(a.name for a in adapters), values)


@dataclass(frozen=True)
class BasisChange:
    """One basis before and after a step."""

    k: tuple[int, int]
    """Dimension before and after."""
    angles: tuple[float, ...]
    """The min(k) principal angles, ascending, in radians. All 0: the smaller one lies in the larger
    (a merge that only added directions)."""

    @property
    def mean_angle(self) -> float:
        """Mean of the principal angles, in radians."""
        return fmean(self.angles)

    @property
    def max_angle(self) -> float:
        """Largest of the principal angles, in radians."""
        return self.angles[-1]

    @property
    def overlap(self) -> float:
        """Mean cos^2: 1 where one lies in the other."""
        return fmean(math.cos(a) ** 2 for a in self.angles)


@dataclass(frozen=True)
class StepChange:
    """All bases before and after a step."""

    left: Mapping[str, BasisChange]
    """Module -> its left basis; modules with a basis both before and after."""
    right: Mapping[str, BasisChange]

    @property
    def left_angles(self) -> tuple[float, ...]:
        """Of the left bases of all modules, ascending, in radians; empty without any."""
        return tuple(sorted(a for change in self.left.values() for a in change.angles))

    @property
    def right_angles(self) -> tuple[float, ...]:
        """Of the right bases, likewise."""
        return tuple(sorted(a for change in self.right.values() for a in change.angles))

    @property
    def mean_angle(self) -> float | None:
        """Mean over modules and sides of their mean angle, in radians; None without any."""
        return fmean(c.mean_angle for c in self._all) if self._all else None

    @property
    def max_angle(self) -> float | None:
        """The largest of all, in radians; None without any."""
        return max(c.max_angle for c in self._all) if self._all else None

    @property
    def overlap(self) -> float | None:
        """Mean over modules and sides of their overlap; None without any."""
        return fmean(c.overlap for c in self._all) if self._all else None

    @property
    def grown(self) -> int:
        """Directions added, over modules and sides."""
        return sum(c.k[1] - c.k[0] for c in self._all)

    @property
    def _all(self) -> tuple[BasisChange, ...]:
        return (*self.left.values(), *self.right.values())


def settling(models: Sequence[ShareModel]) -> tuple[StepChange, ...]:
    """What each step did to the bases.

    Args:
        models: the Share model after every step, in order.

    Returns:
        One less than there are models. A module without a basis before or after a step (new, or
        stored per task) is left out of that step.

    Raises:
        MismatchError: a module has another shape in the next model.
    """
    return tuple(step_change(a, b) for a, b in pairwise(models))


def step_change(before: ShareModel, after: ShareModel) -> StepChange:
    """The change of all bases from one model to the next; see ``settling``."""
    left, right = {}, {}
    for module in before.layers:
        if module not in after.layers:
            continue
        old, new = before.layers[module], after.layers[module]
        if min(*old.k, *new.k) > 0:
            left[module] = _change(old.left_basis, new.left_basis)
            right[module] = _change(old.right_basis, new.right_basis)
    return StepChange(left, right)


def _change(old: Tensor, new: Tensor) -> BasisChange:
    angles = tuple(float(a) for a in principal_angles(old, new))
    return BasisChange((old.shape[1], new.shape[1]), angles)
