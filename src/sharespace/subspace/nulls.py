"""The nulls that a Share model must beat: mean adapter, random basis, own SVD at equal bytes.

Planted low-rank data flatter every method; beside these three, real adapters do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sharespace.errors import OptionError
from sharespace.linalg.budget import Profile, own_profile, spend
from sharespace.linalg.canonical import weights
from sharespace.linalg.nulls import mean_errors, own_errors, random_errors
from sharespace.subspace.adapter import Adapter
from sharespace.subspace.fidelity import Bytes, measure, sizes
from sharespace.subspace.layers import read_updates
from sharespace.subspace.state import Private, ShareModel

Errors = Mapping[str, float]
"""Task -> relative error over all its modules."""


@dataclass(frozen=True)
class Nulls:
    """Relative errors of simpler ways to store the same adapters."""

    mean_adapter: Errors
    """One update for all: the mean of the adapters that adapt the module."""
    random_basis: Errors
    """The same k, random orthonormal bases."""
    own_svd: Errors
    """Every adapter by its own truncated SVDs, at the bytes of bases and coefficients together."""
    shared: float
    """(own^2 - Share^2) / own^2 at equal *columns*, all tasks together, in [0, 1]."""
    shared_fraction: Mapping[str, float]
    """The same by task: what is really shared of it; 0 where its own SVD is exact."""


ALL = ""
"""Key of the sum over tasks; no task has an empty name."""


@dataclass
class _Sums:
    """Squared errors and norms by task, summed over modules."""

    squares: dict[str, float] = field(default_factory=dict)

    def add(self, names: Sequence[str], values: Tensor) -> None:
        for name, value in zip(names, values.square().tolist(), strict=True):
            self.squares[name] = self.squares.get(name, 0.0) + value

    def relative(self, norms: _Sums) -> dict[str, float]:
        return {
            n: math.sqrt(e / norms.squares[n]) if norms.squares[n] else 0.0
            for n, e in self.squares.items()
        }


def nulls(model: ShareModel, originals: Sequence[Adapter], seed: int = 0) -> Nulls:
    """All nulls for a model and the adapters that it was made from.

    Args:
        originals: the adapters of all tasks, named as they; one layer is in memory at a time.
        seed: of the random basis.

    Raises:
        OptionError: the adapters are not those of the model's tasks.
    """
    _check_complete(model, originals)
    mean, random, norms = _Sums(), _Sums(), _Sums()
    itemsize = torch.empty(0, dtype=model.dtype).element_size()
    profiles: dict[str, Profile] = {}
    members: dict[str, list[str]] = {}
    for module, layer in model.layers.items():
        mine = [a for a in originals if module in a.shapes]
        if not mine:
            continue
        updates = read_updates(mine, module, torch.device("cpu"))
        names = members[module] = [a.name for a in mine]
        norms.add(names, updates.norms)
        mean.add(names, mean_errors(updates))
        random.add(names, random_errors(updates, layer.k, seed))
        profiles[module] = own_profile(updates, itemsize)
    stored = sizes(model)
    own = _own_svd(profiles, members, norms, stored)
    fractions = _shared(model, originals, profiles, members)
    return Nulls(
        mean_adapter=mean.relative(norms),
        random_basis=random.relative(norms),
        own_svd=own.relative(norms),
        shared=fractions.pop(ALL),
        shared_fraction=fractions,
    )


def _check_complete(model: ShareModel, originals: Sequence[Adapter]) -> None:
    """Bytes are shared by all tasks, so a comparison at equal bytes needs all of them."""
    given = {a.name for a in originals}
    odd = [repr(n) for n in [*model.tasks, *given] if (n in given) != (n in model.tasks)]
    if odd:
        raise OptionError(
            f"nulls for {', '.join(odd[:5])}",
            "they compare all tasks of the model with their original adapters",
            "Give every task's adapter, and no other",
        )


def own_ranks(model: ShareModel, originals: Sequence[Adapter]) -> dict[str, dict[str, int]]:
    """Module -> task -> columns of its own SVD, at the bytes of the model's bases and coefficients.

    Split over modules and tasks as well as can be, as in ``Nulls.own_svd``.

    Raises:
        OptionError: the adapters are not those of the model's tasks.
    """
    _check_complete(model, originals)
    norms, profiles, members = _Sums(), {}, {}
    itemsize = torch.empty(0, dtype=model.dtype).element_size()
    for module in model.layers:
        mine = [a for a in originals if module in a.shapes]
        if not mine:
            continue
        updates = read_updates(mine, module, torch.device("cpu"))
        members[module] = [a.name for a in mine]
        norms.add(members[module], updates.norms)
        profiles[module] = own_profile(updates, itemsize)
    ranks = _spent(profiles, members, norms, sizes(model))
    return {m: dict(zip(members[m], ranks(m), strict=True)) for m in profiles}


def _own_svd(
    profiles: Mapping[str, Profile], members: Mapping[str, list[str]], norms: _Sums, stored: Bytes
) -> _Sums:
    """Own SVDs at the bytes of bases and coefficients, split as well as can be."""
    return _own_sums(profiles, members, _spent(profiles, members, norms, stored))


def _spent(
    profiles: Mapping[str, Profile], members: Mapping[str, list[str]], norms: _Sums, stored: Bytes
) -> Callable[[str], list[int]]:
    """Module -> the rank of each task's own SVD there."""
    budget = stored.basis + stored.coefficients
    totals = torch.tensor(list(norms.squares.values()), dtype=torch.float64).sqrt()
    total = dict(zip(norms.squares, weights(totals).tolist(), strict=True))
    by_module = {
        m: torch.tensor([total[n] for n in names], dtype=torch.float64)
        for m, names in members.items()
    }
    points = spend([p.points(by_module[m], budget) for m, p in profiles.items()], budget)
    chosen = dict(zip(profiles, points, strict=True))

    def ranks(module: str) -> list[int]:
        return profiles[module].own_ranks(by_module[module], chosen[module].columns)

    return ranks


def _own_sums(
    profiles: Mapping[str, Profile],
    members: Mapping[str, list[str]],
    ranks: Callable[[str], list[int]],
) -> _Sums:
    result = _Sums()
    for module, profile in profiles.items():
        result.add(members[module], own_errors(profile.own, ranks(module)))
    return result


def _shared(
    model: ShareModel,
    originals: Sequence[Adapter],
    profiles: Mapping[str, Profile],
    members: Mapping[str, list[str]],
) -> dict[str, float]:
    """Share against own SVDs with as many columns in each module, split over its tasks as well as
    can be. Each module counts by relative errors, so that a large module does not decide alone.
    """
    own, share = _Sums(), _Sums()
    lost = measure(model, originals)
    for module, profile in profiles.items():
        names = members[module]
        inverse = weights(profile.energies.sqrt())
        columns = _columns(model, module)
        own.add(names, inverse * own_errors(profile.own, profile.own_ranks(inverse, columns)))
        mine = torch.tensor([lost[n][module] for n in names], dtype=torch.float64)
        share.add(names, inverse * mine)
    whole = {**own.squares, ALL: sum(own.squares.values())}
    parts = {**share.squares, ALL: sum(share.squares.values())}
    return {n: _fraction(whole[n], parts[n]) for n in whole}


def _fraction(own: float, share: float) -> float:
    """0 where own SVDs are exact but for rounding: there is nothing to gain."""
    return min(max((own - share) / own, 0.0), 1.0) if own > 1e-9 else 0.0


def _columns(model: ShareModel, module: str) -> int:
    """Pairs of directions that a module stores, shared and private."""
    shape = model.layers[module].shape
    left, right = model.layers[module].k
    private = sum(
        c.left.shape[1]
        for t in model.tasks.values()
        if isinstance(c := t.coefficients.get(module), Private)
    )
    return (left * shape.out_features + right * shape.in_features) // shape.sides + private
