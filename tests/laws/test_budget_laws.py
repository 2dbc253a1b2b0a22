"""Laws of a byte budget: never over it, and never worse than own SVDs of the same bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from builders import (
    DTYPES,
    FULL,
    MODULE,
    ROUNDING,
    absolute_errors,
    adapter,
    build,
    dense,
    frame,
    gauss,
    law,
    originals,
    relative_errors,
    relatives,
    strangers,
    update,
    weighed_error,
    worst,
)
from sharespace.subspace.adapter import Adapter, LayerUpdate
from sharespace.subspace.coefficients import Core, Factors, PerTask
from sharespace.subspace.merge import merge
from sharespace.subspace.plan import adapters_to_break_even
from sharespace.subspace.state import ShareModel, as_adapter


def spent(model: ShareModel) -> int:
    """Bytes of bases, coefficients and updates stored per task."""
    values = [c.nbytes for t in model.tasks.values() for c in t.coefficients.values()]
    return sum(layer.nbytes for layer in model.layers.values()) + sum(values)


def own_energy(adapters: Sequence[Adapter], nbytes: int, itemsize: int) -> float:
    """The most that own SVDs of so many bytes lose: sum over tasks of squared relative errors.

    Greedy by energy per byte over the singular directions of all modules; what is not spent is
    less than one direction.
    """
    offers = []
    for updates in originals(adapters).values():
        total = sum(float(w.square().sum()) for w in updates.values())
        for w in updates.values():
            size = itemsize * sum(w.shape)
            energies = torch.linalg.svdvals(w).square() / max(total, 1e-300)
            offers += [(float(e) / size, float(e), size) for e in energies]
    lost = sum(energy for _, energy, _ in offers)
    for _, energy, size in sorted(offers, reverse=True):
        if size > nbytes:
            break
        nbytes, lost = nbytes - size, lost - energy
    return max(lost, 0.0)


MEMBERS = st.lists(
    st.sampled_from(["stranger", "relative", "loud", "quiet", "one module", "zero"]),
    min_size=1,
    max_size=5,
)
SIZES: Mapping[str, tuple[int, int]] = {"x": (12, 5), "y": (4, 14), "z": (7, 7)}


def mixture(kinds: Sequence[str], seed: int, dtype: torch.dtype = torch.float32) -> list[Adapter]:
    """Adapters over three modules whose norms differ by task and by module."""
    made = []
    for i, kind in enumerate(kinds):
        norms = {"loud": 10.0 ** (i % 3), "quiet": 10.0 ** -(i % 3), "zero": 0.0}
        updates = {}
        for j, (module, (n, d)) in enumerate(SIZES.items()):
            norm = norms.get(kind, 1.0) ** j
            found = update(n, d, 1 + (i + j) % 3, 1000 * seed + 10 * i + j, norm=norm, dtype=dtype)
            updates[module] = found if kind == "stranger" or not norm else _related(found, seed + j)
        if kind == "one module":
            updates = {"y": updates["y"]}
        made.append(adapter(f"t{i}", updates))
    return made


def _related(found: LayerUpdate, seed: int) -> LayerUpdate:
    """Of the same norm, mostly in two directions a side that all such updates have in common."""
    (n, r), d = found.up.shape, found.down.shape[1]
    up = 0.9 * frame(n, 2, seed) @ gauss(seed + r, 2, r) + 0.1 * found.up.double()
    down = found.down.double() @ (0.1 * torch.eye(d) + frame(d, 2, seed) @ frame(d, 2, seed).mT)
    scale = float(dense(found).norm() / (up @ down).norm()) ** 0.5
    return LayerUpdate((scale * up).to(found.up.dtype), (scale * down).to(found.up.dtype))


@law()
@given(
    kinds=MEMBERS,
    seed=st.integers(0, 99),
    budget=st.integers(1, 6000),
    p=st.sampled_from([None, 1, 2]),
    stored=st.sampled_from(DTYPES),
)
def test_budget_is_never_exceeded(
    kinds: list[str], seed: int, budget: int, p: int | None, stored: torch.dtype
) -> None:
    adapters = mixture(kinds, seed)
    model = build(adapters, budget=budget, p=p, dtype=stored)
    assert spent(model) <= budget
    merged = merge(model, [adapter("new", {"x": update(12, 5, 2, seed)})])
    assert spent(merged) <= budget


@law()
@given(
    kinds=MEMBERS,
    seed=st.integers(0, 99),
    budget=st.integers(100, 6000),
    p=st.sampled_from([None, 1, 2]),
)
def test_budget_is_never_worse_than_own_svds_of_the_same_bytes_but_one_direction(
    kinds: list[str], seed: int, budget: int, p: int | None
) -> None:
    adapters = mixture(kinds, seed, torch.float64)
    model = build(adapters, budget=budget, p=p)
    direction = 8 * max(n + d for n, d in SIZES.values())
    lost = sum(e * e for e in relative_errors(model, adapters).values())
    assert lost <= own_energy(adapters, budget - direction, 8) * (1 + 1e-6) + 1e-9


@law()
@given(kinds=MEMBERS, seed=st.integers(0, 99), stored=st.sampled_from(DTYPES))
def test_a_huge_budget_keeps_everything(kinds: list[str], seed: int, stored: torch.dtype) -> None:
    adapters = mixture(kinds, seed, stored)
    model = build(adapters, budget=10**9)
    assert max(relative_errors(model, adapters).values()) <= ROUNDING[stored]


def test_a_budget_below_one_direction_keeps_nothing_and_says_so() -> None:
    adapters = strangers(3)
    model = build(adapters, budget=1)
    assert spent(model) == 0
    assert relative_errors(model, adapters) == pytest.approx({f"t{i}": 1.0 for i in range(3)})
    assert all(t.ledger.bound == pytest.approx(1.0) for t in model.tasks.values())


def test_a_budget_shares_among_relatives_and_not_among_strangers() -> None:
    near, far = relatives(12, 40, 40, k=4, rank=4), strangers(3, 40, 40, 2)
    budget = 4 * (40 + 40) * 6
    shared, private = build(near, budget=budget), build(far, budget=budget)
    kinds = [isinstance(m.tasks["t0"].coefficients[MODULE], PerTask) for m in (shared, private)]
    assert kinds == [False, True]
    # Six directions a side hold four tasks of a common k = 4; own SVDs of rank 4 need 48.
    assert worst(build(near, budget=4 * (2 * 40 * 4 + 12 * 16)), near) <= 1e-5


@law()
@given(
    k=st.integers(1, 6),
    p=st.integers(1, 4),
    n=st.integers(4, 40),
    d=st.integers(4, 40),
    count=st.integers(1, 9),
    rank=st.integers(1, 6),
)
def test_break_even_is_the_smallest_number_of_adapters_at_which_share_is_smaller(
    k: int, p: int, n: int, d: int, count: int, rank: int
) -> None:
    adapters = strangers(count, n, d, rank)
    model = build(adapters, k, p=p)
    found = adapters_to_break_even(model, adapters)
    layer = model.layers[MODULE]
    per_task = spent(model) - layer.nbytes
    assert per_task % count == 0
    lora = 4 * rank * (n + d)
    smaller = [t for t in range(1, 3000) if layer.nbytes + t * (per_task // count) < t * lora]
    if found is None or found >= 3000:
        assert not smaller
    else:
        assert found == smaller[0]


def test_entry_weights_decide_under_a_budget_too() -> None:
    """A task that lost most of its energy is not valued more at the next merge.

    The first keeps a third of its energy in the one column that there is bytes for; the second
    has half of its energy in one column, and gets it.
    """
    first, second = (
        adapter(name, LayerUpdate(frame(9, r, r).float(), frame(8, r, r + 1).mT.float()))
        for name, r in (("first", 3), ("second", 2))
    )
    merged = merge(build([first], budget=4 * (9 + 8)), [second])
    found = relative_errors(merged, [first, second])
    assert found == pytest.approx({"first": 1.0, "second": 0.5**0.5}, rel=1e-5)


def test_full_k_is_not_smaller_than_the_adapters() -> None:
    adapters = [adapter("a", LayerUpdate(torch.eye(6), torch.eye(6)))]
    assert adapters_to_break_even(build(adapters, FULL), adapters) is not None


def own_lost(adapters: Sequence[Adapter], nbytes: int, itemsize: int = 8) -> float:
    """The same without slack: what is not spent is less than one direction."""
    direction = itemsize * max(
        sum(w.shape) for u in originals(adapters).values() for w in u.values()
    )
    return own_energy(adapters, nbytes - direction, itemsize)


def gathering(families: int, each: int, alone: int, seed: int) -> list[Adapter]:
    """Families with directions of their own, and strangers, over two modules."""
    made = []
    for i in range(families * each + alone):
        updates = {}
        for j, (module, (n, d)) in enumerate({"x": (24, 16), "y": (16, 20)}.items()):
            found = update(n, d, 3, 999 * seed + 10 * i + j, dtype=torch.float64)
            if i < families * each:
                found = _related(found, 31 * seed + 2 * (i // each) + j)
            updates[module] = found
        made.append(adapter(f"t{i}", updates))
    return made


GATHERED = {
    "families": st.integers(0, 3),
    "each": st.integers(1, 12),
    "alone": st.integers(1, 6),
    "seed": st.integers(0, 99),
    "part": st.floats(0.02, 0.8),
}


def budget_of(adapters: Sequence[Adapter], part: float) -> int:
    return int(part * 8 * sum(r * a.shapes[m].sides for a in adapters for m, r in a.ranks.items()))


@law(20)
@given(**GATHERED, stored=st.sampled_from([torch.float64, *DTYPES]))
def test_what_is_stored_is_never_worse_than_own_svds_at_any_number_of_adapters(
    families: int, each: int, alone: int, seed: int, part: float, stored: torch.dtype
) -> None:
    """Of the model as it is: measured against the originals, and every byte of it counted; ledger
    and certificate bound what it lost."""
    adapters = gathering(families, each, alone, seed)
    budget = budget_of(adapters, part)
    model = build(adapters, budget=budget, dtype=stored)
    assert spent(model) <= budget
    errors = relative_errors(model, adapters)
    if stored == torch.float64:
        lost = sum(e * e for e in errors.values())
        assert lost <= own_lost(adapters, budget) * (1 + 1e-6) + 1e-9
    for name, error in errors.items():
        assert error <= model.tasks[name].ledger.bound * (1 + 1e-6) + 1e-6
    slack = 1e-6 + ROUNDING[stored] * len(adapters) ** 0.5
    for module, layer in model.layers.items():
        if layer.certificate:
            assert weighed_error(model, adapters, module) <= layer.certificate.bound + slack


@law(20)
@given(**GATHERED)
def test_a_merge_is_never_worse_than_own_svds_of_the_tasks_as_they_were_stored(
    families: int, each: int, alone: int, seed: int, part: float
) -> None:
    adapters = gathering(families, each, alone, seed)
    half = len(adapters) // 2 + 1
    budget = budget_of(adapters, part)
    model = build(adapters[:half], budget=budget)
    merged = merge(model, adapters[half:]) if adapters[half:] else model
    assert spent(merged) <= budget
    before = [*(as_adapter(model, t) for t in model.tasks.values()), *adapters[half:]]
    whole = {a.name: _norm(a) for a in adapters}
    lost = {n: sum(x * x for x in by.values()) for n, by in absolute_errors(merged, before).items()}
    entered = sum(e / whole[n] ** 2 for n, e in lost.items())
    assert entered <= _weighed_own(before, whole, budget) * (1 + 1e-6) + 1e-9


def _norm(found: Adapter) -> float:
    return math.sqrt(sum(float(dense(found.layer(m)).square().sum()) for m in found.shapes))


def _weighed_own(adapters: Sequence[Adapter], whole: Mapping[str, float], nbytes: int) -> float:
    """Energy that own SVDs of so many bytes lose, but for one direction; weighed as at entry."""
    offers = []
    for name, updates in originals(adapters).items():
        for w in updates.values():
            values = torch.linalg.svdvals(w).square() / whole[name] ** 2
            offers += [(float(e) / sum(w.shape), float(e), 8 * sum(w.shape)) for e in values]
    left, nbytes = sum(e for _, e, _ in offers), nbytes - 8 * 40
    for _, energy, size in sorted(offers, reverse=True):
        if size > nbytes:
            break
        nbytes, left = nbytes - size, left - energy
    return max(left, 0.0)


def test_an_outlier_among_relatives_is_private_and_they_share() -> None:
    adapters = [*relatives(30, 40, 40, k=4, rank=4), adapter("odd", update(40, 40, 4, 5))]
    model = build(adapters, budget=4 * (2 * 40 * 4 + 30 * 16 + 80 * 4 + 40))
    kinds = {n: isinstance(t.coefficients[MODULE], PerTask) for n, t in model.tasks.items()}
    assert kinds == {**{f"t{i}": False for i in range(30)}, "odd": True}
    assert worst(model, adapters) <= 1e-2


def test_a_family_stores_nothing_for_the_directions_of_those_after_it() -> None:
    adapters = gathering(2, 20, 1, 3)
    model = build(adapters, budget=budget_of(adapters, 0.12))
    leading = [
        c.used
        for t in model.tasks.values()
        for m, c in t.coefficients.items()
        if isinstance(c, Factors | Core) and c.used != model.layers[m].k
    ]
    assert leading
