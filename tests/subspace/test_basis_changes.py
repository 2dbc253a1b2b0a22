"""How the bases of successive Share models are compared."""

from __future__ import annotations

import math

import pytest

from builders import FULL, MODULE, adapter, build, relatives, strangers, update
from sharespace.subspace.merge import merge
from sharespace.subspace.similarity import settling, step_change


def test_a_merge_with_room_only_adds_directions() -> None:
    known, new = strangers(3), adapter("new", update(12, 9, 2, 77))
    before = build(known[:2], FULL)
    (step,) = settling([before, merge(before, [new])])
    assert step.max_angle == pytest.approx(0.0, abs=1e-6)
    assert step.overlap == pytest.approx(1.0)
    assert step.left[MODULE].k == (6, 8)
    assert step.grown == 4


def test_a_merge_at_the_cap_turns_the_bases() -> None:
    models = [build(strangers(2), 4)]
    for i in range(2, 5):
        models.append(merge(models[-1], [adapter(f"x{i}", update(12, 9, 3, 100 * i))]))
    steps = settling(models)
    assert len(steps) == 3
    for step in steps:
        assert step.max_angle is not None
        assert step.mean_angle is not None
        assert 0 < step.mean_angle < step.max_angle <= math.pi / 2
        assert step.left_angles == step.left[MODULE].angles
        assert step.right_angles == step.right[MODULE].angles
        assert len(step.left_angles) == len(step.right_angles) == 4
        assert step.max_angle == max(*step.left_angles, *step.right_angles)


def test_relatives_settle() -> None:
    """Tasks from one subspace: once it is known nothing moves any more."""
    family = relatives(6, k=3, rank=2)
    models = [build(family[:1], FULL)]
    for one in family[1:]:
        models.append(merge(models[-1], [one]))
    steps = settling(models)
    assert steps[-1].grown == 0
    assert steps[-1].max_angle == pytest.approx(0.0, abs=1e-5)


def test_angles_of_all_modules_stand_in_one_ascending_row() -> None:
    both = {m: update(12, 9, 3, s) for s, m in enumerate("mn")}
    before = build([adapter("a", both)], 2)
    (step,) = settling([before, merge(before, [adapter("b", update(12, 9, 3, 9))])])
    assert list(step.left_angles) == sorted(step.left_angles)
    assert len(step.left_angles) == sum(len(c.angles) for c in step.left.values())


def test_modules_without_a_basis_on_both_sides_are_left_out() -> None:
    one = build([adapter("a", {"m": update(8, 6, 2), "n": update(8, 6, 2, 1)})], FULL)
    two = build([adapter("a", {"m": update(8, 6, 2, 5), "o": update(8, 6, 2, 1)})], FULL)
    assert set(step_change(one, two).left) == {"m"}
    nothing = step_change(one, build([adapter("a", {"o": update(8, 6, 2)})], FULL))
    assert (nothing.mean_angle, nothing.max_angle, nothing.overlap) == (None, None, None)
    assert nothing.left_angles == nothing.right_angles == ()


def test_one_model_has_no_step() -> None:
    assert settling([build(strangers(1), FULL)]) == ()
