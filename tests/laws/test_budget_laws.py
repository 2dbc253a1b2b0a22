"""Laws of a byte budget: never over it, and never worse than own SVDs of the same bytes."""

from __future__ import annotations

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
    worst,
)
from sharespace.subspace.adapter import Adapter, LayerUpdate
from sharespace.subspace.merge import merge
from sharespace.subspace.plan import adapters_to_break_even
from sharespace.subspace.state import Private, ShareModel


def spent(model: ShareModel) -> int:
    """Bytes of bases, coefficients and private updates."""
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


@law(40)
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


@law(40)
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
    kinds = [isinstance(m.tasks["t0"].coefficients[MODULE], Private) for m in (shared, private)]
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
