"""Joint bases: sweeps only gain, two starts, ties."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from builders import (
    Family,
    crossed,
    dense_tasks,
    families,
    frame,
    gauss,
    law,
    orthonormality,
    problem,
    update,
)
from sharespace.linalg import truncated
from sharespace.linalg.joint import choose_steps, hosvd, joint
from sharespace.linalg.problem import BasisPair, UpdateProblem
from sharespace.subspace.adapter import LayerUpdate

P = st.sampled_from([None, 1, 2, 3])


def lost(found: UpdateProblem, bases: BasisPair) -> float:
    """Weighed squared error after truncation to rank p, by dense arithmetic."""
    total = 0.0
    for weight, task in zip(found.weights.tolist(), dense_tasks(found.updates), strict=True):
        core = bases.left.double().mT @ task @ bases.right.double()
        values = torch.linalg.svdvals(core)[: found.p].square().sum() if core.numel() else 0.0
        total += weight**2 * float(task.square().sum() - values)
    return total


@law()
@given(family=families(tasks=(2, 6)), k=st.tuples(st.integers(1, 6), st.integers(1, 6)), p=P)
def test_energy_is_what_dense_arithmetic_says(
    family: Family, k: tuple[int, int], p: int | None
) -> None:
    found = problem(family.updates, p)
    bases = hosvd(found, k)
    assert found.total - found.energy(bases) == pytest.approx(lost(found, bases), abs=1e-9)


@law()
@given(family=families(tasks=(2, 6)), k=st.tuples(st.integers(1, 6), st.integers(1, 6)), p=P)
def test_a_sweep_never_raises_the_weighed_error(
    family: Family, k: tuple[int, int], p: int | None
) -> None:
    """Ordinary sweeps, followed by truncation to p, can."""
    _check_sweeps(problem(family.updates, p), k)


@pytest.mark.parametrize("p", [None, 1, 2])
@pytest.mark.parametrize("k", [(3, 5), (12, 6)])
@pytest.mark.parametrize("kind", ["independent", "related"])
def test_a_sweep_that_is_one_step_of_subspace_iteration_never_raises_it(
    kind: str, k: tuple[int, int], p: int | None
) -> None:
    """Of sides and tasks that are too many for exact decompositions."""
    left, right = frame(200, 8), frame(200, 8, 1)
    tasks = [update(200, 200, 3, i, dtype=torch.float64) for i in range(70)]
    if kind == "related":
        noise = [0.02 * gauss(i + 300, 200, 3) for i in range(70)]
        tasks = [
            LayerUpdate(left @ gauss(i, 8, 3) + noise[i], gauss(i, 3, 8) @ right.mT)
            for i in range(70)
        ]
    found = problem(tasks, p)
    assert min(*found.updates.left.shape, 200) > truncated.EXACT_SIDE
    _check_sweeps(found, k)


def _check_sweeps(found: UpdateProblem, k: tuple[int, int]) -> None:
    method = choose_steps(found, k)
    now = method.hosvd()
    before = lost(found, now.bases)
    for _ in range(3):
        now = method.sweep(now)
        after = lost(found, now.bases)
        assert after <= before + 1e-9 * max(found.total, 1)
        assert orthonormality(now.bases.left) <= 1e-9
        before = after


@pytest.mark.parametrize("seed", [28, 149, *range(20)])
@pytest.mark.parametrize("k", [(2, 2), (4, 4)])
def test_a_sweep_knows_what_truncation_to_p_will_take(seed: int, k: tuple[int, int]) -> None:
    """A sweep for all of the cores raises the error of their first directions in one of ten."""
    tasks = [update(6, 5, 4, 1000 * seed + i, dtype=torch.float64) for i in range(4)]
    found = problem(tasks, 1)
    now = choose_steps(found, k).hosvd()
    for _ in range(3):
        following = choose_steps(found, k).sweep(now)
        assert lost(found, following.bases) <= lost(found, now.bases) + 1e-9
        now = following


@law()
@given(family=families(tasks=(2, 5)), k=st.integers(1, 6), p=P)
def test_joint_is_not_worse_than_hosvd(family: Family, k: int, p: int | None) -> None:
    found = problem(family.updates, p)
    bases = joint(found, (k, k))
    assert max(bases.k) <= k
    assert lost(found, bases) <= lost(found, hosvd(found, (k, k))) + 1e-9 * max(found.total, 1)


def test_sweeps_gain_where_the_sides_depend_on_each_other() -> None:
    found = problem([update(12, 10, 3, i, dtype=torch.float64) for i in range(6)])
    start = hosvd(found, (3, 3))
    assert lost(found, joint(found, (3, 3), start=start)) < 0.99 * lost(found, start)


def test_hosvd_alone_can_choose_different_tasks_left_and_right() -> None:
    found = problem(crossed())
    assert found.energy(hosvd(found, (1, 1))) < 1e-9
    assert found.energy(joint(found, (1, 1))) == pytest.approx(1.0, abs=1e-9)


def test_the_second_start_finds_what_sweeps_from_hosvd_do_not() -> None:
    """Three weak tasks share much with each side's direction and little with the pair of both; a
    fourth of rank 1 is worth more than the three together, but no sweep leads there."""
    found = problem(decoys())
    now = choose_steps(found, (1, 1)).hosvd()
    for _ in range(9):
        now = choose_steps(found, (1, 1)).sweep(now)
    assert found.energy(now.bases) < 0.95
    assert found.energy(joint(found, (1, 1))) == pytest.approx(1.0, abs=1e-6)


def decoys() -> list[LayerUpdate]:
    """x and y are the leading directions of the two sides; each core has a little energy there."""
    left, right = frame(8, 5), frame(8, 5, 1)
    little, much = 0.05**0.5, 0.475**0.5
    tasks = [LayerUpdate(left[:, 4:], right[:, 4:].mT.contiguous())]
    for i in (1, 2, 3):
        x, w = left[:, :1], left[:, i : i + 1]
        y, z = right[:, :1], right[:, i : i + 1]
        down = torch.cat([little * y + much * z, much * y], dim=1).mT
        tasks.append(LayerUpdate(torch.cat([x, w], dim=1), down.contiguous()))
    return tasks


def test_the_numerical_rank_limits_k() -> None:
    found = problem([update(12, 10, 2, 1, dtype=torch.float64)] * 3)
    assert joint(found, (9, 9)).k == (2, 2)


def test_bases_first_takes_the_leading_directions() -> None:
    bases = BasisPair(frame(6, 4), frame(5, 3))
    assert bases.first((2, 1)).k == (2, 1)
    assert torch.equal(bases.first((2, 1)).left, bases.left[:, :2])
