"""Merge newcomers into one layer, in whatever orthonormal coordinates they come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sharespace.linalg.frames import (
    FrameChange,
    FramedTasks,
    NewDirections,
    framed_coefficients,
    in_enlarged_bases,
)
from sharespace.linalg.precision import (
    canonical_rounding,
    compute_dtype,
    stored_rounding,
    tolerance,
)
from sharespace.linalg.problem import BasisPair, UpdateProblem
from sharespace.linalg.updates import CanonicalUpdates, weights
from sharespace.subspace.basis_method import (
    LayerTasks,
    factor_rows,
)
from sharespace.subspace.basis_methods import basis_method
from sharespace.subspace.build_layer import LayerResult, certify, stored_basis
from sharespace.subspace.coefficients import Coefficients
from sharespace.subspace.layer import Certificate, LayerSubspace
from sharespace.subspace.state import BuildSettings, ShareModel


@dataclass(frozen=True, eq=False)
class MergeSide:
    """One group of tasks (those known, or the newcomers) at one layer."""

    names: tuple[str, ...]
    framed: FramedTasks
    norms: Tensor
    """float64 [tasks]: |dW_i| at entry, whose inverse is the weight."""
    outside: Tensor | None = None
    """float64 [tasks]: energy of each task outside of the frames, where these do not hold all of it
    (streamed)."""
    reserves: bool = False
    """True: at the cap a part of the directions is kept for these tasks where the others would
    leave them less than half of what they learned."""

    @property
    def whole(self) -> bool:
        """Nothing but rounding is outside of the frames."""
        if self.outside is None:
            return True
        rounding = canonical_rounding(torch.float32) ** 2 * self.norms.square()
        return bool((self.outside <= rounding).all())


@dataclass(frozen=True, eq=False)
class Known:
    """The tasks that live in a layer's subspace."""

    side: MergeSide
    coefficients: tuple[Coefficients, ...]


def merge_layer(model: ShareModel, module: str, new: MergeSide) -> LayerResult:
    """One layer with newcomers in whatever orthonormal coordinates they come."""
    layer = model.layers[module]
    known = known_tasks(model, module, new.framed.left.device)
    return merge_sides(layer, known, new, model.settings)


def merge_sides(
    layer: LayerSubspace, known: Known, new: MergeSide, settings: BuildSettings
) -> LayerResult:
    """The same for known tasks that are not, or not yet, part of a model."""
    old = known.side
    needed = _needed(old, new, settings.p)
    rounding = stored_rounding(layer.left_basis.dtype)
    # A direction with less energy than the stored dtype rounds away would store noise.
    extra = [side.beyond(rounding**2) for side in needed]
    grown = layer.k[0] + extra[0].shape[1], layer.k[1] + extra[1].shape[1]
    fits = layer.cap is None or (grown[0] <= layer.cap[0] and grown[1] <= layer.cap[1])
    if fits and new.whole:
        return _grow(layer, extra, known, new, settings)
    if settings.p is not None:
        # At the cap the best core of rank p may use others than an update's leading directions.
        needed = _needed(old, new)
    return _truncate(layer, needed, old, new, settings)


def _needed(old: MergeSide, new: MergeSide, p: int | None = None) -> list[NewDirections]:
    """Directions (left, right) that the newcomers need beyond the known ones, to keep rank p."""
    frames = new.framed.weighed(weights(new.norms), p)
    bases = (old.framed.left, old.framed.right)
    return [NewDirections.of(b, f) for b, f in zip(bases, frames, strict=True)]


def known_tasks(model: ShareModel, module: str, device: torch.device) -> Known:
    """The known tasks in the layer's subspace; updates stored per task stay as they are."""
    entries = {
        t.name: (c, t.ledger.norm(module))
        for t in model.tasks.values()
        if (c := t.coefficients.get(module)) is not None and c.is_shared
    }
    return known_of(model.layers[module], entries, device)


def known_of(
    layer: LayerSubspace,
    entries: Mapping[str, tuple[Coefficients, float]],
    device: torch.device,
) -> Known:
    """Tasks of a layer from their coefficients and norms at entry."""
    pairs = [c.factors() for c, _ in entries.values()]
    framed = framed_coefficients(
        layer.left_basis.to(device),
        layer.right_basis.to(device),
        [(e.to(device), f.to(device)) for e, f in pairs],
    )
    norms_at_entry = [norm for _, norm in entries.values()]
    norms = torch.tensor(norms_at_entry, dtype=torch.float64, device=device)
    return Known(MergeSide(tuple(entries), framed, norms), tuple(c for c, _ in entries.values()))


def _grow(
    layer: LayerSubspace,
    extra: Sequence[Tensor],
    known: Known,
    new: MergeSide,
    settings: BuildSettings,
) -> LayerResult:
    """Below the cap: append directions, pad the known tasks with zeros, lose nothing."""
    old = known.side
    dtype = layer.left_basis.dtype
    grown = replace(
        layer,
        left_basis=torch.cat([layer.left_basis, stored_basis(extra[0], dtype)], dim=1),
        right_basis=torch.cat([layer.right_basis, stored_basis(extra[1], dtype)], dim=1),
        certificate=_with_tail(layer.certificate, new, settings.p),
    )
    padded = {
        name: value.grown(grown.k)
        for name, value in zip(old.names, known.coefficients, strict=True)
    }
    newcomers = basis_method(settings.method).express(new.framed, grown, settings.p)
    lost = lost_by(new, grown, newcomers)
    return LayerResult(
        grown,
        {**padded, **dict(zip(new.names, newcomers, strict=True))},
        {**dict.fromkeys(old.names, 0.0), **dict(zip(new.names, lost, strict=True))},
        dict(zip(new.names, new.norms.tolist(), strict=True)),
    )


def _with_tail(known: Certificate | None, new: MergeSide, p: int | None) -> Certificate | None:
    """The certificate after newcomers that lose nothing but what is beyond rank p."""
    if p is None:
        return known
    core = new.framed.core
    energies = core.blocks(core.sigma)[:, p:].square().sum(1)
    tail = float((weights(new.norms).square() * energies).sum())
    if known is None:
        return Certificate(0.0, 0.0, tail) if tail else None
    return replace(known, rank_tail=known.rank_tail + tail)


def _truncate(
    layer: LayerSubspace,
    needed: Sequence[NewDirections],
    old: MergeSide,
    new: MergeSide,
    settings: BuildSettings,
) -> LayerResult:
    """At the cap: solve the problem on the cores, rotate the bases once, re-express everybody."""
    # Of the compute dtype and not of the stored one: the bases are chosen first, and cast then.
    rounding = tolerance(compute_dtype(layer.left_basis.dtype))
    left, right = (
        torch.cat([basis, directions.beyond(rounding**2)], dim=1)
        for basis, directions in zip((old.framed.left, old.framed.right), needed, strict=True)
    )
    method = basis_method(settings.method)
    all_tasks = in_enlarged_bases(old.framed, new.framed, left, right)
    norms = torch.cat([old.norms, new.norms])
    problem = UpdateProblem(all_tasks.core, weights(norms), settings.p, settings.seed)
    factors = all_tasks.factors if method.needs_factors else ()
    tasks = LayerTasks(problem, factors, settings.centred)
    cap = layer.cap or layer.k
    known = len(old.names)

    def rotated(bases: BasisPair) -> LayerResult:
        moved = replace(
            layer,
            left_basis=stored_basis(left @ bases.left, layer.left_basis.dtype),
            right_basis=stored_basis(right @ bases.right, layer.right_basis.dtype),
            certificate=certified(problem, bases, new),
        )
        coefficients = method.express(all_tasks, moved, settings.p)
        # In their own frames: what of the newcomers was left out as rounding is counted, too.
        lost = [
            *lost_by(old, moved, coefficients[:known]),
            *lost_by(new, moved, coefficients[known:]),
        ]
        names = (*old.names, *new.names)
        return LayerResult(
            moved,
            dict(zip(names, coefficients, strict=True)),
            dict(zip(names, lost, strict=True)),
            dict(zip(new.names, new.norms.tolist(), strict=True)),
        )

    result = rotated(method.bases(tasks, cap))
    if not new.reserves or min(cap) < 2 or _worst_loss(result, new) <= _MOST_LOST:
        return result
    count = max(cap[0] // _RESERVED, 1), max(cap[1] // _RESERVED, 1)
    smaller = method.bases(tasks, (cap[0] - count[0], cap[1] - count[1]))
    newcomers = all_tasks.core.select(range(known, known + len(new.names)))
    reserving = rotated(_with_reserved(smaller, newcomers, weights(new.norms), count))
    return min(reserving, result, key=lambda r: _worst_loss(r, new))


_MOST_LOST, _RESERVED = 0.5, 16
"""Part of what a newcomer learned that may be lost at the cap before a sixteenth of the directions
(at least one) is reserved for newcomers."""


def _worst_loss(result: LayerResult, new: MergeSide) -> float:
    """The largest part that a newcomer loses of what it learned."""
    losses = [
        result.lost[name] / norm if norm else 0.0
        for name, norm in zip(new.names, new.norms.tolist(), strict=True)
    ]
    return max(losses, default=0.0)


def _with_reserved(
    bases: BasisPair, newcomers: CanonicalUpdates, weighed: Tensor, count: tuple[int, int]
) -> BasisPair:
    """The bases with the leading directions of what they leave of the newcomers.

    Args:
        bases: of fewer directions than the cap.
        newcomers: in the same coordinates.
        weighed: float64 [tasks], their weights.
        count: (left, right) directions that are added.
    """
    ranks = torch.tensor(newcomers.ranks, device=weighed.device)
    gains = newcomers.sigma.double() * weighed.double().repeat_interleave(ranks)
    sides = []
    for basis, directions, most in zip(
        (bases.left, bases.right), (newcomers.left, newcomers.right), count, strict=True
    ):
        own = basis.double()
        remaining = NewDirections.of(own, directions.double() * gains)
        added = remaining.beyond(0.0)[:, :most]
        sides.append(torch.cat([own, added.to(own)], dim=1).to(basis))
    return BasisPair(*sides)


def certified(problem: UpdateProblem, bases: BasisPair, new: MergeSide) -> Certificate:
    """The certificate of bases in the frames' coordinates.

    What is outside of the two frames is lost whatever the bases; it counts once, half of it on each
    side.
    """
    certificate = certify(problem, bases)
    if new.outside is None:
        return certificate
    half = float(new.outside @ weights(new.norms).square()) / 2
    return replace(
        certificate,
        discarded_left=certificate.discarded_left + half,
        discarded_right=certificate.discarded_right + half,
    )


def lost_by(
    side: MergeSide, layer: LayerSubspace, coefficients: Sequence[Coefficients]
) -> list[float]:
    """The norm of what each task loses when it is stored so.

    Where a part of the tasks is outside of the frames, all of it is lost, and what the stored
    bases' rounding has outside of them is counted as if it pointed away from it: a bound, above
    the loss by no more than the rounding.
    """
    framed, device = side.framed, side.framed.left.device
    if not coefficients:
        return []
    stored = layer.left_basis.to(device), layer.right_basis.to(device)
    change = FrameChange.of((framed.left, framed.right), stored)
    parts = []
    for tasks, part in framed.core.slices():
        rows = (r.to(part.left) for r in factor_rows(coefficients[tasks], layer))
        parts.append(torch.stack(change.differences(part, *rows)).double())
    lost, stray = torch.cat(parts, dim=1)
    if side.outside is not None:
        gone = side.outside.to(lost)
        lost = (lost.square() + gone + 2 * gone.sqrt() * stray).sqrt()
    result: list[float] = lost.tolist()
    return result
