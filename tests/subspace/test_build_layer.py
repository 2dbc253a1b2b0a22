"""One layer: reading with scaling and dtypes, weights of entry, certificates."""

from __future__ import annotations

import pytest
import torch

from builders import MODULE, adapter, build, dense, problem, update, worst
from sharespace.errors import CorruptAdapterError
from sharespace.linalg.dimension import Dimension
from sharespace.linalg.joint import hosvd
from sharespace.subspace.adapter import Adapter, LayerUpdate
from sharespace.subspace.build import initialise
from sharespace.subspace.build_layer import Build, certify, read_pairs, read_problem, stored_basis
from sharespace.subspace.state import BuildSettings

CPU = torch.device("cpu")


def test_scaling_is_applied_before_anything_is_rounded() -> None:
    """1/3 of a float16 factor is not a float16 number."""
    one = update(6, 4, 2, dtype=torch.float16, scaling=1 / 3)
    ((up, down),) = read_pairs([adapter("a", one)], MODULE, CPU)
    assert up.dtype == torch.float32
    wanted = dense(one)
    assert float((up.double() @ down.double().mT - wanted).norm()) <= 1e-7 * float(wanted.norm())


@pytest.mark.parametrize("scaling", [2.0, -0.5, 1e-3])
def test_the_scaling_is_part_of_the_task(scaling: float) -> None:
    base = update(6, 4, 2)
    one = [adapter("a", LayerUpdate(base.up, base.down, scaling))]
    assert worst(build(one, 4), one) < 1e-6


def _build(entry: dict[str, dict[str, float]]) -> Build:
    return Build(BuildSettings(), Dimension(k=2), torch.float32, CPU, entry_norms=entry)


def test_the_norm_of_entry_is_the_weight_where_it_is_known() -> None:
    members: list[Adapter] = [adapter("old", update(6, 4, 2)), adapter("new", update(6, 4, 2, 1))]
    found = read_problem(MODULE, members, _build({"old": {MODULE: 4.0}}))
    assert found.weights.tolist() == pytest.approx([0.25, 1.0], rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_certificate_of_an_exact_basis_is_rounding(dtype: torch.dtype) -> None:
    """Not the square root of rounding, as a difference of energies would be."""
    found = problem([update(9, 8, 2, i, dtype=torch.float64) for i in range(3)], None, dtype)
    certificate = certify(found, hosvd(found, (9, 9)))
    assert 0 <= certificate.bound < (1e-5 if dtype == torch.float32 else 1e-13)


def test_a_certificate_counts_both_sides_and_the_rank() -> None:
    found = problem([update(9, 8, 4, i, dtype=torch.float64) for i in range(3)], 2)
    whole = hosvd(found, (9, 8))
    tails = sum(
        float(
            (torch.linalg.svdvals(dense(update(9, 8, 4, i, dtype=torch.float64)))[2:]).norm() ** 2
        )
        for i in range(3)
    )
    exact = certify(found, whole)
    assert exact.rank_tail == pytest.approx(tails)
    left, right = certify(found, whole.first((3, 8))), certify(found, whole.first((9, 3)))
    assert left.discarded_left > 0.01 > left.discarded_right
    assert right.discarded_right > 0.01 > right.discarded_left


def test_a_stored_basis_owns_contiguous_memory() -> None:
    wide = torch.randn(8, 6).mT
    kept = stored_basis(wide[:, :2], torch.float32)
    assert kept.is_contiguous()
    assert kept.untyped_storage().nbytes() == kept.nbytes


def test_factors_too_large_to_compute_with_are_named() -> None:
    huge = LayerUpdate(torch.full((6, 2), 3e38), torch.full((2, 5), 3e38))
    adapter = Adapter.from_updates("diverged", {"m": huge})
    with pytest.raises(CorruptAdapterError, match="diverged"):
        initialise([adapter], Dimension(k=2))
