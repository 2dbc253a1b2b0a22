"""Principal angles against scipy, CKA against its dense definition, and their invariances."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from builders import adapter, dense, frame, gauss, law, update
from sharespace.errors import MismatchError
from sharespace.subspace.adapter import LayerUpdate
from sharespace.subspace.similarity import (
    UpdateSide,
    adapters_cka,
    linear_cka,
    overlap,
    principal_angles,
)

subspace_angles = pytest.importorskip("scipy.linalg").subspace_angles
SEED = st.integers(0, 10_000)
WIDTH = st.integers(1, 8)
SIDE = st.sampled_from(["left", "right"])


def turned_by(angles: Sequence[float], n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Two subspaces with exactly these angles between them, in bases that show none of it."""
    q, count = frame(n, 2 * len(angles), seed), len(angles)
    turn = torch.tensor(angles, dtype=torch.float64)
    other = q[:, :count] * turn.cos() + q[:, count:] * turn.sin()
    return q[:, :count] @ frame(count, count, seed + 1), other @ frame(count, count, seed + 2)


@law(50)
@given(SEED, st.integers(8, 20), WIDTH, WIDTH)
def test_angles_are_those_of_scipy(seed: int, n: int, a: int, b: int) -> None:
    one, two = frame(n, a, seed), frame(n, b, seed + 1)
    found = principal_angles(one, two)
    expected = subspace_angles(one.numpy(), two.numpy())[::-1].copy()
    assert found.shape == (min(a, b),)
    # scipy's own error at angle 0 is 2e-8; the next test is sharper.
    assert torch.allclose(found, torch.from_numpy(expected), atol=1e-7)


@law(50)
@given(SEED, st.lists(st.floats(0, math.pi / 2), min_size=1, max_size=4))
def test_angles_are_found_whatever_the_bases(seed: int, angles: list[float]) -> None:
    one, two = turned_by(angles, 10, seed)
    assert torch.allclose(
        principal_angles(one, two), torch.tensor(sorted(angles), dtype=torch.float64), atol=1e-12
    )


@law()
@given(SEED, WIDTH, WIDTH)
def test_angles_know_no_order_and_no_basis(seed: int, a: int, b: int) -> None:
    one, two = frame(12, a, seed), frame(12, b, seed + 1)
    found = principal_angles(one, two)
    mixed = principal_angles(two, one @ gauss(seed + 3, a, a).add(3 * torch.eye(a)))
    assert torch.allclose(found, mixed, atol=1e-8)
    rotation = frame(12, 12, seed + 4)
    assert torch.allclose(found, principal_angles(rotation @ one, rotation @ two), atol=1e-10)


def test_small_angles_keep_their_digits() -> None:
    """An arc cosine would give 0 for both."""
    one, two = turned_by([1e-10, 3e-9], 9, 1)
    assert torch.allclose(
        principal_angles(one, two), torch.tensor([1e-10, 3e-9], dtype=torch.float64), rtol=1e-4
    )


def test_a_subspace_in_another_has_no_angle_to_it() -> None:
    q = frame(20, 6)
    assert principal_angles(q[:, :2], q).max() < 1e-14
    assert overlap(q[:, :2], q) == pytest.approx(1.0)
    assert principal_angles(q[:, :2], q[:, 2:5]).tolist() == pytest.approx([math.pi / 2] * 2)
    assert overlap(q[:, :2], q[:, 2:5]) == pytest.approx(0.0, abs=1e-14)


def test_bases_of_16_bits_are_made_orthonormal_again() -> None:
    q = frame(64, 8).to(torch.bfloat16)
    assert principal_angles(q, q).max() < 1e-12
    assert overlap(q, q) == pytest.approx(1.0, abs=1e-12)


@law()
@given(SEED, WIDTH, WIDTH)
def test_overlap_is_the_mean_squared_cosine(seed: int, a: int, b: int) -> None:
    one, two = frame(11, a, seed), frame(11, b, seed + 1)
    cosines = principal_angles(one, two).cos()
    assert overlap(one, two) == pytest.approx(float(cosines.square().mean()))


def test_random_subspaces_overlap_by_chance_as_stated() -> None:
    found = [overlap(frame(30, 4, 2 * s), frame(30, 6, 2 * s + 1)) for s in range(200)]
    assert sum(found) / 200 == pytest.approx(6 / 30, abs=0.02)


def test_what_cannot_be_compared_is_refused() -> None:
    assert principal_angles(frame(5, 2), torch.zeros(5, 0)).shape == (0,)
    with pytest.raises(MismatchError, match="no dimension"):
        overlap(frame(5, 2), torch.zeros(5, 0))
    with pytest.raises(MismatchError, match="5 and of 6"):
        principal_angles(frame(5, 2), frame(6, 2))
    with pytest.raises(MismatchError, match="one module"):
        linear_cka([update(5, 4, 2), update(4, 5, 2)])


def by_definition(one: Tensor, two: Tensor, centred: bool) -> float:
    """Kornblith et al., equation 4: HSIC of the linear kernels, with n x n matrices."""
    n = one.shape[0]
    centre = torch.eye(n, dtype=torch.float64) - (1 / n if centred else 0)
    kernels = [centre @ x @ x.mT @ centre for x in (one, two)]
    product = (kernels[0] * kernels[1]).sum()
    return float(product / (kernels[0].norm() * kernels[1].norm()))


def pair(found: list[list[float | None]]) -> float:
    value = found[0][1]
    assert value is not None
    assert value == found[1][0]
    return value


@law(50)
@given(SEED, SIDE, st.booleans(), WIDTH, WIDTH)
def test_cka_is_its_dense_definition(
    seed: int, side: UpdateSide, centred: bool, r: int, other: int
) -> None:
    updates = [update(9, 6, r, seed, scaling=2.0), update(9, 6, other, seed + 1, norm=1e-3)]
    matrices = [dense(u) if side == "left" else dense(u).mT for u in updates]
    found = linear_cka(updates, side=side, centred=centred)
    assert pair(found) == pytest.approx(by_definition(matrices[0], matrices[1], centred), abs=1e-9)
    assert found[0][0] == pytest.approx(1.0)


def test_uncentred_right_cka_is_that_of_outputs_for_white_inputs() -> None:
    updates = [update(9, 6, 3, 1), update(9, 6, 2, 2)]
    inputs = torch.linalg.qr(gauss(3, 40, 6))[0]  # exactly white
    outputs = [inputs @ dense(u).mT for u in updates]
    found = linear_cka(updates, side="right", centred=False)
    assert pair(found) == pytest.approx(by_definition(outputs[0], outputs[1], False))


def changed(
    found: LayerUpdate, change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
) -> LayerUpdate:
    return LayerUpdate(*change(found.up.double(), found.down.double()), found.scaling)


@law()
@given(SEED, SIDE, st.booleans(), st.floats(1e-3, 1e3))
def test_cka_knows_no_scale_and_no_rotation_of_the_other_side(
    seed: int, side: UpdateSide, centred: bool, scale: float
) -> None:
    one, two = update(8, 7, 3, seed), update(8, 7, 2, seed + 1)
    turn = frame(8, 8, seed + 2) if side == "right" else frame(7, 7, seed + 2)

    def moved(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
        return (scale * turn @ up, down) if side == "right" else (scale * up, down @ turn)

    before = pair(linear_cka([one, two], side=side, centred=centred))
    after = pair(linear_cka([changed(one, moved), two], side=side, centred=centred))
    assert after == pytest.approx(before, abs=1e-9)
    assert 0 <= before <= 1


@law()
@given(SEED)
def test_cka_knows_no_split_of_the_factors(seed: int) -> None:
    one, two = update(8, 7, 3, seed), update(8, 7, 2, seed + 1)
    mix = gauss(seed + 2, 3, 3) + 4 * torch.eye(3, dtype=torch.float64)
    split = changed(one, lambda up, down: (up @ mix, torch.linalg.solve(mix, down)))
    assert pair(linear_cka([split, two])) == pytest.approx(pair(linear_cka([one, two])), abs=1e-9)


def test_equal_output_directions_are_seen_from_the_left_only() -> None:
    left = frame(30, 2)
    one = LayerUpdate(left, frame(40, 2, 1).mT)
    two = LayerUpdate(left @ frame(2, 2, 5), frame(40, 2, 2).mT)
    assert pair(linear_cka([one, two], side="left")) == pytest.approx(1.0)
    assert pair(linear_cka([one, two], side="right")) < 0.2


def test_a_zero_or_constant_update_has_no_cka() -> None:
    one = update(6, 5, 2)
    zero = LayerUpdate(torch.zeros(6, 2), one.down)
    constant = LayerUpdate(torch.ones(6, 1), torch.ones(1, 5))
    assert linear_cka([one, zero])[1] == [None, None]
    assert linear_cka([one, constant])[1] == [None, None]
    assert linear_cka([one, constant], centred=False)[1][1] == pytest.approx(1.0)


def test_adapters_compare_what_they_have_in_common() -> None:
    first, second, third = (update(9, 6, 2, s) for s in (1, 2, 3))
    made = [
        adapter("a", {"m": first, "n": second}),
        adapter("b", {"m": first, "n": third}),
        adapter("c", {"other": third}),
    ]
    found = adapters_cka(made)
    expected = (1 + pair(linear_cka([second, third]))) / 2
    assert found.names == ("a", "b", "c")
    assert found.values[0][1] == pytest.approx(expected)
    assert found.values[2][:2] == (None, None)
    assert found.mean == pytest.approx(expected)
    assert adapters_cka(made[2:]).mean is None


def test_large_modules_are_never_multiplied_out() -> None:
    """Of 400,000 x 300,000 numbers an n x d or n x n matrix would not fit."""
    updates = [LayerUpdate(gauss(s, 400_000, 2), gauss(s + 9, 2, 300_000)) for s in (0, 1)]
    assert pair(linear_cka(updates)) < 0.01
