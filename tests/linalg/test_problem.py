"""One problem in other coordinates: the span of few tasks, frames for many, blocks of tasks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from builders import Family, families, frame, gauss, law, orthonormality, problem, update
from sharespace.linalg.joint import BlockSteps, StackSteps, choose_steps, hosvd, joint
from sharespace.linalg.problem import (
    BasisPair,
    UpdateProblem,
    frames_pay,
    has_few_wide_tasks,
    in_frames,
    in_span,
)
from sharespace.linalg.truncated import sketch_width
from sharespace.subspace.adapter import LayerUpdate

N, D = 205, 200
"""Sides that are wide enough for frames."""


def lost(tasks: UpdateProblem, bases: BasisPair) -> float:
    return tasks.total - tasks.energy(bases)


@law()
@given(
    family=families(tasks=(2, 6)),
    k=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    p=st.sampled_from([None, 1, 2]),
)
def test_blocks_take_the_steps_of_whole_stacks(
    family: Family, k: tuple[int, int], p: int | None
) -> None:
    tasks = problem(family.updates, p)
    blocks, whole = BlockSteps(tasks, k), StackSteps(tasks, k)
    for step in (blocks.hosvd(), whole.hosvd()):
        assert step.lost == pytest.approx(lost(tasks, step.bases), abs=1e-9)
    start = whole.hosvd()
    for swept in (blocks.sweep(start), whole.sweep(start)):
        assert swept.lost == pytest.approx(lost(tasks, swept.bases), abs=1e-9)
        assert swept.lost <= start.lost + 1e-9 * max(tasks.total, 1)
        assert orthonormality(swept.bases.left) <= 1e-9


def _related(count: int, noise: float) -> list[LayerUpdate]:
    left, right = frame(N, 6), frame(D, 6, 1)
    return [
        LayerUpdate(
            (left @ gauss(i, 6, 3) + noise * gauss(i + 400, N, 3)).float(),
            (gauss(i + 800, 3, 6) @ right.mT + noise * gauss(i + 1200, 3, D)).float(),
        )
        for i in range(count)
    ]


def _independent(count: int) -> list[LayerUpdate]:
    return [update(N, D, 3, i) for i in range(count)]


@pytest.mark.parametrize("p", [None, 2])
@pytest.mark.parametrize("kind", ["related", "noisy", "independent"])
def test_frames_lose_what_whole_stacks_lose(kind: str, p: int | None) -> None:
    noise = {"related": 0.05, "noisy": 0.5}
    tasks = problem(_related(150, noise[kind]) if kind in noise else _independent(150), p)
    assert frames_pay(tasks, (6, 6))
    # With a start no frames are looked for.
    whole = lost(tasks, joint(tasks, (6, 6), start=hosvd(tasks, (6, 6))))
    assert lost(tasks, joint(tasks, (6, 6))) <= 1.005 * whole


def test_what_fits_in_the_frames_is_exact() -> None:
    tasks = problem(_related(150, 0.0))
    assert frames_pay(tasks, (6, 6))
    bases = joint(tasks, (6, 6))
    assert bases.k == (6, 6)
    assert lost(tasks, bases) <= 1e-9 * tasks.total


def test_frames_hold_own_directions_where_these_may_be_better() -> None:
    """Two tasks that cross, among many weak ones that entered with large norms."""
    updates = [
        *(LayerUpdate(frame(N, 1, i), frame(D, 1, i).mT.contiguous()) for i in range(2)),
        *_independent(150),
    ]
    tasks = problem(updates)
    weak = torch.cat([tasks.weights[:2], 1e-3 * tasks.weights[2:]])
    strong = UpdateProblem(tasks.updates, weak)
    assert in_frames(strong, (2, 2)).left.shape[1] == sketch_width(2, N, 450) + 2
    related = problem(_related(150, 0.05))
    assert in_frames(related, (6, 6)).left.shape[1] == sketch_width(6, N, 450)
    assert strong.energy(joint(strong, (2, 2))) >= 2 - 1e-6


@pytest.mark.parametrize("p", [None, 1])
def test_few_tasks_are_solved_in_their_span(p: int | None) -> None:
    """With tasks of zeros beside them, which change nothing, they are no longer few."""
    few = [update(40, 30, 3, i, dtype=torch.float64) for i in range(4)]
    zeros = [LayerUpdate(torch.zeros(40, 3), torch.zeros(3, 30)) for _ in range(10)]
    tasks, padded = problem(few, p), problem([*few, *zeros], p)
    assert has_few_wide_tasks(tasks)
    assert not has_few_wide_tasks(padded)
    span = in_span(tasks)
    assert span.problem.updates.left.shape == (12, 12)
    assert span.problem.total == pytest.approx(tasks.total)
    k = (5, 4)
    start = hosvd(tasks, k)
    assert max(orthonormality(joint(tasks, k).left), orthonormality(start.right)) < 1e-12
    for in_the_span, outside in (
        (joint(tasks, k), joint(padded, k)),
        (start, hosvd(padded, k)),
        (joint(tasks, k, start=start), joint(padded, k, start=hosvd(padded, k))),
    ):
        assert lost(tasks, in_the_span) == pytest.approx(lost(tasks, outside), rel=1e-6)


def test_the_form_of_a_problem_decides_how_it_is_solved() -> None:
    many, few = problem([update(5, 4, 3, i) for i in range(9)]), problem([update(50, 40, 3)])
    assert isinstance(choose_steps(many, (3, 3)), BlockSteps)
    assert isinstance(choose_steps(few, (3, 3)), StackSteps)
    assert (has_few_wide_tasks(many), has_few_wide_tasks(few)) == (False, True)
    assert not frames_pay(many, (3, 3))
