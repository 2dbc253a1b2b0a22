"""Laws of many steps: merging, unions, removals, casts, and the ledger over all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from builders import (
    DTYPES,
    FULL,
    MODULE,
    ROUNDING,
    Family,
    absolute_errors,
    adapter,
    build,
    families,
    family,
    frame,
    gauss,
    law,
    orthonormality,
    relatives,
    stored_dense,
    strangers,
    update,
    weighed_error,
    worst,
)
from sharespace.subspace.adapter import Adapter, LayerUpdate
from sharespace.subspace.coefficients import Core, Factors, PerTask
from sharespace.subspace.merge import merge, union
from sharespace.subspace.state import ShareModel

DENSE = 1e-13
"""Relative rounding of the dense float64 answer itself."""


def assert_padded(before: ShareModel, after: ShareModel, names: Sequence[str]) -> None:
    """Old bases are the first columns, old coefficients the same bits and zeros below."""
    for module, layer in before.layers.items():
        grown = after.layers[module]
        assert torch.equal(grown.left_basis[:, : layer.k[0]], layer.left_basis)
        assert torch.equal(grown.right_basis[:, : layer.k[1]], layer.right_basis)
        for name in names:
            old = before.tasks[name].coefficients.get(module)
            if isinstance(old, Factors | Core):
                assert_same_value(after.tasks[name].coefficients[module], old.grown(grown.k))


def assert_same_value(found: object, wanted: Factors | Core | PerTask) -> None:
    assert type(found) is type(wanted)
    for key, value in vars(wanted).items():
        mine = getattr(found, key)
        assert torch.equal(mine, value) if isinstance(value, torch.Tensor) else mine == value


def assert_same_tasks(first: ShareModel, second: ShareModel, slack: float) -> None:
    assert set(first.tasks) == set(second.tasks)
    for name, task in first.tasks.items():
        for module in task.coefficients:
            one, two = stored_dense(first, name, module), stored_dense(second, name, module)
            assert float((one - two).norm()) <= slack * task.ledger.norm(module)


def assert_bounded(model: ShareModel, adapters: Sequence[Adapter]) -> None:
    """The ledger's bound is not below the true error, module by module and in all."""
    for name, lost in absolute_errors(model, adapters).items():
        ledger = model.tasks[name].ledger
        for module, bound in zip(ledger.modules, ledger.bounds.tolist(), strict=True):
            slack = DENSE * ledger.norm(module)
            assert lost[module] <= bound + slack, (name, module, lost[module], bound)
        whole = sum(e * e for e in lost.values()) ** 0.5
        assert whole <= (ledger.bound + DENSE) * ledger.total_norm


@law()
@given(family=families(tasks=(2, 5), dtypes=DTYPES), data=st.data())
def test_merging_below_the_cap_changes_no_old_task_by_a_bit(
    family: Family, data: st.DataObject
) -> None:
    known = data.draw(st.integers(1, len(family.updates) - 1))
    model = build(family.adapters[:known], FULL)
    merged = merge(model, family.adapters[known:])
    assert_padded(model, merged, list(model.tasks))
    assert worst(merged, family.adapters) <= ROUNDING[family.dtype]
    for basis in (merged.layers[MODULE].left_basis, merged.layers[MODULE].right_basis):
        assert orthonormality(basis) <= ROUNDING[family.dtype]


@law()
@given(
    family=families(tasks=(2, 4), dtypes=DTYPES, kinds=("stranger", "zero", "loud", "tied")),
    seed=st.integers(0, 99),
)
def test_merging_at_the_cap_in_the_span_changes_no_old_task_by_a_bit(
    family: Family, seed: int
) -> None:
    """The newcomer lies in what is stored, so it needs no direction and nothing is cut."""
    model = build(family.adapters, FULL)
    layer = model.layers[MODULE]
    model = replace(model, layers={MODULE: replace(layer, cap=layer.k)})
    k_left, k_right = layer.k
    if min(layer.k) == 0:
        return
    wide = torch.float64 if family.dtype == torch.float64 else torch.float32
    newcomer = LayerUpdate(
        (layer.left_basis.double() @ gauss(seed, k_left, 3)).to(wide),
        (gauss(seed + 1, 3, k_right) @ layer.right_basis.double().mT).to(wide),
    )
    merged = merge(model, [adapter("new", newcomer)])
    assert merged.layers[MODULE].k == layer.k
    assert_padded(model, merged, list(model.tasks))


@law()
@given(family=families(tasks=(2, 4), dtypes=DTYPES))
def test_merging_the_same_adapters_again_under_other_names_adds_no_direction(
    family: Family,
) -> None:
    model = build(family.adapters, variance=1.0)
    again = [a.with_name("again " + a.name) for a in family.adapters]
    merged = merge(model, again)
    assert merged.layers[MODULE].k == model.layers[MODULE].k
    for a in family.adapters:
        assert_same_stored(merged, a.name, "again " + a.name, ROUNDING[family.dtype])


def assert_same_stored(model: ShareModel, one: str, two: str, slack: float) -> None:
    difference = stored_dense(model, one) - stored_dense(model, two)
    assert float(difference.norm()) <= slack * model.tasks[one].ledger.norm(MODULE)


@law()
@given(family=families(tasks=(3, 5)), order=st.randoms(use_true_random=False))
def test_merging_with_room_gives_the_same_tasks_in_any_order_and_grouping(
    family: Family, order: object
) -> None:
    adapters = family.adapters
    shuffled = list(adapters)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    at_once = merge(build(adapters[:1], FULL), adapters[1:])
    one_by_one = build(shuffled[:1], FULL)
    for a in shuffled[1:]:
        one_by_one = merge(one_by_one, [a])
    assert_same_tasks(at_once, one_by_one, ROUNDING[family.dtype])
    assert_same_tasks(build(adapters, FULL), one_by_one, ROUNDING[family.dtype])


@pytest.mark.parametrize(("method", "centred"), [("joint", 0), ("share", 0), ("share", 1)])
@law()
@given(
    family=families(tasks=(3, 6), dtypes=DTYPES),
    cap=st.integers(1, 6),
    p=st.sampled_from([None, 1, 2, 5]),
    stored=st.sampled_from(DTYPES),
)
def test_ledger_is_not_below_the_true_error_after_merges_at_the_cap(
    method: str, centred: int, family: Family, cap: int, p: int | None, stored: torch.dtype
) -> None:
    adapters = family.adapters
    model = build(adapters[:1], cap, dtype=stored, method=method, centred=bool(centred), p=p)
    for done in range(1, len(adapters)):
        model = merge(model, [adapters[done]])
        assert max(model.layers[MODULE].k) <= cap
        assert_bounded(model, adapters[: done + 1])
    assert list(model.tasks) == [a.name for a in adapters]


TERMS_THAT_CANCEL = family(
    9, 1, torch.float32, 3421, (("stranger", 1), ("stranger", 1), ("quiet", 3), ("relative", 1))
)
"""The last one's products are larger than their sum, and were rounded in float32."""


@law(20)
@given(family=families(tasks=(2, 5), dtypes=DTYPES), stored=st.sampled_from(DTYPES))
@example(family=TERMS_THAT_CANCEL, stored=torch.float32)
def test_ledger_is_not_below_the_true_error_after_exact_merges_and_casts(
    family: Family, stored: torch.dtype
) -> None:
    adapters = family.adapters
    model = build(adapters[:1], FULL, dtype=stored)
    for a in adapters[1:]:
        model = merge(model, [a])
    assert_bounded(model, adapters)


STEPS = st.lists(
    st.sampled_from(["merge", "merge two", "smaller cap", "larger cap", "remove", "union"]),
    min_size=1,
    max_size=6,
)


@law()
@given(steps=STEPS, seed=st.integers(0, 500), p=st.sampled_from([None, 2]), data=st.data())
def test_ledger_is_not_below_the_true_error_after_any_sequence(
    steps: list[str], seed: int, p: int | None, data: st.DataObject
) -> None:
    pool = _pool(seed)
    model, known = build([pool[0]], 4, p=p, dtype=data.draw(st.sampled_from(DTYPES))), [pool[0]]
    cap, fresh = 4, iter(pool[1:])
    for step in steps:
        newcomers = [next(fresh), next(fresh)] if step != "merge" else [next(fresh)]
        if step == "union":
            model = union(model, build(newcomers, 3, dtype=data.draw(st.sampled_from(DTYPES))))
        elif step == "remove":
            gone = data.draw(st.sampled_from(sorted(model.tasks)))
            model = merge(model.without_tasks(gone), newcomers)
            known = [a for a in known if a.name != gone]
        else:
            cap = max(cap + {"smaller cap": -1, "larger cap": 2}.get(step, 0), 1)
            model = merge(model, newcomers, cap=cap)
        known += newcomers
        assert_bounded(model, known)


def _pool(seed: int) -> list[Adapter]:
    """Strangers and relatives in turn, of different ranks and dtypes, over two modules."""
    made: list[Adapter] = []
    for i in range(14):
        dtype = DTYPES[i % 4]
        one = update(11, 7, 1 + i % 4, seed + i % 5, norm=10.0 ** (i % 3), dtype=dtype)
        other = update(6, 8, 2, seed + i, dtype=dtype)
        modules = {"m": one} if i % 3 == 0 else {"m": one, "x": other}
        made.append(adapter(f"t{i}", modules if i % 5 != 4 else {"x": other}))
    return made


@law(20)
@given(
    seed=st.integers(0, 500),
    stored=st.sampled_from(DTYPES),
    budget=st.sampled_from([600, 10_000_000]),
)
@example(seed=1, stored=torch.float32, budget=600)
@example(seed=1, stored=torch.float32, budget=10_000_000)
def test_ledger_is_not_below_the_true_error_after_merges_under_a_budget(
    seed: int, stored: torch.dtype, budget: int
) -> None:
    pool = _pool(seed)
    model = build(pool[:2], budget=budget, dtype=stored)
    for i in range(2, 8, 2):
        model = merge(model, pool[i : i + 2])
        assert_bounded(model, pool[: i + 2])
        assert _spent(model) <= budget


def _spent(model: ShareModel) -> int:
    values = [c.nbytes for t in model.tasks.values() for c in t.coefficients.values()]
    return sum(layer.nbytes for layer in model.layers.values()) + sum(values)


@law()
@given(family=families(tasks=(3, 6)), cap=st.integers(1, 5), p=st.sampled_from([None, 1, 3]))
def test_certificate_of_a_merge_is_not_below_what_the_merge_lost(
    family: Family, cap: int, p: int | None
) -> None:
    adapters = family.adapters
    model = build(adapters[:2], cap, p=p)
    # What the merge starts from: the known tasks as they are stored, the newcomers in full.
    start = [_as_stored(model, a) for a in adapters[:2]] + adapters[2:]
    merged = merge(model, adapters[2:])
    certificate = merged.layers[MODULE].certificate
    assert certificate is not None
    norms = {n: t.ledger.norm(MODULE) for n, t in merged.tasks.items()}
    lost = absolute_errors(merged, start)
    squares = sum((e[MODULE] / norms[n]) ** 2 for n, e in lost.items() if norms[n])
    assert squares**0.5 <= certificate.bound * (1 + 1e-6) + ROUNDING[family.dtype]


def _as_stored(model: ShareModel, original: Adapter) -> Adapter:
    whole = stored_dense(model, original.name)
    return adapter(original.name, LayerUpdate(whole, torch.eye(whole.shape[1]).double()))


@law()
@given(seed=st.integers(0, 500), first=st.sampled_from(DTYPES), second=st.sampled_from(DTYPES))
def test_union_is_exact_with_room_and_the_same_in_both_orders(
    seed: int, first: torch.dtype, second: torch.dtype
) -> None:
    adapters = strangers(4, 14, 9, seed=seed)
    one, two = build(adapters[:2], FULL, dtype=first), build(adapters[2:], FULL, dtype=second)
    there, back = union(one, two), union(two, one)
    assert there.dtype == back.dtype == torch.promote_types(first, second)
    slack = 2 * ROUNDING[there.dtype]
    assert_same_tasks(there, back, slack)
    for model, part in ((there, one), (there, two)):
        for name in part.tasks:
            difference = stored_dense(model, name) - stored_dense(part, name)
            assert float(difference.norm()) <= slack
    assert_bounded(there, adapters)
    assert_bounded(back, adapters)


@law()
@given(seed=st.integers(0, 500), cap=st.integers(1, 5), stored=st.sampled_from(DTYPES))
def test_many_merges_at_the_cap_never_grow_and_are_bounded(
    seed: int, cap: int, stored: torch.dtype
) -> None:
    adapters = [*strangers(6, 13, 8, seed=seed), *relatives(6, 13, 8, seed=seed, noise=0.1)]
    adapters = [a.with_name(f"n{i}") for i, a in enumerate(adapters)]
    model = build(adapters[:1], cap, dtype=stored)
    for a in adapters[1:]:
        model = merge(model, [a])
        assert max(model.layers[MODULE].k) <= cap
    assert_bounded(model, adapters)


@law()
@given(seed=st.integers(0, 500))
def test_remove_then_merge_leaves_the_others_and_is_exact(seed: int) -> None:
    adapters = strangers(4, 14, 9, seed=seed, dtype=torch.float64)
    model = build(adapters[:3], FULL)
    left = model.without_tasks("t1")
    merged = merge(left, [adapters[3]])
    assert_padded(model, merged, ["t0", "t2"])
    assert worst(merged, [adapters[0], adapters[2], adapters[3]]) <= 1e-12
    emptied = merge(model.without_tasks("t0", "t1", "t2"), [adapters[3]])
    assert worst(emptied, [adapters[3]]) <= 1e-12


@law()
@given(seed=st.integers(0, 200), p=st.sampled_from([None, 1, 2]))
def test_modules_that_appear_later_are_kept_as_exactly_as_p_allows(
    seed: int, p: int | None
) -> None:
    first = adapter("a", {"x": update(9, 7, 3, seed)})
    second = adapter("b", {"y": update(8, 6, 3, seed + 1), "x": update(9, 7, 3, seed + 2)})
    model = merge(build([first], variance=0.9, p=p if p is None else 3), [second])
    assert set(model.tasks["a"].coefficients) == {"x"}
    assert set(model.tasks["b"].coefficients) == {"x", "y"}
    if p is not None:
        model = merge(build([first], 5, p=p), [second])
    assert_bounded(model, [first, second])
    values = torch.linalg.svdvals(stored_dense(model, "b", "y"))
    assert p is None or float(values[p:].max()) < 1e-5


@pytest.mark.parametrize("rule", [{"variance": 0.5}, {"k": (3, 4)}])
def test_a_new_module_can_be_merged_where_p_is_smaller_than_the_rank(
    rule: dict[str, float | tuple[int, int]],
) -> None:
    first = adapter("a", {"x": update(9, 7, 3, 1)})
    model = build([first], p=1, **rule)  # type: ignore[arg-type]
    merged = merge(model, [adapter("b", {"y": update(8, 6, 3, 2)})])
    assert float(torch.linalg.svdvals(stored_dense(merged, "b", "y"))[1]) < 1e-5


def test_merging_a_rank_deficient_adapter_in_the_span_needs_no_direction() -> None:
    """Its zero singular values must not be mistaken for directions (float64, at the cap)."""
    left, right = frame(20, 4), frame(15, 4, 1)
    model = build([adapter("a", LayerUpdate(left, right.mT.contiguous()))], 4)
    mix = gauss(2, 4, 2)
    newcomer = LayerUpdate(left @ mix @ gauss(3, 2, 6), gauss(4, 6, 4) @ right.mT)
    merged = merge(model, [adapter("b", newcomer), adapter("c", newcomer)])
    assert merged.layers[MODULE].k == (4, 4)
    assert_padded(model, merged, ["a"])


def test_the_weight_of_entry_counts_and_not_that_of_what_is_left() -> None:
    """The first task keeps a third of its energy in the one direction that the cap allows; the
    second has half of its energy in one direction, and gets it."""
    first, second = (
        adapter(name, LayerUpdate(frame(9, r, r), frame(8, r, r + 1).mT.contiguous()))
        for name, r in (("first", 3), ("second", 2))
    )
    merged = merge(build([first], 1), [second])
    lost = absolute_errors(merged, [first, second])
    assert lost["second"][MODULE] < 1.02
    assert lost["first"][MODULE] > 1.6


def test_what_a_newcomer_loses_as_rounding_at_the_cap_is_in_its_ledger() -> None:
    """Two directions of the first task and three of the last fill the cap, so that the second,
    which has 1.9e-6 of its norm outside the first's, loses just that."""
    left, right = frame(20, 9).float(), frame(18, 9, 1).mT.contiguous().float()
    first = adapter("first", LayerUpdate(left[:, :2], right[:2]))
    gone = adapter("gone", LayerUpdate(left[:, 2:5], right[2:5]))
    faint = LayerUpdate(left[:, [0, 1, 8]] * torch.tensor([1.0, 1.0, 2.6e-6]), right[[0, 1, 8]])
    new = [adapter("faint", faint), adapter("last", LayerUpdate(left[:, 5:8], right[5:8]))]
    merged = merge(build([first, gone], 5).without_tasks("gone"), new)
    assert merged.layers[MODULE].k == (5, 5)
    lost = absolute_errors(merged, new)["faint"][MODULE]
    assert lost > 1.5e-6
    assert_bounded(merged, [first, *new])


def test_a_smaller_cap_cuts_and_a_larger_one_lets_grow() -> None:
    adapters = strangers(4, 16, 12)
    model = build(adapters[:2], 4)
    assert merge(model, [adapters[2]], cap=2).layers[MODULE].k == (2, 2)
    wide = merge(model, adapters[2:], cap=FULL)
    assert min(wide.layers[MODULE].k) > 4
    assert worst(wide, adapters[2:]) <= 1e-5


def test_the_weight_of_entry_counts_at_every_merge() -> None:
    """Two hundred merges at the cap do not erase a task whose norm is small."""
    quiet = adapter("quiet", update(12, 9, 1, 1, norm=1e-6))
    model = build([quiet], 3)
    for i in range(12):
        model = merge(model, [adapter(f"loud{i % 2}{i}", update(12, 9, 1, 2 + i % 2, norm=1e3))])
    assert worst(model, [quiet]) < 1e-3


def _norm(tensor: Tensor) -> float:
    return float(tensor.norm())


def test_weighed_error_is_the_sum_of_squares() -> None:
    adapters = strangers(3)
    model = build(adapters, 2)
    single = [weighed_error(model, [a]) for a in adapters]
    assert weighed_error(model, adapters) == pytest.approx(_norm(torch.tensor(single)), rel=1e-6)
