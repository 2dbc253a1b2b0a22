"""Cosines, explained variance, trees and maps, judged by dense arithmetic."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from builders import adapter, build, frame, gauss, law, relatives, stored_dense
from report.samples import MODULES, made
from sharespace.report.study import classical_scaling, explained_variance, relations, study
from sharespace.subspace.adapter import LayerUpdate
from sharespace.subspace.coefficients import Core, PerTask
from sharespace.subspace.state import ShareModel
from store.models import model as weird_model


def dense_cosine(model: ShareModel, one: str, two: str) -> float:
    found = []
    for module in model.tasks[one].coefficients:
        if module in model.tasks[two].coefficients:
            a, b = (stored_dense(model, n, module).flatten() for n in (one, two))
            found.append(float(a @ b / (a.norm() * b.norm())))
    return sum(found) / len(found)


def dense_overlap(model: ShareModel, one: str, two: str) -> float:
    found = []
    for module in model.tasks[one].coefficients:
        a, b = (stored_dense(model, n, module) for n in (one, two))
        for x, y in ((a @ a.mT, b @ b.mT), (a.mT @ a, b.mT @ b)):
            chance = float(x.trace() * y.trace() / (x.norm() * y.norm())) / len(x)
            cosine = float((x * y).sum() / (x.norm() * y.norm()))
            found.append(1.0 if one == two else (cosine - chance) / (1 - chance))
    return sum(found) / len(found)


def check_cosines(model: ShareModel, tolerance: float) -> None:
    names = list(model.tasks)
    found = study(model, names)
    for i, one in enumerate(names):
        for j, two in enumerate(names):
            alike, common = dense_cosine(model, one, two), dense_overlap(model, one, two)
            assert float(found.cosines[i, j]) == pytest.approx(alike, abs=tolerance)
            assert float(found.overlaps[i, j]) == pytest.approx(common, abs=tolerance)


@given(st.integers(0, 1000), st.integers(1, 6))
@law(10)
def test_cosines_are_those_of_the_dense_updates(seed: int, k: int) -> None:
    adapters = [made(f"t{i}", 50 * seed + i, dtype=torch.float64) for i in range(4)]
    check_cosines(build(adapters, k=k), 1e-9)


def test_updates_stored_per_task_are_compared_with_shared_ones() -> None:
    """Factors, a core and an update stored per task in one model, and a task with the last two
    exchanged."""
    model = weird_model(("a", "b", "c"), torch.float64)
    odd = model.tasks["c"]
    per_task = next(m for m, c in odd.coefficients.items() if isinstance(c, PerTask))
    inside = Core(gauss(5, *model.layers[per_task].k))
    odd = replace(odd, coefficients={**odd.coefficients, per_task: inside})
    check_cosines(model.with_tasks([model.tasks["a"], model.tasks["b"], odd]), 1e-9)


def test_tasks_without_a_common_layer_are_not_compared() -> None:
    model = build([made("one", 0), made("two", 1)], k=3)
    first, *others = MODULES
    halves = {"one": [first], "two": others}
    cut = model.with_tasks(
        replace(task, coefficients={m: task.coefficients[m] for m in halves[name]})
        for name, task in model.tasks.items()
    )
    found = study(cut, list(cut.tasks)).cosines
    assert math.isnan(found[0, 1])
    assert float(found[0, 0]) == pytest.approx(1)


@given(st.integers(0, 1000), st.integers(1, 5), st.integers(1, 6), st.integers(1, 4))
@law(20)
def test_explained_variance_rises_to_what_is_kept(
    seed: int, left: int, right: int, count: int
) -> None:
    cores, lost = gauss(seed, count, left, right), gauss(seed + 1, count).abs()
    curve = explained_variance(cores, lost)
    assert len(curve) == max(left, right)
    assert all(b >= a - 1e-12 for a, b in pairwise(curve))
    energy = cores.square().sum((1, 2))
    assert curve[-1] == pytest.approx(float((energy / (energy + lost.square())).mean()))


def test_explained_variance_of_common_directions() -> None:
    left, right = frame(6, 2), frame(5, 2, 1)
    cores = torch.stack([left @ gauss(i, 2, 2) @ right.mT for i in range(4)])
    curve = explained_variance(cores, torch.zeros(4, dtype=torch.float64))
    assert curve[0] < 0.999
    assert curve[1] == pytest.approx(1)


def test_explained_variance_of_nothing() -> None:
    assert explained_variance(torch.zeros(2, 3, 3).double(), torch.zeros(2).double()) == ()
    assert explained_variance(torch.zeros(0, 3, 3).double(), torch.zeros(0).double()) == ()
    assert explained_variance(torch.zeros(2, 0, 0).double(), torch.ones(2).double()) == ()


def block(*sizes: int, inside: float = 0.9) -> torch.Tensor:
    count = sum(sizes)
    overlaps = torch.zeros(count, count, dtype=torch.float64)
    at = 0
    for size in sizes:
        overlaps[at : at + size, at : at + size] = inside
        at += size
    return overlaps.fill_diagonal_(1)


def test_families_are_numbered_by_size_and_stand_together() -> None:
    mixed = torch.tensor([0, 3, 1, 4, 2, 5])
    found = relations(block(2, 3, 1)[mixed][:, mixed])
    expected = {0: 1, 1: 1, 2: 0, 3: 0, 4: 0, 5: None}
    assert list(found.families) == [expected[m] for m in mixed.tolist()]
    row = [found.families[i] for i in found.order]
    assert sorted(map(str, row)) == sorted(map(str, found.families))
    assert sum(a != b for a, b in pairwise(row)) == 2


def planted(
    sizes: tuple[int, ...], alone: int, noise: float, seed: int
) -> tuple[ShareModel, list[int | None]]:
    """Tasks of families with six directions a side in common, and of none; by task the family.

    What a task of a family does with the directions is its own, so cosines are near 0. Of an
    update's energy a side, ``noise`` squared parts to one are in directions of its own.
    """
    families = [f for f, size in enumerate(sizes) for _ in range(size)] + [None] * alone
    adapters = []
    for task, family in enumerate(families):
        updates = {}
        for layer in range(3):
            own = 1_000_000 * seed + 1000 * task + layer
            up, down = gauss(own, 64, 4) / 8, gauss(own + 100, 4, 48) / 48**0.5
            if family is not None:
                common = 1_000_000 * seed + 500_000 + 1000 * family + layer
                left, right = frame(64, 6, common), frame(48, 6, common + 100)
                up = left @ gauss(own + 200, 6, 4) / 6**0.5 + noise * up
                down = gauss(own + 300, 4, 6) @ right.mT / 6**0.5 + noise * down
            updates[f"h.{layer}.q"] = LayerUpdate(up.float(), down.float())
        adapters.append(adapter(f"t{task}", updates))
    return build(adapters, k=64), families


@pytest.mark.parametrize(
    ("sizes", "alone", "noise"),
    [
        ((5, 3, 2), 2, 0.0),
        ((5, 3, 2), 2, 0.3),
        ((5, 3, 2), 2, 0.6),
        ((5, 3, 2), 0, 1.0),
        ((2, 2), 1, 0.5),
        ((9, 4), 0, 0.5),
        ((8,), 0, 0.5),
        ((), 8, 0.0),
    ],
)
def test_planted_families_are_found(sizes: tuple[int, ...], alone: int, noise: float) -> None:
    for seed in range(2):
        model, families = planted(sizes, alone, noise, seed)
        compared = study(model, list(model.tasks))
        apart = compared.cosines.clone().fill_diagonal_(0).abs()
        assert float(apart.max()) < 0.3  # by cosines they could not be told
        found = relations(compared.overlaps)
        sets = [
            {frozenset(t for t, f in enumerate(by_task) if f == n) for n in set(by_task) - {None}}
            for by_task in (families, found.families)
        ]
        assert sets[0] == sets[1]
        row = [families[i] for i in found.order]
        changes = sum(a != b for a, b in pairwise(row) if a is not None or b is not None)
        assert changes <= 2 * len(sizes)


def test_families_may_be_tight_and_loose_beside_each_other() -> None:
    overlaps = block(3, 4, inside=0.2)
    overlaps[:3, :3] = 0.9
    overlaps.fill_diagonal_(1)
    assert relations(overlaps).families == (1, 1, 1, 0, 0, 0, 0)


def test_the_tree_has_scipys_distances() -> None:
    hierarchy = pytest.importorskip("scipy.cluster.hierarchy")
    model = build(relatives(9, 40, 30, noise=0.2), k=30)
    overlaps = study(model, [f"t{i}" for i in range(9)]).overlaps
    above = torch.triu_indices(9, 9, 1)
    expected = hierarchy.linkage((1 - overlaps[above[0], above[1]]).numpy(), "average")
    joins = relations(overlaps).joins
    assert [1 - j.overlap for j in joins] == pytest.approx(expected[:, 2].tolist())
    assert [{j.first, j.second} for j in joins] == [{int(a), int(b)} for a, b, *_ in expected]


def test_random_updates_overlap_by_nothing_on_average() -> None:
    """In a space that is small beside the rank, where two always have directions in common."""
    overlaps = study(
        build([made(f"t{i}", i) for i in range(12)], k=24), [f"t{i}" for i in range(12)]
    )
    apart = overlaps.overlaps[~torch.eye(12, dtype=torch.bool)]
    assert abs(float(apart.mean())) < 0.03


@given(st.integers(0, 1000), st.integers(2, 7))
@law(15)
def test_the_map_of_a_plane_is_exact(seed: int, count: int) -> None:
    """Unit vectors whose differences lie in a plane keep their distances."""
    flat = torch.cat([0.4 * gauss(seed, count, 2).clamp(-1, 1), torch.zeros(count, 1).double()], 1)
    flat[:, 2] = 0.5
    gram = flat @ flat.mT
    gram = gram - gram.diagonal()[:, None] / 2 - gram.diagonal() / 2 + 1
    points, shown = classical_scaling(gram)
    places = torch.tensor(points, dtype=torch.float64)
    assert torch.allclose(torch.cdist(places, places), torch.cdist(flat, flat), atol=1e-6)
    assert shown == pytest.approx(1)


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_to_compare(count: int) -> None:
    found = relations(torch.eye(count, dtype=torch.float64))
    assert found.order == tuple(range(count))
    assert found.joins == ()


def test_equal_tasks_have_one_place() -> None:
    found = relations(torch.ones(3, 3, dtype=torch.float64))
    assert set(found.points) == {(0.0, 0.0)} or all(abs(x) < 1e-6 for p in found.points for x in p)
    assert found.shown == pytest.approx(1)
