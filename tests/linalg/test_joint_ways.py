"""The ways to solve one problem: whole stacks, blocks of tasks, frames, the span of few tasks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from builders import Family, families, frame, gauss, law, orthonormality, problem, update
from sharespace.linalg import joint as module
from sharespace.linalg import truncated
from sharespace.linalg.joint import hosvd, joint
from sharespace.linalg.joint_shapes import (
    BlockSteps,
    few_wide,
    in_frames,
    in_span,
    many_small,
    many_wide,
)
from sharespace.linalg.out_of_core.passes import width
from sharespace.linalg.problem import BasisPair, StackSteps, UpdateProblem
from sharespace.subspace.adapter import LayerUpdate


def lost(found: UpdateProblem, bases: BasisPair) -> float:
    return found.total - found.energy(bases)


@law()
@given(
    family=families(tasks=(2, 6)),
    k=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    p=st.sampled_from([None, 1, 2]),
)
def test_blocks_take_the_steps_of_whole_stacks(
    family: Family, k: tuple[int, int], p: int | None
) -> None:
    found = problem(family.updates, p)
    blocks, whole = BlockSteps(found, k), StackSteps(found, k)
    for step in ("hosvd", "own"):
        one, other = getattr(blocks, step)(), getattr(whole, step)()
        assert one.energy == pytest.approx(found.energy(one.bases), abs=1e-9)
    start = whole.hosvd()
    one, other = blocks.sweep(start), whole.sweep(start)
    for swept in (one, other):
        assert swept.energy == pytest.approx(found.energy(swept.bases), abs=1e-9)
        assert swept.energy >= start.energy - 1e-9 * max(found.total, 1)
        assert orthonormality(swept.bases.left) <= 1e-9


def _related(count: int, noise: float, n: int = 90, d: int = 80) -> list[LayerUpdate]:
    left, right = frame(n, 6), frame(d, 6, 1)
    return [
        LayerUpdate(
            (left @ gauss(i, 6, 3) + noise * gauss(i + 400, n, 3)).float(),
            (gauss(i + 800, 3, 6) @ right.mT + noise * gauss(i + 1200, 3, d)).float(),
        )
        for i in range(count)
    ]


def _strangers(count: int) -> list[LayerUpdate]:
    return [update(90, 80, 3, i) for i in range(count)]


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sides of 80 are wide."""
    monkeypatch.setattr(truncated, "EXACT_SIDE", 16)


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("p", [None, 2])
@pytest.mark.parametrize("updates", [_related(150, 0.05), _related(150, 0.5), _strangers(150)])
def test_frames_lose_what_whole_stacks_lose(
    updates: list[LayerUpdate], p: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = problem(updates, p)
    assert many_wide(found, (6, 6))
    framed = lost(found, joint(found, (6, 6)))
    monkeypatch.setattr(module, "many_wide", lambda *_: False)
    assert framed <= 1.005 * lost(found, joint(found, (6, 6)))


@pytest.mark.usefixtures("wide")
def test_what_fits_in_the_frames_is_exact() -> None:
    found = problem(_related(150, 0.0))
    bases = joint(found, (6, 6))
    assert bases.k == (6, 6)
    assert lost(found, bases) <= 1e-9 * found.total


@pytest.mark.usefixtures("wide")
def test_frames_hold_own_directions_where_these_may_be_better() -> None:
    """Two tasks that cross, among many weak ones that entered with large norms."""
    updates = [
        *(LayerUpdate(frame(90, 1, i), frame(80, 1, i).mT.contiguous()) for i in range(2)),
        *_strangers(150),
    ]
    found = problem(updates)
    weak = torch.cat([found.weights[:2], 1e-3 * found.weights[2:]])
    strong = UpdateProblem(found.updates, weak)
    assert in_frames(strong, (2, 2)).left.shape[1] == width(2, 90, 450) + 2
    assert in_frames(problem(_related(150, 0.05)), (6, 6)).left.shape[1] == width(6, 90, 450)
    assert strong.energy(joint(strong, (2, 2))) >= 2 - 1e-6


@pytest.mark.parametrize("p", [None, 1])
def test_few_tasks_are_solved_in_their_span(p: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    found = problem([update(40, 30, 3, i, dtype=torch.float64) for i in range(4)], p)
    assert few_wide(found)
    span = in_span(found)
    assert span.problem.updates.left.shape == (12, 12)
    assert span.problem.total == pytest.approx(found.total)
    bases, start = joint(found, (5, 4)), hosvd(found, (5, 4))
    assert max(orthonormality(bases.left), orthonormality(start.right)) < 1e-12
    continued = joint(found, (5, 4), start=start)
    monkeypatch.setattr(module, "few_wide", lambda *_: False)
    for mine, theirs in (
        (bases, joint(found, (5, 4))),
        (start, hosvd(found, (5, 4))),
        (continued, joint(found, (5, 4), start=start)),
    ):
        assert lost(found, mine) == pytest.approx(lost(found, theirs), rel=1e-6)


def test_which_way_is_taken() -> None:
    many, few = problem([update(5, 4, 3, i) for i in range(9)]), problem([update(50, 40, 3)])
    assert (many_small(many), few_wide(many)) == (True, False)
    assert (many_small(few), few_wide(few)) == (False, True)
    assert not many_wide(many, (3, 3))
