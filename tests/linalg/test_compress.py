"""Updates out of core: what the frames hold, what they say is outside, no worse than own SVDs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from builders import Family, crossed, families, frame, gauss, law, orthonormality, problem, update
from sharespace.linalg.compress import (
    CompressedTasks,
    FrameSearch,
    compress,
    coordinates,
    problem_of,
)
from sharespace.linalg.factor_chunks import FactorReader, MeasuredNorms, chunks
from sharespace.linalg.joint import joint
from sharespace.linalg.problem import BasisPair
from sharespace.linalg.updates import weights
from sharespace.subspace.adapter import LayerUpdate

CPU = torch.device("cpu")
SLACK = {torch.float32: 2e-5, torch.float64: 1e-8}


def rows_of(
    updates: Sequence[LayerUpdate], chunk_bytes: int = 2000, dtype: torch.dtype = torch.float64
) -> FactorReader:
    """The updates as files would give them."""

    def read(task: int, left: Tensor, right: Tensor) -> None:
        left.copy_(updates[task].up.mT * updates[task].scaling)
        right.copy_(updates[task].down)

    n, d = updates[0].up.shape[0], updates[0].down.shape[1]
    ranks = tuple(u.up.shape[1] for u in updates)
    return FactorReader(n, d, ranks, dtype, CPU, read, chunk_bytes)


def dense(found: LayerUpdate) -> Tensor:
    return found.scaling * found.up.double() @ found.down.double()


def lost(found: CompressedTasks, wanted: FrameSearch) -> float:
    """Weighed squared error of the bases that the cores give."""
    small = problem_of(found, wanted)
    outside = float((small.weights.square() * found.outside).sum())
    return outside + small.total - small.energy(joint(small, wanted.k))


@law()
@given(
    family=families(tasks=(1, 8)), k=st.integers(1, 6), chunk=st.sampled_from([1, 700, 5000, 10**7])
)
def test_cores_and_what_is_outside_are_what_dense_arithmetic_says(
    family: Family, k: int, chunk: int
) -> None:
    found = compress(rows_of(family.updates, chunk, family.dtype), FrameSearch((k, k)))
    assert max(orthonormality(found.left), orthonormality(found.right)) < 1e-5
    left, right, slack = found.left.double(), found.right.double(), SLACK[family.dtype]
    for i, task in enumerate(map(dense, family.updates)):
        norm = float(task.norm())
        one = found.core.select([i])
        core = one.left.double() @ torch.diag(one.sigma.double()) @ one.right.double().mT
        assert float((core - left.mT @ task @ right).norm()) <= slack * norm + 1e-300
        assert float(found.norms[i]) == pytest.approx(norm, rel=slack, abs=1e-30)
        inside = left @ core @ right.mT
        assert math.sqrt(float(found.outside[i])) == pytest.approx(
            float((task - inside).norm()), rel=1e-2, abs=slack * norm + 1e-30
        )


@law()
@given(family=families(dtypes=[torch.float64], tasks=(2, 8)), k=st.integers(1, 5))
def test_it_is_never_worse_than_own_svds(family: Family, k: int) -> None:
    wanted = FrameSearch((k, k))
    found = compress(rows_of(family.updates), wanted)
    own = []
    for task in map(dense, family.updates):
        values = torch.linalg.svdvals(task)
        if float(values.norm()) > 0:
            own.append((values / values.norm()).square())
    left = torch.cat(own).sort(descending=True).values[k:].sum() if own else torch.zeros(())
    assert lost(found, wanted) <= float(left) + 1e-7 * len(family.updates)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("chunk", [1, 3000, 10**6])
def test_what_fits_in_k_directions_is_exact(dtype: torch.dtype, chunk: int) -> None:
    """Relatives that come in chunks and lie in six common directions a side."""
    left, right = frame(40, 6), frame(30, 6, 1)
    updates = [
        LayerUpdate((left @ gauss(i, 6, 3)).to(dtype), (gauss(i + 99, 3, 6) @ right.mT).to(dtype))
        for i in range(50)
    ]
    wanted = FrameSearch((6, 6))
    found = compress(rows_of(updates, chunk, dtype), wanted)
    assert float((found.outside.sqrt() / found.norms).max()) < SLACK[dtype] / 10
    small = problem_of(found, wanted)
    bases = joint(small, (6, 6))
    assert bases.k == (6, 6)
    assert small.total - small.energy(bases) < 1e-7 * small.total


@pytest.mark.parametrize("p", [None, 2])
@pytest.mark.parametrize("seed", range(3))
def test_related_tasks_lose_what_they_lose_in_memory(seed: int, p: int | None) -> None:
    left, right = frame(60, 5, seed), frame(50, 5, seed + 1)
    updates = [
        LayerUpdate(
            left @ gauss(seed + i, 5, 3) + 0.05 * gauss(seed + i + 40, 60, 3),
            gauss(seed + i + 80, 3, 5) @ right.mT,
        )
        for i in range(30)
    ]
    wanted = FrameSearch((5, 5), p)
    streamed = lost(compress(rows_of(updates, 20_000), wanted), wanted)
    whole = problem(updates, p)
    in_memory = whole.total - whole.energy(joint(whole, (5, 5)))
    assert streamed == pytest.approx(in_memory, rel=0.02)


@pytest.mark.parametrize("seed", range(4))
def test_independent_tasks_lose_little_more_than_in_memory(seed: int) -> None:
    updates = [update(60, 50, 3, 100 * seed + i, dtype=torch.float64) for i in range(25)]
    wanted = FrameSearch((8, 8))
    streamed = lost(compress(rows_of(updates, 10_000), wanted), wanted)
    whole = problem(updates)
    in_memory = whole.total - whole.energy(joint(whole, (8, 8)))
    assert math.sqrt(streamed) <= 1.05 * math.sqrt(in_memory)


def test_tied_tasks_are_captured_by_the_own_directions() -> None:
    """Each side's leading directions belong to other tasks, and hold nothing of any together."""
    wanted = FrameSearch((2, 2))
    assert lost(compress(rows_of(crossed(), 1), wanted), wanted) <= 2.0 + 1e-9


def test_badly_split_factors_are_balanced() -> None:
    """(B M, M^-1 A): the Gram matrices of the factors would enlarge rounding by cond(M)^2."""
    plain = [update(30, 20, 4, i) for i in range(6)]
    turn = torch.diag(torch.tensor([1e4, 1.0, 1e-4, 1e-2], dtype=torch.float64)) @ gauss(5, 4, 4)
    split = [
        LayerUpdate(
            (u.up.double() @ turn).float(), (torch.linalg.inv(turn) @ u.down.double()).float()
        )
        for u in plain
    ]
    found = compress(rows_of(split, 3000, torch.float32), FrameSearch((24, 24)))
    norms = torch.stack([dense(u).norm() for u in split])
    assert torch.allclose(found.norms, norms, rtol=1e-4)
    assert float((found.outside.sqrt() / norms).max()) < 1e-3


def test_known_bases_are_in_the_frames() -> None:
    known = BasisPair(frame(30, 3, 5), frame(20, 4, 6))
    updates = [update(30, 20, 2, i, dtype=torch.float64) for i in range(9)]
    found = compress(rows_of(updates), FrameSearch((4, 4), known=known))
    for whole, part in ((found.left, known.left), (found.right, known.right)):
        assert float((part - whole @ (whole.mT @ part)).norm()) < 1e-12


def test_weights_of_entry_decide_what_is_kept() -> None:
    """A task that entered with a small norm counts for more, whatever it is now."""
    updates = [update(30, 20, 1, i, dtype=torch.float64) for i in range(2)]
    entered = torch.tensor([1.0, 0.1], dtype=torch.float64)
    wanted = FrameSearch((1, 1), entry_norms=entered)
    found = compress(rows_of(updates), wanted)
    bases = joint(problem_of(found, wanted), (1, 1))
    left = found.left @ bases.left
    assert abs(float(left[:, 0] @ (updates[1].up[:, 0] / updates[1].up[:, 0].norm()))) > 0.99


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e38])
def test_numbers_that_cannot_be_computed_with_stop_it(value: float) -> None:
    bad = update(10, 8, 2)
    bad.up[3, 1] = value
    bad.down[0, 0] = value
    with pytest.raises(FloatingPointError):
        compress(rows_of([update(10, 8, 2, 1), bad], dtype=torch.float32), FrameSearch((2, 2)))


@law()
@given(ranks=st.lists(st.integers(1, 40), min_size=1, max_size=30), room=st.sampled_from([1, 5000]))
def test_chunks_hold_each_task_once_and_keep_to_their_room(ranks: list[int], room: int) -> None:
    rows = rows_of([update(6, 5, r, i, dtype=torch.float64) for i, r in enumerate(ranks)], room)
    seen: list[int] = []
    for chunk in chunks(rows):
        seen += chunk.tasks
        assert chunk.left.numel() + chunk.right.numel() <= max(room // 8, 11 * max(chunk.ranks))
    assert sorted(seen) == list(range(len(ranks)))


def test_one_pass_more_sees_the_same_in_the_same_frames() -> None:
    updates = [update(20, 15, 2, i, dtype=torch.float64) for i in range(7)]
    left, right = frame(20, 4), frame(15, 4, 1)
    norms = MeasuredNorms.none(len(updates))
    for chunk in chunks(rows_of(updates)):
        norms.put(chunk)
    some = coordinates(rows_of(updates, 1), left, right, norms, power=False)
    more = coordinates(rows_of(updates, 10**6), left, right, norms, power=True)
    assert torch.allclose(some.core.sigma, more.core.sigma)
    assert some.pushed[0].shape[1] == 0
    weighing = weights(more.norms).square()
    wanted = sum(
        w * dense(u) @ right @ right.mT @ dense(u).mT @ left
        for w, u in zip(weighing, updates, strict=True)
    )
    assert torch.allclose(more.pushed[0], torch.as_tensor(wanted))
