"""What a task may take: losses are true, sizes are the stored ones, every task takes the best."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from builders import dense_tasks, frame, gauss, law, problem, update
from sharespace.linalg.joint import hosvd
from sharespace.linalg.problem import UpdateProblem
from sharespace.linalg.task_options import TaskChoices, TaskOptions, task_options
from sharespace.subspace.adapter import LayerUpdate, ModuleShape
from sharespace.subspace.build_budgeted import project_mixed
from sharespace.subspace.layer import LayerSubspace


def _related(count: int, n: int = 20, d: int = 16, k: int = 3, seed: int = 0) -> list[LayerUpdate]:
    left, right = frame(n, k, seed), frame(d, k, seed + 1)
    return [
        LayerUpdate(left @ gauss(seed + i, k, 2), gauss(seed + 50 + i, 2, k) @ right.mT)
        for i in range(count)
    ]


def _options(found: UpdateProblem, itemsize: int = 4) -> TaskOptions:
    return task_options(found, hosvd(found, (10_000, 10_000)), itemsize)


@pytest.mark.parametrize("p", [None, 1, 2])
def test_the_losses_are_those_of_truncated_cores(p: int | None) -> None:
    tasks = [update(9, 7, 3, i, norm=i + 1.0, dtype=torch.float64) for i in range(4)]
    found = problem(tasks, p)
    options = _options(found)
    assert options.lost.shape[3] == (p or 3) + 1
    for i, task in enumerate(dense_tasks(found.updates)):
        for x, a in enumerate(options.ladders[0].tolist()):
            for y, b in enumerate(options.ladders[1].tolist()):
                core = options.bases.left[:, :a].mT @ task @ options.bases.right[:, :b]
                kept = torch.linalg.svdvals(core).square()
                for rank in range(options.lost.shape[3]):
                    if rank > min(a, b) or max(a, b) > 6 * min(a, b):
                        continue
                    wanted = float(task.square().sum() - kept[:rank].sum())
                    assert float(options.lost[x, y, i, rank]) == pytest.approx(wanted, abs=1e-9)


def test_a_faint_last_direction_counts_in_float32() -> None:
    """1e-4 of the norm is 1e-8 of the energy: below the rounding of a difference of squares."""
    one = update(12, 12, 3, 5, dtype=torch.float64)
    u, _, vh = torch.linalg.svd(one.up @ one.down)
    s = torch.tensor([1.0, 0.5, 1e-4], dtype=torch.float64)
    faint = LayerUpdate(u[:, :3] * s, vh[:3])
    options = _options(problem([faint] * 4, None, torch.float32))
    assert float(options.lost[1, 1, 0, 2]) == pytest.approx(1e-8, rel=0.01)
    assert float(options.lost[2, 2, 0, 3]) == 0


@law()
@given(
    related=st.integers(0, 5),
    independent=st.integers(0, 4),
    seed=st.integers(0, 99),
    exponent=st.floats(-9, -1),
    p=st.sampled_from([None, 1, 2]),
)
def test_what_is_stored_is_what_was_chosen(
    related: int, independent: int, seed: int, exponent: float, p: int | None
) -> None:
    tasks = _related(related + 1, seed=seed)
    tasks += [update(20, 16, 3, seed + i, dtype=torch.float64) for i in range(independent)]
    found = problem(tasks, p)
    options = _options(found, 8)
    chosen = options.choose(10.0**exponent, found.weights)
    layer = LayerSubspace(
        ModuleShape(20, 16),
        options.bases.left[:, : chosen.k[0]].contiguous(),
        options.bases.right[:, : chosen.k[1]].contiguous(),
    )
    stored = project_mixed(found.updates, layer, chosen)
    assert layer.nbytes + sum(c.nbytes for c in stored.coefficients) <= chosen.nbytes
    torch.testing.assert_close(stored.lost.square(), chosen.lost, rtol=1e-6, atol=1e-12)
    assert all(int(chosen.rank[i]) <= (p or 3) for i in chosen.inside)


def test_at_one_price_no_task_could_do_better() -> None:
    """Every task's choice is the cheapest of all it could take, one by one."""
    found = problem([*_related(6), update(20, 16, 3, 7, dtype=torch.float64)])
    options, price = _options(found), 1e-5
    chosen = options.choose(price, found.weights)
    assert chosen.k != (0, 0)
    for i in range(7):
        cost = float(found.weights[i] ** 2 * chosen.lost[i]) + price * _bytes(options, chosen, i)
        assert cost <= min(_costs(options, found, chosen.k, i, price)) + 1e-15


def _bytes(options: TaskOptions, chosen: TaskChoices, task: int) -> float:
    a, b, rank = int(chosen.left[task]), int(chosen.right[task]), int(chosen.rank[task])
    if not a:
        return options.itemsize * sum(options.sides) * rank
    return options.itemsize * ((a + b) * rank if rank < min(a, b) else a * b)


def _costs(
    options: TaskOptions, found: UpdateProblem, k: tuple[int, int], task: int, price: float
) -> list[float]:
    square = float(found.weights[task] ** 2)
    own = [
        square * float(lost) + price * options.itemsize * sum(options.sides) * q
        for q, lost in enumerate(options.own_lost[task])
    ]
    shared = [
        square * float(options.lost[x, y, task, rank])
        + price * options.itemsize * ((a + b) * rank if rank < min(a, b) else a * b)
        for x, a in enumerate(options.ladders[0].tolist())
        for y, b in enumerate(options.ladders[1].tolist())
        for rank in range(options.lost.shape[3])
        if a <= k[0] and b <= k[1]
    ]
    return own + shared


def test_an_outlier_among_related_tasks_is_stored_by_its_own_svd() -> None:
    found = problem([*_related(30, 40, 40), update(40, 40, 2, 3, dtype=torch.float64)])
    chosen = _options(found).choose(1e-4, found.weights)
    assert chosen.inside == list(range(30))
    assert int(chosen.rank[30]) == 2


def test_independent_tasks_have_no_common_bases() -> None:
    tasks = [LayerUpdate(frame(60, 2, i), frame(60, 2, i + 9).mT.contiguous()) for i in range(20)]
    found = problem(tasks)
    for price in (1e-3, 1e-4, 1e-5, 1e-6):
        assert _options(found).choose(price, found.weights).k == (0, 0)


def test_zero_updates_take_nothing() -> None:
    zero = LayerUpdate(torch.zeros(9, 2), torch.ones(2, 7))
    found = problem([zero, zero], None, torch.float32)
    chosen = _options(found).choose(1e-9, found.weights)
    assert chosen.k == (0, 0)
    assert chosen.nbytes == 0
    assert chosen.rank.tolist() == [0, 0]


def test_weights_decide_which_task_gets_the_bytes() -> None:
    tasks = [update(9, 7, 2, i, dtype=torch.float64) for i in range(2)]
    found = problem(tasks)
    heavy = replace(found, weights=torch.tensor([1.0, 1e-6], dtype=torch.float64))
    chosen = _options(heavy).choose(1e-3, heavy.weights)
    assert chosen.rank.tolist()[0] > 0
    assert chosen.rank.tolist()[1] == 0
