"""The baselines of a Share model against dense arithmetic."""

from __future__ import annotations

import pytest
import torch

from builders import (
    FULL,
    MODULE,
    adapter,
    build,
    dense,
    originals,
    relatives,
    strangers,
    update,
)
from sharespace.errors import OptionError
from sharespace.subspace.adapter import Adapter
from sharespace.subspace.plan import baselines
from sharespace.subspace.state import ShareModel


def _two_modules() -> list[Adapter]:
    return [
        adapter(
            f"t{i}",
            {"x": update(12, 9, 3, i, norm=1.0 + i), "y": update(8, 10, 2, i + 50, norm=0.5)},
        )
        for i in range(4)
    ]


def test_the_mean_adapter_agrees_with_dense_arithmetic() -> None:
    adapters = _two_modules()
    found = baselines(build(adapters, 3), adapters).mean_adapter
    whole = originals(adapters)
    mean = {m: torch.stack([whole[a.name][m] for a in adapters]).mean(0) for m in ("x", "y")}
    for name, updates in whole.items():
        lost = sum(float((w - mean[m]).square().sum()) for m, w in updates.items())
        norm = sum(float(w.square().sum()) for w in updates.values())
        assert found[name] == pytest.approx((lost / norm) ** 0.5, rel=1e-4)


def test_own_svds_take_the_bytes_of_bases_and_coefficients_and_no_more() -> None:
    adapters = _two_modules()
    model = build(adapters, 4)
    found = baselines(model, adapters).own_svd
    bytes_ = _bytes(model)
    offers = []
    for updates in originals(adapters).values():
        total = sum(float(w.square().sum()) for w in updates.values())
        for w in updates.values():
            energies = torch.linalg.svdvals(w).square() / total
            offers += [(float(e), 4 * sum(w.shape)) for e in energies]
    # No set of directions of as many bytes keeps more: a bound by the fractional relaxation.
    best = sum(e for e, _ in offers)
    for energy, size in sorted(offers, key=lambda x: -x[0] / x[1]):
        best -= energy * min(1.0, max(bytes_, 0) / size)
        bytes_ -= size
    assert sum(e * e for e in found.values()) >= best - 1e-9
    assert sum(e * e for e in found.values()) <= best + 0.5


def _bytes(model: ShareModel) -> float:
    values = [c.nbytes for t in model.tasks.values() for c in t.coefficients.values()]
    return float(sum(values) + sum(layer.nbytes for layer in model.layers.values()))


def test_own_svds_of_equal_size_modules_are_the_sorted_tails() -> None:
    adapters = strangers(3, 10, 10, 4)
    model = build(adapters, 5)
    columns = int(_bytes(model)) // (4 * 20)
    found = baselines(model, adapters).own_svd
    values = torch.cat([torch.linalg.svdvals(dense(a.layer(MODULE))) for a in adapters])
    left = values.square().sort(descending=True).values[columns:].sum()
    assert sum(e * e for e in found.values()) == pytest.approx(float(left), rel=1e-4)


def test_strangers_share_little_and_relatives_much() -> None:
    near, far = relatives(8, 20, 16, k=4, rank=4), strangers(8, 20, 16, 2)
    shared, private = (baselines(build(x, 4), x) for x in (near, far))
    assert shared.shared > 0.99
    assert all(f > 0.99 for f in shared.shared_fraction.values())
    assert private.shared < 0.4
    assert all(0 <= f <= 1 for f in private.shared_fraction.values())


def test_nothing_is_shared_where_own_svds_are_exact() -> None:
    adapters = strangers(2, 20, 16, 2)
    found = baselines(build(adapters, FULL), adapters)
    assert found.shared == 0
    assert set(found.shared_fraction.values()) == {0.0}


def test_a_single_task_shares_nothing() -> None:
    adapters = strangers(1, 20, 16, 6)
    assert baselines(build(adapters, 2), adapters).shared < 1e-3


def test_random_bases_are_worse_and_depend_on_the_seed_alone() -> None:
    adapters = relatives(5, 30, 25, k=4)
    model = build(adapters, 4)
    one, same, other = (baselines(model, adapters, seed).random_basis for seed in (1, 1, 2))
    assert one == same != other
    assert min(one.values()) > 0.9


def test_baselines_need_the_adapters_of_all_tasks_and_no_other() -> None:
    adapters = strangers(3)
    model = build(adapters, 2)
    for wrong in (adapters[:2], [*adapters, adapter("x", update(12, 9, 2))]):
        with pytest.raises(OptionError, match="they compare all tasks"):
            baselines(model, wrong)


def test_a_zero_task_has_no_error_anywhere() -> None:
    adapters = [*strangers(2), adapter("zero", update(12, 9, 2, norm=0.0))]
    found = baselines(build(adapters, 2), adapters)
    assert found.own_svd["zero"] == found.mean_adapter["zero"] == 0
    assert found.shared_fraction["zero"] == 0
