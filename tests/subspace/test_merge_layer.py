"""Merging into one layer: the paper's method as published, and forms that must not grow."""

from __future__ import annotations

import torch

from builders import gauss
from sharespace.linalg.dimension import Dimension
from sharespace.subspace.adapter import Adapter, LayerUpdate
from sharespace.subspace.build import initialise
from sharespace.subspace.coefficients import Core, Factors
from sharespace.subspace.merge import merge
from sharespace.subspace.state import BuildSettings, reconstruct


def adapter(name: str, seed: int, rank: int = 2, scale: float = 1.0) -> Adapter:
    """The split between B and A is lopsided by ``scale``."""
    up, down = gauss(seed, 20, rank) * scale, gauss(seed + 100, rank, 16) / scale
    return Adapter.from_updates(name, {"m": LayerUpdate(up, down)})


def test_share_merges_by_the_factors_as_they_came() -> None:
    """Paper, step 3: SVD of the stacked factors, whose split is not ours to change."""
    old = [adapter("a", 1, scale=3.0), adapter("b", 2, scale=0.5)]
    model = initialise(old, Dimension(k=4), BuildSettings(method="share"))
    new = adapter("c", 3, scale=2.0)
    merged = merge(model, [new])
    layer = model.layers["m"]
    coefficients = [t.coefficients["m"] for t in model.tasks.values()]
    assert all(isinstance(c, Factors) for c in coefficients)
    factors = [layer.left_basis @ c.left for c in coefficients if isinstance(c, Factors)]
    stack = torch.cat([*factors, new.layer("m").up], dim=1)
    expected = torch.linalg.svd(stack, full_matrices=False)[0][:, :4]
    basis = merged.layers["m"].left_basis
    assert torch.allclose(basis @ basis.mT, expected @ expected.mT, atol=1e-10)


def test_a_core_becomes_factors_exactly_where_it_would_grow_with_k_squared() -> None:
    core = Core(gauss(5, 3, 3))
    grown = core.grown((30, 40))
    assert isinstance(grown, Factors)
    dense = grown.left @ grown.right.mT
    assert dense[:3, :3].equal(core.matrix)
    assert dense.norm() == core.matrix.norm()
    assert isinstance(core.grown((4, 4)), Core)


def test_many_exact_merges_keep_every_task() -> None:
    tasks = [adapter(f"t{i}", 10 * i) for i in range(8)]
    model = initialise(tasks[:1], Dimension(variance=1.0))
    for one in tasks[1:]:
        model = merge(model, [one])
    for one in tasks:
        found, meant = reconstruct(model, one.name)["m"], one.layer("m")
        dense = meant.up @ meant.down
        assert (found.up @ found.down - dense).norm() < 1e-12 * dense.norm()
    assert model.layers["m"].k == (16, 16)


def test_zero_rows_of_an_exact_merge_are_not_counted_as_bytes() -> None:
    model = initialise([adapter("a", 1), adapter("b", 2)], Dimension(variance=1.0))
    before = model.tasks["a"].coefficients["m"].nbytes
    after = merge(model, [adapter("c", 3)]).tasks["a"].coefficients["m"]
    assert isinstance(after, Factors)
    assert after.left.shape[0] == 6
    assert after.nbytes == before
