"""What becomes of tasks in new frames, against dense arithmetic."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from builders import canonical, dense_tasks, frame, gauss, law, update
from sharespace.linalg.frames import FrameChange
from sharespace.linalg.updates import CanonicalUpdates


def _inside(updates: CanonicalUpdates, left: Tensor, right: Tensor) -> list[Tensor]:
    """The updates, of m x m', in frames."""
    return [left @ task @ right.mT for task in dense_tasks(updates)]


@law()
@given(seed=st.integers(0, 999), m=st.integers(1, 5), k=st.integers(0, 5), p=st.integers(0, 4))
def test_differences_are_what_dense_arithmetic_says(seed: int, m: int, k: int, p: int) -> None:
    old = frame(9, m, seed), frame(8, m, seed + 1)
    new = gauss(seed, 9, k), gauss(seed + 1, 8, k)
    tasks = canonical([update(m, m, r, seed + r, dtype=torch.float64) for r in (1, min(2, m))])
    e, f = gauss(seed + 2, 2, p * k).reshape(2, p, k), gauss(seed + 3, 2, p * k).reshape(2, p, k)
    lost, stray = FrameChange.of(old, new).differences(tasks, e, f)
    for i, before in enumerate(_inside(tasks, *old)):
        after = new[0] @ e[i].mT @ f[i] @ new[1].mT
        inside = old[0] @ old[0].mT @ after @ old[1] @ old[1].mT
        assert float(lost[i]) == pytest.approx(float((before - after).norm()), rel=1e-9, abs=1e-12)
        assert float(stray[i]) == pytest.approx(float((after - inside).norm()), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_rounding_of_a_core_is_measured_and_not_lost_in_gram_matrices(seed: int) -> None:
    """The parts of the new frames outside of the old ones cancel over the rows of E and F."""
    new = frame(9, 5, seed), frame(8, 5, seed + 1)
    inner = frame(5, 2, seed + 2), frame(5, 2, seed + 3)
    old = new[0] @ inner[0], new[1] @ inner[1]
    tasks = canonical([update(2, 2, 2, seed, dtype=torch.float64)])
    core = inner[0] @ dense_tasks(tasks)[0] @ inner[1].mT
    rounded = core.float().double()
    change = FrameChange.of(old, new)
    lost, _ = change.differences(tasks, rounded.mT[None], torch.eye(5, dtype=torch.float64)[None])
    assert float(lost[0]) == pytest.approx(float((core - rounded).norm()), rel=1e-6)
